"""The whole calibration of one machine with one model: what is measured, in which order, and for how long."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from attrs import evolve, field, frozen

from alignedsched.cluster import Cluster
from alignedsched.cost_table import TableCosts
from alignedsched.errors import ConfigError
from alignedsched.measured import Measured, MeasuredKernel, MeasuredLink, MeasuredMemory, MeasuredModel

from ..clusters import Sizes, open_devices, plan_cluster
from ..devices import Device
from ..kernels.choice import decoder_for
from ..models import Decoder, ModelConfig, load_weights
from .bench import Bench
from .copies import measure_links, measure_peers
from .machine import machine
from .random_model import LLAMA_8B, TINY, random_decoder
from .rounds import Told, quiet
from .shapes import Limits
from .steps import held_out, measure_decode, measure_prefill, measure_rows
from .stopwatch import Stopwatch

# Shares of the time. What is left is spent on the first round of the grid, and on building batches.
DECODE, ROWS, PREFILL, UNSEEN, LINKS = 0.4, 0.05, 0.15, 0.25, 0.15
DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@frozen
class Wanted:
    """What is measured. ``model``: a folder; None: random weights, as Llama-3.1-8B on a GPU, tiny on a CPU.

    ``attention``: names of ``kernels.choice``, each measured; the first is the engine's.
    """

    model: str | None = None
    device: str = "cpu"
    dtype: str | None = None  # None: the checkpoint's own
    attention: tuple[str, ...] = ("auto",)
    minutes: float = 2.0
    sizes: Sizes = field(factory=Sizes)
    seed: int = 0


def calibrate(wanted: Wanted, told: Told = quiet) -> Measured:
    """Measure the machine. Raises ConfigError naming the file, device or option that is wrong."""
    if not wanted.minutes > 0:
        raise ConfigError(f"minutes must be above 0, got {wanted.minutes!r}")
    if not wanted.attention:
        raise ConfigError("attention must name at least one")
    devices = open_devices(wanted.device, "colocated")
    decoder, name = _decoder(wanted, devices["d0"].torch_device)
    dtype = decoder.weights.norm.dtype
    cluster = plan_cluster(decoder.config, dtype, devices, wanted.sizes)
    limits = limits_of(cluster)
    rng = np.random.default_rng(wanted.seed)
    seconds = wanted.minutes * 60
    kernels: dict[str, MeasuredKernel] = {}
    links: dict[str, MeasuredLink] = {}
    for number, attention in enumerate(wanted.attention):
        # Pools fill the memory, so there is one at a time; the host's, which is slow to pin, is needed once.
        here = cluster if not number else evolve(cluster, host_blocks=0, links=())
        bench = Bench(here, devices, {lane.id: decoder for lane in cluster.lanes}, attention)
        told(f"{name} on {wanted.device}, {bench.attention}", 0, 1)
        share = seconds * (1 - LINKS) / len(wanted.attention)
        kernels.setdefault(bench.attention, measure_kernel(bench, limits, share, rng, told))
        links |= measure_links(bench, limits, seconds * LINKS, rng, told)
        del bench
    links |= _peers(decoder, wanted, seconds * LINKS / 4, rng, told)
    lane = cluster.lanes[0]
    return Measured(
        machine=machine(devices["d0"].torch_device) | {"clock": Stopwatch(devices["d0"]).clock, "dtype": str(dtype)},
        model=MeasuredModel(name, cluster.layout.bytes_per_token, cluster.max_positions),
        memory=MeasuredMemory(
            cluster.layout.block_size, cluster.devices[0].kv_blocks * cluster.layout.block_size,
            cluster.host_blocks * cluster.layout.block_size, limits.members, lane.max_tokens, lane.run_ahead,
        ),
        kernel=next(iter(kernels)),
        kernels=kernels,
        links=links,
    )  # fmt: skip


def limits_of(cluster: Cluster) -> Limits:
    """What a batch on the bench may hold: one page less than there is, for whatever is rounded."""
    lane, size = cluster.lanes[-1], cluster.layout.block_size
    blocks = cluster.device[lane.ranks[0]].kv_blocks
    limits = Limits(lane.max_members, cluster.max_positions, (blocks - 1) * size, size)
    if limits.mean(1) < 1:
        raise ConfigError(f"a KV memory of {blocks} blocks is too small to be measured")
    most = limits.members
    while limits.mean(most) < 1:  # so many members do not fit with any context at all
        most //= 2
    return evolve(limits, members=most)


def measure_kernel(
    bench: Bench, limits: Limits, seconds: float, rng: np.random.Generator, told: Told
) -> MeasuredKernel:
    """Steps of one bench as a table, with its errors on what the table has not seen."""
    share = seconds / (1 - LINKS)
    sheets = measure_decode(bench, limits, share * DECODE, rng, told)
    rows = measure_rows(bench, bench.lane.max_tokens, share * ROWS, rng, told)
    prefill = measure_prefill(bench, limits, sheets, rows, share * PREFILL, rng, told)
    costs = TableCosts(sheets, prefill, f"alignedsched-torch calibrate, {bench.watch.clock}")
    return MeasuredKernel(costs, held_out(bench, limits, costs, share * UNSEEN, rng, told))


def _decoder(wanted: Wanted, place: torch.device) -> tuple[Decoder, str]:
    if wanted.dtype is not None and wanted.dtype not in DTYPES:
        raise ConfigError(f"dtype {wanted.dtype!r} is not supported; supported: {', '.join(DTYPES)}")
    if wanted.model is None:
        raw, name = (LLAMA_8B, "llama-3.1-8b, random") if place.type == "cuda" else (TINY, "tiny llama, random")
        return random_decoder(raw, DTYPES[wanted.dtype or raw["torch_dtype"]], place), name
    config = ModelConfig.from_folder(wanted.model)
    dtype = DTYPES[wanted.dtype or config.dtype]
    name = Path(wanted.model).name or str(wanted.model)
    return decoder_for(config, load_weights(wanted.model, config, dtype, place)), name


def _peers(
    decoder: Decoder, wanted: Wanted, seconds: float, rng: np.random.Generator, told: Told
) -> dict[str, MeasuredLink]:
    """Copies between two devices: two GPUs, or two pools of main memory. One GPU alone has no peer."""
    devices: dict[str, Device] = open_devices(wanted.device, "disaggregated")
    places = {device.torch_device for device in devices.values()}
    if len(places) < 2 and decoder.weights.norm.is_cuda:
        return {}
    tokens = min(16384, 4 * decoder.config.max_positions)
    cluster = plan_cluster(
        decoder.config, decoder.weights.norm.dtype, devices,
        Sizes(tokens, 0, wanted.sizes.page_size, wanted.sizes.max_members, wanted.sizes.max_tokens),
    )  # fmt: skip
    bench = Bench(cluster, devices, {lane.id: decoder for lane in cluster.lanes})
    return {"device->device": measure_peers(bench, "p0", "d0", seconds, rng, told)}
