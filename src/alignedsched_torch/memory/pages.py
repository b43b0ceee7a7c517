"""Page numbers of one pool: taken as long runs where there are any, given back and joined with their neighbours.

Pages hold all layers, so a run of pages is one contiguous stretch of memory, and one copy (FastSwitch, arXiv
2411.18424, found large groups 1.4 to 11 times cheaper to swap than single blocks).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sortedcontainers import SortedDict, SortedList

from alignedsched.errors import ExecutorError


class PageAllocator:
    """Free pages as runs, by their first page and by their length. Taking and giving are O(runs touched · log runs)."""

    def __init__(self, pages: int) -> None:
        self.pages = pages
        self._runs: SortedDict[int, int] = SortedDict()  # first page -> length
        self._lengths: SortedList[tuple[int, int]] = SortedList()  # (length, first page)
        self.free = pages
        if pages:
            self._add(0, pages)

    def take(self, count: int, after: int | None = None) -> list[int]:
        """``count`` pages; those right behind page ``after`` if they are free, else the shortest run that holds them.

        Raises ExecutorError if fewer are free; nothing is taken then.
        """
        self._check(count)
        behind = None if after is None else self._runs.get(after + 1)
        taken = [] if after is None or behind is None else self._cut(after + 1, min(count, behind))
        return taken + self._search(count - len(taken))

    def take_next(self, after: Sequence[int]) -> list[int]:
        """One page for each of these: the one right behind it if that is free; the others are searched together.

        Raises ExecutorError if fewer are free; nothing is taken then.
        """
        self._check(len(after))
        taken = [self._cut(page + 1, 1)[0] if page + 1 in self._runs else -1 for page in after]
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
            at = self._lengths.bisect_left((wanted, -1))  # the shortest that holds all, the first of equals
            if at == len(self._lengths):
                at = self._lengths.bisect_left((self._lengths[-1][0], -1))  # else the longest
            length, first = self._lengths[at]
            found += self._cut(first, min(wanted, length))
        return found

    def _cut(self, first: int, count: int) -> list[int]:
        length = self._drop(first)
        if length > count:
            self._add(first + count, length - count)
        self.free -= count
        return list(range(first, first + count))

    def _add(self, first: int, length: int) -> None:
        self._runs[first] = length
        self._lengths.add((length, first))

    def _drop(self, first: int) -> int:
        length: int = self._runs.pop(first)
        self._lengths.remove((length, first))
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
        at = self._runs.bisect_right(first)
        before = self._runs.peekitem(at - 1) if at else None
        after = self._runs.peekitem(at) if at < len(self._runs) else None
        wrong = None  # the first of them that is not in anybody's hands
        if first < 0 or (before is not None and first < before[0] + before[1]):
            wrong = first
        elif after is not None and after[0] < first + length:
            wrong = after[0]
        elif first + length > self.pages:
            wrong = max(first, self.pages)
        if wrong is not None:
            raise ExecutorError(f"page {wrong} of {self.pages} is given back, but nobody has it")
        self.free += length
        if after is not None and after[0] == first + length:
            length += self._drop(after[0])
        if before is not None and before[0] + before[1] == first:
            first, length = before[0], length + self._drop(before[0])
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
