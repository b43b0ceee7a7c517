"""The cluster one process serves with: its devices, how much KV each holds, and the links between them.

``colocated``: one device prefills and decodes. ``disaggregated``: one prefills and, where there is host memory, stages
for the other, which decodes; both may be the same GPU (or CPU) under two names, with memory and streams of their own.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from attrs import frozen

from alignedsched.cluster import HOST, Cluster, KVLayout, Lane, Link, Role
from alignedsched.cluster import Device as Memory
from alignedsched.errors import ConfigError

from .devices import CpuDevice, CudaDevice, Device
from .memory import PageShape
from .models import ModelConfig

TOPOLOGIES = ("colocated", "disaggregated")
CPU_KV_BYTES = 1 << 30  # where nothing else is said
GPU_KV_SHARE = 0.85  # of what is free once the weights are loaded
PREFILL_SHARE = 0.25  # of the KV memory, half of it for staging: prefilled KV soon leaves
HOST_BYTES_PER_S = 20e9  # assumed until it is measured; policies compare copies with it, nothing waits for it
PEER_BYTES_PER_S = 100e9


@frozen
class Sizes:
    """How much memory, in tokens, and how large steps may be. ``kv_tokens`` None: what is there."""

    kv_tokens: int | None = None
    host_tokens: int = 0
    page_size: int = 16
    max_members: int = 256
    max_tokens: int = 2048
    run_ahead: int | None = None


def open_devices(name: str, topology: str) -> dict[str, Device]:
    """Devices by id. Raises ConfigError for a device or topology that is not there."""
    if topology not in TOPOLOGIES:
        raise ConfigError(f"topology {topology!r} is not known; known: {', '.join(TOPOLOGIES)}")
    ids = ("d0",) if topology == "colocated" else ("d0", "p0")
    kind, _, number = name.partition(":")
    if kind == "cpu" and not number:
        return {device: CpuDevice(device) for device in ids}
    if kind != "cuda" or not (number.isdigit() or not number):
        raise ConfigError(f"device {name!r} is not known; known: cpu, cuda, cuda:N")
    found = torch.cuda.device_count()
    first = int(number or 0)
    if first >= found:
        raise ConfigError(f"device {name!r}: torch sees {found} CUDA GPUs")
    return {device: CudaDevice(device, (first + place) % found) for place, device in enumerate(ids)}


def plan_cluster(config: ModelConfig, dtype: torch.dtype, devices: Mapping[str, Device], sizes: Sizes) -> Cluster:
    """The cluster over these devices. Raises ConfigError for sizes that are none, or hold no request."""
    if sizes.page_size < 1 or sizes.host_tokens < 0 or (sizes.kv_tokens is not None and sizes.kv_tokens < 1):
        raise ConfigError(
            f"page_size and kv_tokens must be at least 1 and host_tokens at least 0, got "
            f"{sizes.page_size}, {sizes.kv_tokens} and {sizes.host_tokens}"
        )
    shape = PageShape(config.layers, config.kv_heads, config.head_dim, sizes.page_size, dtype)
    gpu = devices["d0"].torch_device.type == "cuda"
    tokens = _free_tokens(shape, config, devices["d0"], sizes) if sizes.kv_tokens is None else sizes.kv_tokens
    blocks = shape.pages(tokens)
    run_ahead = int(gpu) if sizes.run_ahead is None else sizes.run_ahead  # the CPU has nothing to overlap with
    if "p0" not in devices:
        memories: tuple[Memory, ...] = (Memory("d0", Role.BOTH, blocks),)
    else:
        prefill = max(1, int(blocks * PREFILL_SHARE))
        staging = prefill // 2 if sizes.host_tokens else 0
        memories = (
            Memory("p0", Role.PREFILL, prefill - staging, staging),
            Memory("d0", Role.DECODE, blocks - prefill),
        )
    lanes = tuple(
        Lane(f"lane-{m.id}", (m.id,), run_ahead, sizes.max_members, max(sizes.max_tokens, sizes.max_members))
        for m in memories
    )
    return Cluster(
        memories, lanes, shape.pages(sizes.host_tokens), _links(memories, bool(sizes.host_tokens)),
        KVLayout(sizes.page_size, shape.bytes // sizes.page_size), config.max_positions,
    )  # fmt: skip


def _free_tokens(shape: PageShape, config: ModelConfig, device: Device, sizes: Sizes) -> int:
    """As much as fits: all members at the model's longest at most."""
    if device.torch_device.type == "cuda":
        free = int(torch.cuda.mem_get_info(device.torch_device)[0] * GPU_KV_SHARE)
    else:
        free = CPU_KV_BYTES
    fitting = free // shape.bytes * shape.page_size
    return max(shape.page_size, min(fitting, sizes.max_members * config.max_positions))


def _links(memories: tuple[Memory, ...], host: bool) -> tuple[Link, ...]:
    names = [memory.id for memory in memories]
    ends = [(a, b, PEER_BYTES_PER_S) for a in names for b in names if a != b]
    if host:
        ends += [(a, b, HOST_BYTES_PER_S) for name in names for a, b in ((name, HOST), (HOST, name))]
    return tuple(Link(*end) for end in ends)
