"""What imbalance really costs on this GPU: attention against batch composition, fitted to the library's surfaces.

One layer's decode attention over members, mean length, longest / mean and KV heads, for each kernel. To the points of
one kernel and one number of KV heads the form of `docs/costs.md` is fitted,

    a + b·n + max(d·total, s·longest where n is at least the gate),

with the gate and s free: no gate and no s is ``balanced``, a gate of one member ``unsplit``, anything else ``gated``.
The *bubble* of a point is the share of its time that the same tokens, shared evenly, would not have taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

import numpy as np
import torch
from attrs import evolve, frozen

from alignedsched_torch.calibrate.fits import least_squares
from alignedsched_torch.calibrate.shapes import WIDEST, Cell, lengths
from benchmarks.gpu_kernels import Batch, Heads, kernels, reads, room
from benchmarks.gpu_timing import Record, Size, Timer

KV_HEADS = (8, 4, 2, 1)
GROUP = 4  # query heads a KV head, as Llama-3.1-8B's
MEMBERS = (1, 2, 4, 8, 16, 24, 32, 64, 128, 256)
MEANS = (1024, 4096, 16_384)
STRETCHES = (1.0, 4.0, 16.0)
LONGEST = 131_072
TOKENS = 2 << 20  # of a batch, at most
PAGE = 64
BETTER = 0.8  # of the error: what a gate must come to, to be believed
RATIOS = (4.0, 16.0, 64.0, 256.0)  # guesses of s / d: about processors / KV heads
ROUNDS = 8


@frozen
class Point:
    """One measurement: seconds of one layer."""

    n: int
    total: int
    longest: int
    stretch: float
    seconds: float


@frozen
class Surface:
    """``a + b·n + max(d·total, s·longest from gate members on)`` seconds; ``gate`` None: s never binds."""

    a: float
    b: float
    d: float
    s: float = 0.0
    gate: int | None = None

    def seconds(self, n: int, total: float, longest: float) -> float:
        """Of one layer."""
        tail = self.s * longest if self.gate is not None and n >= self.gate else 0.0
        return self.a + self.b * n + max(self.d * total, tail)

    def ruled(self, p: Point) -> bool:
        """Whether the longest member decides what a batch takes."""
        return self.gate is not None and p.n >= self.gate and self.s * p.longest > self.d * p.total

    @property
    def name(self) -> str:
        """As `docs/costs.md` calls it."""
        return "balanced" if self.gate is None else "unsplit" if self.gate <= 1 else "gated"


def surface(record: Record, size: Size) -> None:
    """Measure and fit, the most KV heads first: what a cut section has is the case that is asked for most."""
    timer = Timer(size)
    for kv in size.pick(KV_HEADS, (2, 1)):
        heads = Heads(kv * GROUP, kv, size.pick(128, 16))
        points = measured(record, timer, heads, size)
        for kernel, found in points.items():
            if found:
                record.attempt(f"fit of {kernel}, {kv} KV heads", lambda kernel=kernel, kv=kv, found=found: _fitted(  # type: ignore[misc]
                    record, size, kernel, kv, found))  # fmt: skip


def cells(size: Size) -> list[Cell]:
    """The compositions: members, mean, longest / mean."""
    if size.smoke:
        return [Cell(n, mean, s, False) for n in (1, 3) for mean in (16, 48) for s in (1.0, 2.0) if s == 1 or n > 2]
    return [
        Cell(n, mean, stretch, False)
        for n in MEMBERS for mean in MEANS for stretch in STRETCHES
        if n * mean <= TOKENS and mean * stretch <= LONGEST and (stretch == 1 or stretch <= WIDEST * n)
    ]  # fmt: skip


def measured(record: Record, timer: Timer, heads: Heads, size: Size) -> dict[str, list[Point]]:
    """Points of every kernel; all kernels see the same batches, the longest first."""
    names = {name: make for name, make in kernels(size).items() if name != "flashinfer"}  # it plans as ``balanced``
    found: dict[str, list[Point]] = {name: [] for name in names}
    page, every = size.pick(PAGE, 16), cells(size)
    memory = room(max(cell.n * (cell.mean + 256) for cell in every), heads, size)
    rng = np.random.default_rng(0)
    for cell in every:
        drawn = np.array(sorted(lengths(cell, rng), reverse=True), dtype=np.int64)
        batch = Batch(drawn, heads, page, size, memory)
        for name, make in names.items():

            def one(name: str = name, make: Any = make, batch: Batch = batch, cell: Cell = cell) -> None:
                work, _ = make(batch)
                seconds = timer.seconds(work, repeats=7, warm=2)
                found[name].append(
                    Point(cell.n, int(batch.lengths.sum()), int(batch.lengths[0]), cell.stretch, seconds)
                )

            record.attempt(f"{name}, {cell}, {heads.kv} KV heads", one)
    return found


def _fitted(record: Record, size: Size, kernel: str, kv: int, points: Sequence[Point]) -> None:
    """A kernel's surface, its errors, and its bubbles by members and stretch."""
    fit = fitted(points)
    off = [abs(fit.seconds(p.n, p.total, p.longest) / p.seconds - 1) for p in points]
    even = evolve(fit, gate=None)
    processors = 1 if size.smoke else torch.cuda.get_device_properties(size.device).multi_processor_count
    record.put(
        "surface", kernel=kernel, kv_heads=kv, reads=reads(kernel, size.pick(PAGE, 16)), surface=fit.name,
        a=fit.a, b=fit.b, d=fit.d, s=fit.s, gate=fit.gate,
        gate_blocks_per_processor=None if fit.gate is None else fit.gate * kv / processors,
        s_against_fair_share=fit.s / (fit.d * processors / kv) if fit.d and fit.s else None,
        error_p50=float(np.median(off)), error_p90=float(np.quantile(off, 0.9)),
        error_p50_balanced=median(abs(even.seconds(p.n, p.total, p.longest) / p.seconds - 1) for p in points),
        points=len(points),
    )  # fmt: skip
    level = {(p.n, round(p.total / p.n / 16)): p.seconds for p in points if p.stretch == 1}
    for p in points:
        record.put(
            "composition", kernel=kernel, kv_heads=kv, members=p.n, mean=round(p.total / p.n), longest=p.longest,
            seconds=p.seconds, bubble=_bubble(p, level),
        )  # fmt: skip


