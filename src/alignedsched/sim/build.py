"""A modelled cluster from names: GPUs, a model, a topology; what is assumed stands here, with its reason.

One lane is one GPU, or the tensor-parallel group the model needs (``NAME:GPUS`` says how many). ``colocated`` lanes
prefill and decode; ``disaggregated`` has as many prefill devices as decoding ones, linked to every decoding device,
and half of each prefill device's KV memory may stage KV for others: prefill keeps at most a quarter of it occupied
(semi-PD measured 1.7 to 25 %). A decoding lane may have several ``ranks`` that step together, each a GPU (or tensor-
parallel group) with its own KV and members: data-parallel attention, its step as long as the slowest rank's. Ranks of
a lane are linked with each other as prefill devices are with those that decode.

Hardware may also be a file of measurements (``measured``; ``FILE.json:KERNEL`` says under which kernel): each device is
then such a machine, with the model, memory, costs and links that were measured.
"""

from __future__ import annotations

from pathlib import Path

from attrs import evolve, frozen

from ..cluster import HOST, Cluster, Device, KVLayout, Lane, Link, Role
from ..cost_model import ModelCosts
from ..cost_table import TableCosts
from ..errors import ConfigError
from ..hardware import Gpu, LinkSpeed, gpu_named, kv_blocks, link_named
from ..measured import Measured
from ..models import Model, model_named
from ..outside import show

BLOCK_SIZE = 16
MAX_MEMBERS = 256  # vLLM's max_num_seqs where nothing else is said
RUN_AHEAD = 1  # vLLM's asynchronous scheduling, its default on GPUs
HOST_BYTES_PER_GPU = 256_000_000_000  # assumed: a server with 8 GPUs and 2 TB
STAGING_SHARE = 0.5
TENSOR_PARALLEL = (1, 2, 4, 8)
# Tokens a step: vLLM's max_num_batched_tokens, by GPU memory (8,192 from 70 GiB on, where it serves; else 2,048).
MANY_TOKENS, FEW_TOKENS, MANY_FROM_BYTES = 8192, 2048, 70 * 1024**3
PCIE = {"a100": "pcie4", "rtx4090": "pcie4"}
NVLINK = {"a100": "nvlink3"}
ANY_LENGTH = 1 << 40


DEFAULT_MODEL, DEFAULT_SURFACE = "llama-3.1-8b", "gated"


@frozen
class Built:
    """A cluster and what its lanes' steps cost. ``surface`` is the costs' own: ``table`` if measured."""

    cluster: Cluster
    costs: ModelCosts | TableCosts
    hardware: str
    model: str
    surface: str


@frozen
class _Part:
    """What each device of the cluster is made of."""

    name: str
    model: str
    costs: ModelCosts | TableCosts
    layout: KVLayout
    blocks: int  # of KV
    host_blocks: int  # for each device
    lane: tuple[int, int, int]  # run-ahead, most members, most tokens a step
    positions: int
    to_host: LinkSpeed
    from_host: LinkSpeed
    peer: LinkSpeed | None


def build(
    hardware: str,
    model: str | None = None,
    *,
    topology: str,
    lanes: int,
    surface: str | None = None,
    staging: bool,
    any_length: bool = False,
    ranks: int = 1,
) -> Built:
    """The modelled cluster. ``model`` and ``surface`` default to ``DEFAULT_MODEL`` and ``DEFAULT_SURFACE``; both are
    part of measured hardware and must not be given with it.

    Raises ConfigError for unknown names (listing the known ones), a file that is wrong, and what does not fit.
    """
    path, dot, kernel = hardware.partition(".json:")
    if dot or hardware.endswith(".json"):
        part = _measured(path + ".json" if dot else hardware, kernel or None, model, surface)
    else:
        part = _modelled(hardware, model or DEFAULT_MODEL, surface or DEFAULT_SURFACE)
    if topology != "colocated" and part.peer is None:
        raise ConfigError(f"hardware {show(hardware)}: no link between devices was measured; use topology 'colocated'")
    role = Role.BOTH if topology == "colocated" else Role.DECODE
    groups = [
        [Device(f"d{i}" if ranks == 1 else f"d{i}r{rank}", role, part.blocks) for rank in range(ranks)]
        for i in range(lanes)
    ]
    decoders = [device for group in groups for device in group]
    prefillers: list[Device] = []
    if topology == "disaggregated":
        stage = int(part.blocks * STAGING_SHARE) if staging else 0
        prefillers = [Device(f"p{i}", Role.PREFILL, part.blocks - stage, stage) for i in range(len(decoders))]
    devices = (*prefillers, *decoders)
    cluster = Cluster(
        devices,
        tuple(
            Lane(f"lane-{group[0].id}", tuple(d.id for d in group), *part.lane)
            for group in (*([prefiller] for prefiller in prefillers), *groups)
        ),
        part.host_blocks * len(devices),
        _links(part, prefillers, decoders, groups if part.peer else []),
        part.layout,
        ANY_LENGTH if any_length else part.positions,
    )
    return Built(cluster, part.costs, part.name, part.model, part.costs.surface)


