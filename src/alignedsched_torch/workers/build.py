"""A rank put together from its description: its share of the model, its pools, its lane, its collectives."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

import torch
from attrs import define

from alignedsched.cluster import HOST
from alignedsched.errors import ConfigError

from ..devices import CudaDevice, Device
from ..forward import Forward
from ..job import Job
from ..kernels.choice import decoder_for
from ..lane import LaneRunner
from ..memory import KVPool, PageShape
from ..models import ModelConfig, Shard, load_weights
from ..table import BatchTable
from .memory import Region, SharedDevice
from .mover import Mover
from .spec import DTYPES, WorkerSpec, page_shape

_COLLECTIVE_S = 3600.0  # the driver ends a group whose ranks do not meet; this is only the last resort


class PeerLostError(Exception):
    """A collective did not come about. No ExecutorError: the lane cannot go on by itself."""


@define(eq=False)
class Rank:
    """What a worker works with. ``pools`` by tier: the rank's share of its own device's memory, staging included."""

    jobs: dict[str, Job]
    pools: dict[str, KVPool]
    table: BatchTable
    lane: LaneRunner
    mover: Mover


def build(spec: WorkerSpec, regions: Mapping[str, Region]) -> Rank:
    """Load the model and set everything up. Raises ConfigError as loading does."""
    cluster, lane = spec.cluster, spec.cluster.lane[spec.lane]
    config, dtype = ModelConfig.from_folder(spec.folder), DTYPES[spec.dtype]
    device: Device = SharedDevice(spec.own, regions[spec.own]) if spec.device == "cpu" else _cuda(spec)
    weights = load_weights(spec.folder, config, dtype, device.torch_device, Shard(spec.rank, spec.ranks))
    decoder = decoder_for(config, weights, _sum(spec), spec.ranks)
    shape = page_shape(cluster, config, dtype, spec.ranks)
    mine = [tier for tier in cluster.tiers.values() if tier.device == spec.own]
    pools = {}
    for tier in mine:
        holder = SharedDevice(tier.id, regions[tier.id]) if spec.device == "cpu" else device
        pools[tier.id] = KVPool(tier.id, holder, shape, tier.blocks)
    shared = {
        name: region.tensor((cluster.tiers[name].blocks, *shape.shape), dtype)
        for name, region in regions.items()
        if name not in pools
    }
    if spec.device != "cpu" and HOST in shared:
        _pin(shared[HOST])
    jobs: dict[str, Job] = {}
    pool = pools[spec.own]
    table = BatchTable(pool, lane.max_members, _pages(spec, shape), lane.run_ahead, config.vocab)
    forward = Forward(decoder, pool, table, device.stream("compute"))
    runner = LaneRunner(lane, forward, pool, jobs, spec.first_step)
    mover = Mover(spec.rank, device, pools, shared)
    device.settle()
    return Rank(jobs, pools, table, runner, mover)


def _pages(spec: WorkerSpec, shape: PageShape) -> int:
    return max(1, min(shape.pages(spec.cluster.max_positions), spec.cluster.device[spec.own].kv_blocks))


def _sum(spec: WorkerSpec) -> Callable[[torch.Tensor], None] | None:
    """The sum over the group's ranks, in place; every rank gets the same bits, so all sample the same tokens."""
    if spec.ranks == 1:
        return None
    import torch.distributed

    dist: Any = torch.distributed  # names it gives without saying so in its types
    if spec.device == "cpu":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # all ranks are on this machine
    host, port = spec.store
    patience = timedelta(seconds=_COLLECTIVE_S)
    store = dist.PrefixStore(spec.meeting, dist.TCPStore(host, port, None, is_master=False, timeout=patience))
    backend = "gloo" if spec.device == "cpu" else "nccl"
    dist.init_process_group(backend, store=store, rank=spec.rank, world_size=spec.ranks, timeout=patience)

    def add(tensor: torch.Tensor) -> None:
        try:
            dist.all_reduce(tensor)
        except RuntimeError as error:
            raise PeerLostError(f"the ranks of lane {spec.lane!r} did not meet: {error}") from error

    return add


def _cuda(spec: WorkerSpec) -> CudaDevice:
    found = torch.cuda.device_count()
    if spec.number >= found:
        raise ConfigError(f"worker {spec.number} of lane {spec.lane!r} needs a GPU of its own, torch sees {found}")
    torch.cuda.set_device(spec.number)
    return CudaDevice(spec.own, spec.number)


def _pin(tensor: torch.Tensor) -> None:
    """Let the GPU copy from and to memory that other processes see too."""
    size = tensor.numel() * tensor.element_size()
    if size and int(torch.cuda.cudart().cudaHostRegister(tensor.data_ptr(), size, 0)):
        raise MemoryError(f"cannot pin {size} bytes of shared memory")
