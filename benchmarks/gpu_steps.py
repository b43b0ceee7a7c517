"""The whole decode step: Llama-3.1-8B's shape with random weights, in the real executor, with CUDA graphs.

*Floor*: the bytes a step must move (weights once, KV read and written) at the copy bandwidth of the same run. *Step*:
what one more step of a standing order takes, the difference between a long and a short order, so that putting a batch
together does not count. *Host*: what the executor's own code takes a step, launching and taking in. *Prefetch*: an
order while KV comes over the host's link, or goes, by the size of the copy's chunks: what steps send and fetch has to
wait for the chunks in front of it, and small chunks may leave the link idle between them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from statistics import median
from typing import Any

import torch

from alignedsched.cluster import HOST
from alignedsched_torch.calibrate.bench import Bench
from alignedsched_torch.calibrate.random_model import LLAMA_8B, TINY, random_decoder
from alignedsched_torch.clusters import Sizes, open_devices, plan_cluster
from alignedsched_torch.lane import LaneRunner
from alignedsched_torch.memory.copier import HOST_CHUNK_BYTES
from alignedsched_torch.models import Decoder
from benchmarks.gpu_timing import Record, Size, Timer

MEMBERS = (1, 64, 256)
CONTEXT = 2048
SHORT, LONG = 8, 40  # steps
PREFETCH = 4 << 30  # bytes
CHUNKS = (HOST_CHUNK_BYTES, 4 << 20, 2 << 20)  # bytes, falling; the first is the executor's own
REPEATS = 5


def steps(record: Record, size: Size) -> None:
    """Steps against their floor, the host's work, and steps beside a prefetch."""
    bench, context = _bench(size)
    bandwidth = Timer(size).copy_bandwidth()
    members = size.pick(MEMBERS, (1, 3))
    record.put("model", attention=bench.attention, context=context, copy_bytes_per_s=bandwidth)
    for n in members:
        record.attempt(f"step of {n}", lambda n=n: _step(record, bench, n, context, bandwidth, size))  # type: ignore[misc]
    for n in members:
        record.attempt(f"host work of {n}", lambda n=n: _host(record, bench, n, context, size))  # type: ignore[misc]
    for chunk in size.pick(CHUNKS, (HOST_CHUNK_BYTES, 1 << 14)):
        bench.executor.copier.host_chunk_bytes = chunk
        for n in members[1:]:
            what = f"prefetch beside {n}, chunks of {chunk}"
            record.attempt(what, partial(_prefetch, record, bench, n, context, size))


