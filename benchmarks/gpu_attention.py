"""Decode attention against the copy bandwidth of the same run and the libraries'; uniform and skewed."""

from __future__ import annotations

from functools import partial

import numpy as np

from benchmarks.gpu_kernels import TOLERANCE, Batch, Heads, Make, balanced, kernels, reads, room
from benchmarks.gpu_timing import Record, Size, Timer

PAGES = (64, 16, 32)  # tokens of a page; the first one is the executor's on GPUs
PER_PROCESSOR = (1, 2, 3, 4)
BIG = 256 << 20  # bytes of KV from which the target holds


def batches(size: Size) -> dict[str, np.ndarray]:
    """Lengths by name; all but the last two read the same half million tokens."""
    if size.smoke:
        return {"uniform": np.array([40, 40]), "skewed": np.array([90, 8, 8])}
    rng = np.random.default_rng(0)
    pareto = 512 * (1 + rng.pareto(1.2, 128))
    return {
        "uniform 64 x 8192": np.full(64, 8192),
        "skewed 131072 + 63 x 6241": np.array([131_072] + [6241] * 63),
        "bimodal 8 x 32768 + 120 x 2048": np.array([32_768] * 8 + [2048] * 120),
        "many 256 x 2048": np.full(256, 2048),
        "skewed 131072 + 63 x 1024": np.array([131_072] + [1024] * 63),
        "pareto 128": np.clip(pareto, 64, 131_072).astype(np.int64),
        "small 64 x 1024": np.full(64, 1024),
    }


def attention(record: Record, size: Size) -> None:
    """Every batch with every kernel at the executor's page; then the project's kernel with other pages and grids."""
    timer = Timer(size)
    heads = size.pick(Heads(32, 8, 128), Heads(4, 2, 16))
    shapes = batches(size)
    memory = room(max(int((-(-lengths // 256) * 256).sum()) for lengths in shapes.values()), heads, size)
    pages = size.pick(PAGES, (16,))
    for name, make in kernels(size).items():  # one that has to be compiled for minutes comes last, and costs no other
        for label, lengths in shapes.items():
            batch = Batch(lengths, heads, pages[0], size, memory)
            _one(record, timer, "attention", name, label, batch, make)
    first, lengths = next(iter(shapes.items()))
    for page in pages[1:]:
        batch = Batch(lengths, heads, page, size, memory)
        _one(record, timer, "variant", "balanced", first, batch, balanced)
    for many in size.pick(PER_PROCESSOR, ()):
        batch = Batch(lengths, heads, pages[0], size, memory)
        name = f"balanced, {many} a processor"
        _one(record, timer, "variant", name, first, batch, partial(balanced, per_processor=many))


def _one(record: Record, timer: Timer, what: str, name: str, label: str, batch: Batch, make: Make) -> None:
    """Check what one kernel computes on one batch, and time it."""

    def measure() -> None:
        work, out = make(batch)
        work()
        # The library reads the same memory in another layout, and has checked itself.
        error = None if name == "library" else batch.error(out)
        if error is not None and not error < TOLERANCE:
            raise RuntimeError(f"results are off by {error}")
        seconds = timer.seconds(work)
        record.put(
            what, kernel=name, batch=label, page=batch.page, reads=reads(name, batch.page), kv_bytes=batch.bytes,
            seconds=seconds, bytes_per_s=batch.bytes / seconds, error=error, big=batch.bytes >= BIG,
        )  # fmt: skip

    record.attempt(f"{name}, {label}, pages of {batch.page}", measure)
