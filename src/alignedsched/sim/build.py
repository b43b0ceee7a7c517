"""A modelled cluster from names: GPUs, a model, a topology; what is assumed stands here, with its reason.

One lane is one GPU, or the tensor-parallel group the model needs (``NAME:GPUS`` says how many). ``colocated`` lanes
prefill and decode; ``disaggregated`` has as many prefill devices as decoding ones, linked to every decoding device,
and half of each prefill device's KV memory may stage KV for others: prefill keeps at most a quarter of it occupied
(semi-PD measured 1.7 to 25 %). A decoding lane may have several ``ranks`` that step together, each a GPU (or tensor-
parallel group) with its own KV and members: data-parallel attention, its step as long as the slowest rank's.
"""

from __future__ import annotations

from pathlib import Path

from attrs import frozen

from ..cluster import HOST, Cluster, Device, KVLayout, Lane, Link, Role
from ..cost_model import ModelCosts
from ..errors import ConfigError
from ..hardware import Gpu, gpu_named, kv_blocks, link_named
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


@frozen
class Built:
    """A cluster and what its lanes' steps cost."""

    cluster: Cluster
    costs: ModelCosts
    hardware: str
    model: Model


def build(
    hardware: str,
    model: str,
    *,
    topology: str,
    lanes: int,
    surface: str,
    staging: bool,
    any_length: bool = False,
    ranks: int = 1,
) -> Built:
    """The modelled cluster. Raises ConfigError for unknown names (listing the known ones) and what does not fit."""
    shape = Model.from_config(model) if _is_path(model) else model_named(model)
    name, gpu, parallel = _gpus(hardware, shape)
    blocks = kv_blocks(gpu, shape, parallel, BLOCK_SIZE)
    layout = KVLayout(BLOCK_SIZE, shape.kv_bytes_per_token_on(parallel) * parallel)
    tokens = MANY_TOKENS if gpu.memory_bytes >= MANY_FROM_BYTES else FEW_TOKENS
    positions = ANY_LENGTH if any_length else shape.max_positions
    role = Role.BOTH if topology == "colocated" else Role.DECODE
    groups = [
        [Device(f"d{i}" if ranks == 1 else f"d{i}r{rank}", role, blocks) for rank in range(ranks)] for i in range(lanes)
    ]
    decoders = [device for group in groups for device in group]
    prefillers: list[Device] = []
    if topology == "disaggregated":
        stage = int(blocks * STAGING_SHARE) if staging else 0
        prefillers = [Device(f"p{i}", Role.PREFILL, blocks - stage, stage) for i in range(len(decoders))]
    devices = (*prefillers, *decoders)
    host_blocks = HOST_BYTES_PER_GPU * parallel * len(devices) // (BLOCK_SIZE * layout.bytes_per_token)
    cluster = Cluster(
        devices,
        tuple(
            Lane(f"lane-{group[0].id}", tuple(d.id for d in group), RUN_AHEAD, MAX_MEMBERS, tokens)
            for group in (*([prefiller] for prefiller in prefillers), *groups)
        ),
        host_blocks,
        _links(gpu, prefillers, decoders, parallel),
        layout,
        positions,
    )
    return Built(cluster, ModelCosts(gpu, shape, parallel, surface, overlap_host=RUN_AHEAD > 0), name, shape)


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


def _links(gpu: Gpu, prefillers: list[Device], decoders: list[Device], parallel: int) -> tuple[Link, ...]:
    """Every device to the host and back; every prefill device to every decoding one and back. GPUs of a lane add up."""
    pcie, peer = link_named(PCIE.get(gpu.name, "pcie5")), link_named(NVLINK.get(gpu.name, "nvlink4"))
    links = []
    for device in (*prefillers, *decoders):
        links.append(Link(device.id, HOST, pcie.bytes_per_s * parallel, pcie.latency_s))
        links.append(Link(HOST, device.id, pcie.bytes_per_s * parallel, pcie.latency_s))
    for source in prefillers:
        for target in decoders:
            links.append(Link(source.id, target.id, peer.bytes_per_s * parallel, peer.latency_s))
            links.append(Link(target.id, source.id, peer.bytes_per_s * parallel, peer.latency_s))
    return tuple(links)