def _modelled(hardware: str, model: str, surface: str) -> _Part:
    """A kind of GPU by its published figures."""
    shape = Model.from_config(model) if _is_path(model) else model_named(model)
    name, gpu, parallel = _gpus(hardware, shape)
    layout = KVLayout(BLOCK_SIZE, shape.kv_bytes_per_token_on(parallel) * parallel)
    tokens = MANY_TOKENS if gpu.memory_bytes >= MANY_FROM_BYTES else FEW_TOKENS
    pcie, peer = link_named(PCIE.get(gpu.name, "pcie5")), link_named(NVLINK.get(gpu.name, "nvlink4"))
    # GPUs of a lane add up.
    pcie, peer = (evolve(link, bytes_per_s=link.bytes_per_s * parallel) for link in (pcie, peer))
    return _Part(
        name, shape.name, ModelCosts(gpu, shape, parallel, surface, overlap_host=RUN_AHEAD > 0), layout,
        kv_blocks(gpu, shape, parallel, BLOCK_SIZE),
        HOST_BYTES_PER_GPU * parallel // (BLOCK_SIZE * layout.bytes_per_token),
        (RUN_AHEAD, MAX_MEMBERS, tokens), shape.max_positions, pcie, pcie, peer,
    )  # fmt: skip


def _measured(path: str, kernel: str | None, model: str | None, surface: str | None) -> _Part:
    """A machine as it was measured, under one of its kernels; links that were not are none."""
    for name, value in (("model", model), ("surface", surface)):
        if value is not None:
            raise ConfigError(f"{name} {show(value)}: hardware {show(path)} was measured with its own; leave it away")
    found = Measured.load(path)
    memory, size = found.memory, found.memory.page_size
    ways = {name: LinkSpeed(name, link.bytes_per_s, link.latency_s) for name, link in found.links.items()}
    if memory.host_tokens and not {"host->device", "device->host"} <= ways.keys():
        raise ConfigError(f"{path}: links: host memory of {memory.host_tokens} tokens, but no copies to or from it")
    nothing = LinkSpeed("none", 1.0, 0.0)
    return _Part(
        found.machine.get("gpu") or found.machine.get("processor") or Path(path).name, found.model.name,
        found.costs(kernel),
        KVLayout(size, found.model.kv_bytes_per_token), memory.kv_tokens // size, memory.host_tokens // size,
        (memory.run_ahead, memory.max_members, memory.max_tokens), found.model.max_positions,
        ways.get("device->host", nothing), ways.get("host->device", nothing), ways.get("device->device"),
    )  # fmt: skip


def _is_path(model: str) -> bool:
    try:
        return model.endswith(".json") or Path(model).is_dir()
    except OSError:  # too long to be a path: a name then, and an unknown one
        return False


def _gpus(hardware: str, model: Model) -> tuple[str, Gpu, int]:
    """The GPU and how many form a lane: as said behind a colon, else the fewest that hold one longest context."""
    name, _, count = hardware.partition(":")
    gpu = gpu_named(name)
    if count:
        if count not in map(str, TENSOR_PARALLEL):
            raise ConfigError(
                f"hardware {show(hardware)}: GPUs per lane must be one of {TENSOR_PARALLEL}, got {show(count)}"
            )
        return hardware, gpu, int(count)
    for parallel in TENSOR_PARALLEL:
        try:
            blocks = kv_blocks(gpu, model, parallel, BLOCK_SIZE)
        except ConfigError:
            continue
        if blocks * BLOCK_SIZE >= model.max_positions:
            return (name if parallel == 1 else f"{name}:{parallel}"), gpu, parallel
    raise ConfigError(
        f"model {show(model.name)} with one longest context does not fit on {max(TENSOR_PARALLEL)} {name}"
    )


def _links(
    part: _Part, prefillers: list[Device], decoders: list[Device], groups: list[list[Device]]
) -> tuple[Link, ...]:
    """Every device to the host and back; every prefill device to every decoding one and back; ranks to each other."""
    links = []
    if part.host_blocks:
        for device in (*prefillers, *decoders):
            links.append(_link(device.id, HOST, part.to_host))
            links.append(_link(HOST, device.id, part.from_host))
    if part.peer is not None:
        for source in prefillers:
            for target in decoders:
                links.append(_link(source.id, target.id, part.peer))
                links.append(_link(target.id, source.id, part.peer))
        for ranks in groups:
            links += [_link(a.id, b.id, part.peer) for a in ranks for b in ranks if a is not b]
    return tuple(links)


def _link(source: str, target: str, speed: LinkSpeed) -> Link:
    return Link(source, target, speed.bytes_per_s, speed.latency_s)