def _bench(size: Size) -> tuple[Bench, int]:
    """The executor with room for the largest batch, and the contexts that fit."""
    decoder = random_decoder(size.pick(LLAMA_8B, TINY), size.dtype, size.device)
    devices = open_devices("cpu" if size.smoke else "cuda", "colocated")
    most, context = size.pick(MEMBERS, (1, 3))[-1], size.pick(CONTEXT, 64)
    page = size.pick(64, 16)
    config = decoder.config
    token = config.layers * 2 * config.kv_heads * config.head_dim * decoder.weights.norm.element_size()
    host = size.pick(PREFETCH // token, 256)
    if not size.smoke:
        free = int(torch.cuda.mem_get_info(size.device)[0] * 0.8) // token
        while most * (context + 2 * page) + host > free and context > 256:  # a smaller GPU: shorter contexts
            context //= 2
    tokens = most * (context + 2 * page) + host
    sizes = Sizes(tokens, host, page, most, 2048)
    cluster = plan_cluster(config, decoder.weights.norm.dtype, devices, sizes)
    return Bench(cluster, devices, {lane.id: decoder for lane in cluster.lanes}), context


def floor(decoder: Decoder, n: int, context: int, bandwidth: float) -> float:
    """Seconds to move what a step must: every matrix but the input embedding, KV of all members, the new tokens'."""
    weights, config = decoder.weights, decoder.config
    item = weights.norm.element_size()
    matrices = [m for layer in weights.layers for m in (layer.qkv, layer.out, layer.gate_up, layer.down)]
    moved = sum(m.numel() for m in (*matrices, weights.head)) * item
    token = config.layers * 2 * config.kv_heads * config.head_dim * item
    return (moved + n * (context + 1) * token) / bandwidth


def one_more(bench: Bench, lengths: list[int], size: Size) -> float:
    """Seconds of one more step of a standing order."""
    short, long = size.pick((SHORT, LONG), (1, 3))
    found = []
    for _ in range(size.pick(REPEATS, 2)):
        times = [count * bench.decode(lengths, count) for count in (short, long)]
        found.append((times[1] - times[0]) / (long - short))
    return float(median(found))


def _step(record: Record, bench: Bench, n: int, context: int, bandwidth: float, size: Size) -> None:
    one_more(bench, [context] * n, size)  # compiles kernels and records graphs
    seconds = one_more(bench, [context] * n, size)
    least = floor(bench.decoder, n, context, bandwidth)
    record.put("step", members=n, context=context, seconds=seconds, floor_s=least, ratio=seconds / least)


@contextmanager
def _watched(spent: dict[str, float]) -> Iterator[None]:
    """Add up what launching steps and taking them in takes the host."""
    launch, take_in = LaneRunner._launch, LaneRunner._take_in

    def launched(lane: LaneRunner) -> bool:
        began = time.perf_counter()
        did = launch(lane)
        if did:
            spent["launch"] += time.perf_counter() - began
            spent["steps"] += 1
        return did

    def taken_in(lane: LaneRunner, step: Any) -> None:
        began = time.perf_counter()
        take_in(lane, step)
        spent["take in"] += time.perf_counter() - began

    LaneRunner._launch, LaneRunner._take_in = launched, taken_in  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        LaneRunner._launch, LaneRunner._take_in = launch, take_in  # type: ignore[method-assign]


def _host(record: Record, bench: Bench, n: int, context: int, size: Size) -> None:
    """Host time a step: of one more step again, so that an order's beginning does not count."""
    short, long = size.pick((SHORT, LONG), (1, 3))
    found = []
    for _ in range(size.pick(REPEATS, 2)):
        totals = []
        for count in (short, long):
            spent = {"launch": 0.0, "take in": 0.0, "steps": 0.0}
            with _watched(spent):
                bench.decode([context] * n, count)
            totals.append(spent)
        extra = totals[1]["steps"] - totals[0]["steps"]
        found.append([(totals[1][part] - totals[0][part]) / extra for part in ("launch", "take in")])
    launch, take_in = (median(parts) for parts in zip(*found, strict=True))
    record.put("host", members=n, seconds=launch + take_in, launch_s=launch, take_in_s=take_in)


def _prefetch(record: Record, bench: Bench, n: int, context: int, size: Size) -> None:
    """An order alone, and while a copy from or to the host that outlasts it is under way."""
    device = bench.lane.ranks[0]
    tokens = bench.cluster.tiers[HOST].blocks * bench.cluster.layout.block_size
    lengths = [context] * n
    step = bench.decode(lengths)
    for source, target in ((HOST, device), (device, HOST)):
        copy = bench.copy(source, target, tokens)
        count = max(1, int(copy * 0.7 / step))
        alone, beside, copies = [], [], []
        for _ in range(size.pick(REPEATS, 2)):
            alone.append(bench.beside(lengths, count)[0])
            stepped, copied = bench.beside(lengths, count, source, target, tokens)
            beside.append(stepped)
            copies.append(copied)
        chunk = bench.executor.copier.host_chunk_bytes
        record.put(
            "prefetch", members=n, way="host->device" if source == HOST else "device->host", chunk_bytes=chunk,
            default=chunk == HOST_CHUNK_BYTES, steps=count, alone_s=median(alone), beside_s=median(beside),
            slower=median(beside) / median(alone) - 1, copy_alone_s=copy, copy_beside_s=median(copies),
        )  # fmt: skip
