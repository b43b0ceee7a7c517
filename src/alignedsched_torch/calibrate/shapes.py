"""Which batches are measured: a grid of (members, mean length, longest / mean), and others that no fit sees.

A cell of the grid says nothing about the lengths between shortest and longest. Each repetition therefore draws other
lengths with the same sum and longest, so that what the lengths in between cost shows as spread and not as bias.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from attrs import frozen

LEAST = 64  # tokens: the shortest mean length of the grid
STRETCHES = (1.0, 2.0, 4.0, 8.0, 16.0)
WIDEST = 0.8  # of the members: with longest / mean = n the others would have no length at all
SLACK = 16  # tokens each member may grow by while it is measured
Rng = np.random.Generator


@frozen
class Limits:
    """What a batch may hold: members, tokens of one, tokens of all in whole pages."""

    members: int
    positions: int
    kv_tokens: int
    page_size: int

    def mean(self, n: int) -> int:
        """The longest mean length of n members that all fit."""
        return min(self.positions, self.kv_tokens // n - self.page_size) - SLACK

    def fits(self, lengths: list[int]) -> bool:
        pages = sum(-(-(length + SLACK) // self.page_size) for length in lengths)
        return pages * self.page_size <= self.kv_tokens and max(lengths) + SLACK <= self.positions


@frozen
class Cell:
    """One point of the grid; ``fine``: left out where time is short."""

    n: int
    mean: int
    stretch: float
    fine: bool

    @property
    def longest(self) -> int:
        return max(1, round(self.mean * self.stretch))


def grid(limits: Limits) -> list[Cell]:
    """Members by powers of two, mean lengths by powers of two (every other one fine), stretches as far as they go."""
    cells = []
    for n in _doubling(1, limits.members):
        top = limits.mean(n)
        means = _doubling(LEAST, top) if top >= LEAST else [max(1, top)]
        for number, mean in enumerate(means):
            fine = number % 2 == 1 and number < len(means) - 1
            for stretch in stretches(n):
                cell = Cell(n, mean, stretch, fine)
                if cell.longest + SLACK <= limits.positions:
                    cells.append(cell)
    return cells


def stretches(n: int) -> list[float]:
    """What longest / mean may be among n members: doubling, the last one as far as the lengths allow."""
    widest = min(WIDEST * n, STRETCHES[-1])
    return [s for s in STRETCHES if s == 1 or s < widest / 1.2] + ([widest] if widest > 1.2 else [])


def _doubling(first: int, last: int) -> list[int]:
    values = [first]
    while values[-1] * 2 < last * 0.9:
        values.append(values[-1] * 2)
    return [*values, last] if last > values[-1] else values


def lengths(cell: Cell, rng: Rng) -> list[int]:
    """Lengths of a batch in this cell: one draw, of one kind or another."""
    n, longest = cell.n, cell.longest
    if n == 1 or cell.stretch == 1:
        return [cell.mean] * n
    left = n * cell.mean - longest  # tokens of all others
    shares = _some_long(n - 1, left / longest, rng) if rng.random() < 0.5 else _spread(n - 1, left / longest, rng)
    return [longest, *np.maximum(1, np.rint(shares * longest)).astype(int).tolist()]


def _some_long(n: int, total: float, rng: Rng) -> np.ndarray:
    """``n`` shares in (0, 1] with this sum: a few of 1, all others equal."""
    long = int(rng.integers(0, max(1, int(min(total * 0.8, n - 1)) + 1)))
    rest = (total - long) / (n - long)
    return np.concatenate((np.ones(long), np.full(n - long, rest)))


def _spread(n: int, total: float, rng: Rng) -> np.ndarray:
    """``n`` shares in (0, 1] with this sum: powers of uniform numbers, the exponent found by bisection."""
    base = np.log(1.0 - rng.random(n))  # of numbers in (0, 1]
    low, high = 0.0, 1e9
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if np.exp(middle * base).sum() > total else (low, middle)
    return np.asarray(np.exp(high * base))


def unseen(limits: Limits, rng: Rng) -> Iterator[list[int]]:
    """Batches of other kinds than the grid's, without end: uniform, log-normal and two-humped lengths."""
    while True:
        n = round(float(np.exp(rng.uniform(0, np.log(limits.members)))))
        top = limits.positions - SLACK
        middle = np.exp(rng.uniform(np.log(LEAST), np.log(max(LEAST + 1, min(top, limits.mean(n))))))
        kind = rng.integers(3)
        if kind == 0:
            drawn = rng.uniform(0.2, 1.8, n) * middle
        elif kind == 1:
            drawn = rng.lognormal(0.0, 1.0, n) * middle
        else:
            drawn = np.where(rng.random(n) < 0.8, 0.4, 3.4) * middle * rng.uniform(0.8, 1.25, n)
        found = np.clip(np.rint(drawn), LEAST // 4, top).astype(int).tolist()
        if limits.fits(found):
            yield found


def chunks(limits: Limits, max_tokens: int) -> list[tuple[int, int]]:
    """Prefill chunks (start, end) of the grid: sizes by powers of four, behind nothing, and behind more and more."""
    sizes = [size for size in (16 * 4**k for k in range(8)) if size < max_tokens * 0.7]
    room = min(limits.positions, limits.kv_tokens) - SLACK
    sizes = [*sizes, min(max_tokens, room)]
    starts = [0, *(256 * 4**k for k in range(8))]
    return [(start, start + size) for size in sizes for start in starts if start + size <= room]


def unseen_chunk(limits: Limits, max_tokens: int, rng: Rng) -> tuple[int, int]:
    """A prefill chunk as a scheduler may cut one."""
    room = min(limits.positions, limits.kv_tokens // 2) - SLACK
    size = int(np.exp(rng.uniform(np.log(16), np.log(min(max_tokens, room)))))
    start = int(rng.integers(0, room - size + 1)) if rng.random() < 0.5 else 0
    return start, start + size
