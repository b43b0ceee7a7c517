"""Which pooled requests make a good batch: a search through the pool's length classes for the densest one that fits.

The search is AlignedServe's "density first search" (arXiv 2605.23389) over a 4-ary interval tree of context lengths,
as far as it is public: a class with few enough blocks and enough requests is taken whole; one with too many blocks is
left for its densest child; one with too few requests is widened to its neighbouring siblings. The tree itself is the
pool's class aggregates. What the paper leaves open is settled here:

* density is requests per class of equal width; ties go to the class whose last batch is longest ago, then to the
  shorter lengths;
* blocks count one further block a member, so that a batch does not run out in its first steps;
* ``k_min`` is soft: with long contexts ``k_min`` and ``max_blocks`` exclude each other, and then what fits is taken;
* of the narrowest class, when even that is too much, a window by length of as many requests as fit is taken, and of
  the windows of that size one with the least spread; and one request alone may exceed ``max_blocks``, or it could
  never run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from attrs import field, frozen

from ..pool import FANOUT, LEVELS, LONGEST, class_of, class_width
from ..request import RequestId
from ..views import LaneView, PoolReader
from .options import whole

Drawn = Callable[[int, int], float]  # (level, class) -> when a batch was last drawn from it
ANCHOR_LEVEL = 3  # 64 classes of 1,024 tokens: where a search around one request starts


def never_drawn(level: int, index: int) -> float:
    """No batch was ever drawn from any class."""
    return 0.0


class Formation(Protocol):
    """Chooses the requests of one batch."""

    def form(
        self,
        view: LaneView,
        pool: PoolReader,
        max_blocks: int,
        max_members: int,
        *,
        anchor: RequestId | None = None,
        drawn: Drawn = never_drawn,
    ) -> list[RequestId]:
        """At most ``max_members`` pooled requests for about ``max_blocks`` KV blocks; not empty unless the pool is.

        ``anchor``, a pooled request, is in the batch, and first. ``drawn`` tells when a class last gave a batch.
        """
        ...


def class_span(level: int, index: int) -> tuple[int, int | None]:
    """Lengths low <= length < high of a class; the last one of a level has no end."""
    width = class_width(level)
    high = (index + 1) * width
    return index * width + 1, None if high == LONGEST else high + 1


@frozen
class DensestClass:
    """The densest length class that fits. O(levels · fan-out + requests taken) a batch.

    Only of lengths beyond 65,520 tokens, which share one class, all are looked at. ``headroom`` is the blocks counted
    for each member beyond those of its next step. Raises ConfigError naming the field for a value out of range.
    """

    k_min: int = field(default=36, validator=whole(1))  # arXiv 2605.23389, evaluation: 36 requests
    headroom: int = field(default=1, validator=whole(0))

    def form(
        self,
        view: LaneView,
        pool: PoolReader,
        max_blocks: int,
        max_members: int,
        *,
        anchor: RequestId | None = None,
        drawn: Drawn = never_drawn,
    ) -> list[RequestId]:
        """See Formation."""
        if not len(pool) or max_members < 1:
            return []
        search = _Search(pool, max_blocks, max_members, self.headroom, drawn)
        length = 0 if anchor is None else pool.length(anchor)
        level, index = (0, 0) if anchor is None else (ANCHOR_LEVEL, class_of(length, ANCHOR_LEVEL))
        while not search.fits(search.count(level, index), search.need(level, index)):
            if level == LEVELS:
                return search.window(index) if anchor is None else search.around(anchor)
            level += 1
            index = search.densest(level, index) if anchor is None else class_of(length, level)
        batch = search.widened(level, index, self.k_min)
        if anchor is not None:
            batch.remove(anchor)
            batch.insert(0, anchor)
        return batch


@frozen
class _Search:
    """One search: the pool, and what a batch may take."""

    pool: PoolReader
    max_blocks: int
    max_members: int
    headroom: int
    drawn: Drawn

    def count(self, level: int, index: int) -> int:
        return self.pool.class_count(level, index)

    def need(self, level: int, index: int) -> int:
        """Blocks of a whole class, headroom included."""
        return self.pool.class_blocks(level, index) + self.headroom * self.count(level, index)

    def need_of(self, request: RequestId) -> int:
        return self.pool.blocks(request) + self.headroom

    def fits(self, count: int, blocks: int) -> bool:
        return count <= self.max_members and blocks <= self.max_blocks

    def density(self, level: int, index: int) -> tuple[int, float, int]:
        """Greater is better: more requests, last batch longer ago, shorter lengths."""
        return self.count(level, index), -self.drawn(level, index), -index

    def densest(self, level: int, parent: int) -> int:
        """The densest child of a class of the level above."""
        return max(range(FANOUT * parent, FANOUT * (parent + 1)), key=lambda i: self.density(level, i))

    def widened(self, level: int, index: int, k_min: int) -> list[RequestId]:
        """A class that fits, with neighbouring siblings for as long as it has fewer than ``k_min`` requests.

        The denser neighbour comes first. Of one that does not fit whole, the requests nearest to the class are taken.
        """
        low = high = index
        first = index - index % FANOUT
        last = first + FANOUT - 1 if level else first
        count, blocks = self.count(level, index), self.need(level, index)
        rest: list[RequestId] = []
        while count < k_min:
            sides = [i for i in (low - 1, high + 1) if first <= i <= last]
            if not sides:
                break
            side = max(sides, key=lambda i: self.density(level, i))
            more, need = self.count(level, side), self.need(level, side)
            if not self.fits(count + more, blocks + need):
                most = min(k_min, self.max_members) - count
                rest = self._nearest(level, side, side < low, most, self.max_blocks - blocks)
                break
            count, blocks = count + more, blocks + need
            low, high = min(low, side), max(high, side)
        return [*self.pool.by_length(class_span(level, low)[0], class_span(level, high)[1]), *rest]

    def _nearest(self, level: int, side: int, below: bool, most: int, blocks: int) -> list[RequestId]:
        """Up to ``most`` requests of a sibling within ``blocks`` blocks, nearest to its neighbour above or below."""
        low, end = class_span(level, side)
        taken: list[RequestId] = []
        order = self.pool.nearest(end - 1, end - 1) if below and end is not None else self.pool.by_length(low, end)
        for request in order:
            length = self.pool.length(request)
            if end is not None and length >= end:
                continue  # taken already, as a member of the class itself
            blocks -= self.need_of(request)
            if length < low or blocks < 0 or len(taken) == most:
                break
            taken.append(request)
        return taken

    def window(self, leaf: int) -> list[RequestId]:
        """Of a narrowest class: as many requests as fit, spread as little as possible; at least one.

        Blocks grow with length, so the shortest requests are the most that fit. Within 16 tokens their spread is
        nothing; only the class without end is searched for the least spread.
        """
        low, end = class_span(LEVELS, leaf)
        taken: list[RequestId] = []
        blocks = 0
        for request in self.pool.by_length(low, end):
            blocks += self.need_of(request)
            if taken and not self.fits(len(taken) + 1, blocks):
                break
            taken.append(request)
        return taken if end is not None else self._tightest(list(self.pool.by_length(low)), len(taken))

    def _tightest(self, requests: list[RequestId], size: int) -> list[RequestId]:
        """The ``size`` neighbours of a list by length that fit and have the least spread, the shortest of such."""
        lengths = [self.pool.length(request) for request in requests]
        needs = [self.need_of(request) for request in requests]
        blocks, best = sum(needs[:size]), 0
        for start in range(1, len(requests) - size + 1):
            blocks += needs[start + size - 1] - needs[start - 1]
            if blocks > self.max_blocks:
                break
            if lengths[start + size - 1] - lengths[start] < lengths[best + size - 1] - lengths[best]:
                best = start
        return requests[best : best + size]

    def around(self, anchor: RequestId) -> list[RequestId]:
        """The anchor, and the requests nearest to it in length as long as they fit."""
        length = self.pool.length(anchor)
        taken = [anchor]
        blocks = self.need_of(anchor)
        for request in self.pool.nearest(length, length):
            if request != anchor:
                blocks += self.need_of(request)
                if not self.fits(len(taken) + 1, blocks):
                    break
                taken.append(request)
        return taken
