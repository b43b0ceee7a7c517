"""Page numbers of one pool: taken as long runs where there are any, given back and joined with their neighbours.

Pages hold all layers, so a run of pages is one contiguous stretch of memory, and one copy (FastSwitch, arXiv
2411.18424, found large groups 1.4 to 11 times cheaper to swap than single blocks).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence

from alignedsched.errors import ExecutorError


class PageAllocator:
    """Free pages as runs that are known by both their ends and by their length.

    Neighbours are found by the ends, in dicts; of runs of one length the first ones' places are in order, and so are
    the lengths that there are. Taking and giving a run is a few look-ups and insertions into short lists.
    """

    def __init__(self, pages: int) -> None:
        self.pages = pages
        self.free = pages
        self._taken = bytearray(pages)  # 1: somebody has it
        self._length: dict[int, int] = {}  # first page of a run -> its length
        self._first: dict[int, int] = {}  # the page behind a run -> its first
        self._places: dict[int, list[int]] = {}  # length -> first pages of such runs, in order
        self._lengths: list[int] = []  # in order
        if pages:
            self._add(0, pages)

    def take(self, count: int, after: int | None = None) -> list[int]:
        """``count`` pages; those right behind page ``after`` if they are free, else the shortest run that holds them.

        Raises ExecutorError if fewer are free; nothing is taken then.
        """
        self._check(count)
        behind = None if after is None else self._length.get(after + 1)
        taken = [] if after is None or behind is None else self._cut(after + 1, min(count, behind))
        return taken + self._search(count - len(taken))

    def take_next(self, after: Sequence[int]) -> list[int]:
        """One page for each of these: the one right behind it if that is free; the others are searched together.

        Raises ExecutorError if fewer are free; nothing is taken then.
        """
        self._check(len(after))
        starts = self._length
        taken = [self._cut(page + 1, 1)[0] if page + 1 in starts else -1 for page in after]
        found = iter(self._search(taken.count(-1)))
        return [next(found) if page < 0 else page for page in taken]

    def _check(self, count: int) -> None:
        if count > self.free:
            raise ExecutorError(f"{count} pages are wanted, {self.free} of {self.pages} are free")

    def _search(self, count: int) -> list[int]:
        """Pages wherever they are, in as few runs as can be."""
        found: list[int] = []
        while len(found) < count:
            wanted = count - len(found)
            at = bisect_left(self._lengths, wanted)  # the shortest that holds all, else the longest
            length = self._lengths[min(at, len(self._lengths) - 1)]
            found += self._cut(self._places[length][0], min(wanted, length))
        return found

    def _cut(self, first: int, count: int) -> list[int]:
        length = self._drop(first)
        if length > count:
            self._add(first + count, length - count)
        self._taken[first : first + count] = b"\1" * count
        self.free -= count
        return list(range(first, first + count))

    def _add(self, first: int, length: int) -> None:
        self._length[first] = length
        self._first[first + length] = first
        places = self._places.get(length)
        if places is None:
            self._places[length] = [first]
            insort(self._lengths, length)
        else:
            insort(places, first)

    def _drop(self, first: int) -> int:
        length = self._length.pop(first)
        del self._first[first + length]
        places = self._places[length]
        if len(places) > 1:
            del places[bisect_left(places, first)]
        else:
            del self._places[length]
            del self._lengths[bisect_left(self._lengths, length)]
        return length

    def give(self, pages: Iterable[int]) -> None:
        """Pages are free again. Raises ExecutorError for one that is free already or does not exist."""
        first, length = 0, 0
        for page in pages:
            if page == first + length:
                length += 1
                continue
            if length:
                self._give(first, length)
            first, length = page, 1
        if length:
            self._give(first, length)

    def _give(self, first: int, length: int) -> None:
        behind = first + length
        wrong = first if first < 0 else self._taken.find(0, first, behind)  # the first that is not in anybody's hands
        if wrong < 0 and behind > self.pages:
            wrong = max(first, self.pages)
        if first < 0 or wrong >= 0:
            raise ExecutorError(f"page {wrong} of {self.pages} is given back, but nobody has it")
        self._taken[first:behind] = bytes(length)
        self.free += length
        if behind in self._length:
            length += self._drop(behind)
        before = self._first.get(first)
        if before is not None:
            length += self._drop(before)
            first = before
        self._add(first, length)


def runs(*columns: list[int]) -> list[tuple[int, ...]]:
    """Cut parallel page lists where any of them does not go on: (first of each, ..., length).

    One run is one piece of memory in every column. O(pages).
    """
    if not columns or not columns[0]:
        return []
    starts = [tuple(column[0] for column in columns)]
    lengths = [1]
    for here in zip(*(column[1:] for column in columns), strict=True):
        if all(page == first + lengths[-1] for page, first in zip(here, starts[-1], strict=True)):
            lengths[-1] += 1
        else:
            starts.append(here)
            lengths.append(1)
    return [(*start, length) for start, length in zip(starts, lengths, strict=True)]
