"""What a worker is: its lane and rank, its model, and where it meets the others of its group."""

from __future__ import annotations

from typing import Any

import torch
from attrs import field, frozen

from alignedsched.cluster import HOST, Cluster
from alignedsched.errors import ConfigError
from alignedsched.story.codec import register

from ..memory import PageShape
from ..models import ModelConfig

DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def _above(instance: object, attribute: Any, value: float) -> None:
    if not value > 0:
        raise ConfigError(f"{attribute.name} must be above 0, got {value!r}")


@frozen
class Limits:
    """How long is too long, and how much is too much.

    ``silence_s``: a worker that answers no bell for so long is taken for lost; longer than any step. ``start_s``: for
    loading a model. ``restarts``: of one lane's workers, then the lane stays lost. ``ring_bytes``: of orders under way
    to a lane, and of reports from a worker; the longest prompt takes about six bytes a token.
    """

    silence_s: float = field(default=60.0, validator=_above)
    start_s: float = field(default=300.0, validator=_above)
    restarts: int = 3
    ring_bytes: int = field(default=16 << 20, validator=_above)


@frozen
class WorkerSpec:
    """One worker. ``regions`` names the tiers it may read or write, in the order in which their descriptors come."""

    folder: str
    dtype: str
    device: str  # "cpu" or "cuda"
    cluster: Cluster
    lane: str
    rank: int
    ranks: int
    number: int  # among all workers: which GPU it takes
    first_step: int
    store: tuple[str, int]  # where the group meets
    meeting: str  # its name there
    regions: tuple[str, ...]

    @property
    def own(self) -> str:
        """The device whose KV this worker holds, or its share of it."""
        return self.cluster.lane[self.lane].ranks[0]


register(WorkerSpec)


def page_shape(cluster: Cluster, config: ModelConfig, dtype: torch.dtype, ranks: int) -> PageShape:
    """The share of a page one tensor-parallel rank holds."""
    return PageShape(config.layers, config.kv_heads // ranks, config.head_dim, cluster.layout.block_size, dtype)


def check(cluster: Cluster, config: ModelConfig, ranks: int, device: str, dtype: str) -> None:
    """Raises ConfigError for what workers cannot be: the message names it, and what may be."""
    if dtype not in DTYPES:
        raise ConfigError(f"dtype {dtype!r} is not known; known: {', '.join(DTYPES)}")
    if device not in ("cpu", "cuda"):
        raise ConfigError(f"device {device!r} is not known; known: cpu, cuda")
    if ranks < 1 or config.heads % ranks or config.kv_heads % ranks or config.intermediate % ranks:
        raise ConfigError(
            f"tensor_parallel {ranks} shares out {config.heads} heads, {config.kv_heads} key/value heads and "
            f"intermediate size {config.intermediate}: it must divide all three"
        )
    for lane in cluster.lanes:
        if len(lane.ranks) > 1:
            raise ConfigError(f"lane {lane.id!r} has {len(lane.ranks)} lockstep ranks; workers run lanes of one device")
    served = {lane.ranks[0] for lane in cluster.lanes}
    for one in cluster.devices:
        if one.id not in served:
            raise ConfigError(f"device {one.id!r} has no lane; each worker runs one")
    between = [link for link in cluster.links if HOST not in (link.source, link.target)]
    if device == "cuda" and between:
        raise ConfigError(
            f"link {between[0].source}->{between[0].target}: KV goes between GPUs of different processes over host "
            "memory only, so far"
        )
