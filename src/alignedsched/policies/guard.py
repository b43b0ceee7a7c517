"""The starvation guard: how long ago each length class gave a batch, and whose turn has come.

The pool's lengths are seen as 64 classes of 1,024 tokens. A class's clock starts when it is first seen with requests
and again whenever a batch is drawn from it; it is forgotten when the class is seen empty. A class whose clock is
``guard_s`` old is *overdue*, and the next batch is formed around the longest-waiting request of the class that has
been overdue longest (the hard form of the guard of arXiv 2605.23389: a bound instead of a weight).

Clocks are a plain dict from the class's number, as text, to seconds: at most 64 entries, ready for a snapshot.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from ..pool import FANOUT, class_of
from ..request import RequestId
from ..views import PoolReader
from .formation import ANCHOR_LEVEL, Drawn, class_span

CLASSES = FANOUT**ANCHOR_LEVEL
KEYS: Mapping[str, int] = {str(index): index for index in range(CLASSES)}
_PARTS = tuple(
    tuple((index, str(index)) for index in range(first, first + FANOUT)) for first in range(0, CLASSES, FANOUT)
)  # (index, key) of the classes of each class one level up
Clocks = Mapping[str, float]


def tick(clocks: Clocks, pool: PoolReader, now: float) -> dict[str, float]:
    """The clocks of the classes that have requests now. O(classes)."""
    count = pool.class_count
    return {
        key: clocks.get(key, now)
        for part, keys in enumerate(_PARTS)
        if count(ANCHOR_LEVEL - 1, part)  # most classes are empty, and their neighbours with them
        for index, key in keys
        if count(ANCHOR_LEVEL, index)
    }


def reset(clocks: dict[str, float], lengths: Iterable[int], now: float) -> None:
    """A batch of requests of these context lengths was drawn."""
    for length in lengths:
        clocks[str(class_of(length, ANCHOR_LEVEL))] = now


def overdue(clocks: Clocks, now: float, guard_s: float | None) -> int | None:
    """The class that has been overdue longest (ties: the shorter lengths), or None."""
    if guard_s is None or not clocks:
        return None
    since, index = min((since, int(key)) for key, since in clocks.items())
    return index if now >= since + guard_s else None


def next_due(clocks: Clocks, guard_s: float | None) -> float | None:
    """When the first class becomes overdue, in seconds on the caller's clock."""
    return None if guard_s is None or not clocks else min(clocks.values()) + guard_s


def drawn(clocks: Clocks) -> Drawn:
    """When a class of any level last gave a batch: its latest part's clock, or the clock of what it is part of."""

    def when(level: int, index: int) -> float:
        if level >= ANCHOR_LEVEL:
            return clocks.get(str(index // FANOUT ** (level - ANCHOR_LEVEL)), 0.0)
        parts = FANOUT ** (ANCHOR_LEVEL - level)
        return max(clocks.get(str(part), 0.0) for part in range(index * parts, (index + 1) * parts))

    return when


def longest_waiting(pool: PoolReader, index: int, usable: Callable[[RequestId], bool]) -> RequestId | None:
    """The usable request of a class that arrived first, or None.

    Walks the pool by arrival and the class by length at once, and stops where the first of the two gives the answer:
    O(min(requests that arrived earlier, requests of the class)).
    """
    low, end = class_span(ANCHOR_LEVEL, index)
    best: RequestId | None = None
    by_order = pool.by_order()
    for request in pool.by_length(low, end):
        if usable(request) and (best is None or pool.order(request) < pool.order(best)):
            best = request
        earliest = next(by_order, None)
        if earliest is not None and class_of(pool.length(earliest), ANCHOR_LEVEL) == index and usable(earliest):
            return earliest
    return best