def _bubble(p: Point, level: dict[tuple[int, int], float]) -> float | None:
    """The share of the point's time that the same tokens in equal lengths do not take; None: not measured."""
    even = level.get((p.n, round(p.total / p.n / 16)))
    return None if even is None else max(0.0, 1 - even / p.seconds)


def fitted(points: Sequence[Point]) -> Surface:
    """The surface that explains the points best; of a simpler one, where another explains hardly more.

    A gate is tried at each measured number of members. O(members · points).
    """
    best = _solved(points, None)
    for gate in sorted({p.n for p in points}):
        tried = _solved(points, gate)
        if _misfit(tried, points) < BETTER * _misfit(best, points):
            best = tried
    return best


def _solved(points: Sequence[Point], gate: int | None) -> Surface:
    """Least squares for one gate. Which points the longest rules is guessed, solved for, and guessed again."""
    found = []
    for ratio in RATIOS if gate is not None else RATIOS[:1]:
        surface = Surface(0.0, 0.0, 1.0, ratio, gate)
        for _ in range(ROUNDS):
            ruled = [surface.ruled(p) for p in points]
            surface = _least(points, ruled, gate)
            if ruled == [surface.ruled(p) for p in points]:
                break
        found.append(surface)
    return min(found, key=lambda surface: _misfit(surface, points))


def _least(points: Sequence[Point], ruled: Sequence[bool], gate: int | None) -> Surface:
    """The surface that explains the points best if the longest rules these; without a gate where it rules none."""
    features = [
        [1.0, p.n, 0.0 if tail else p.total, p.longest if tail else 0.0] for p, tail in zip(points, ruled, strict=True)
    ]
    scale = [p.seconds for p in points]
    a, b, d, s = least_squares(features, scale, scale).tolist()
    return Surface(a, b, d, s, gate if any(ruled) else None)


def _misfit(surface: Surface, points: Sequence[Point]) -> float:
    """Mean |error of the logarithm|: no single point rules it."""
    ratios = [surface.seconds(p.n, p.total, p.longest) / p.seconds for p in points]
    return float(np.mean(np.abs(np.log(np.maximum(ratios, 1e-9)))))
