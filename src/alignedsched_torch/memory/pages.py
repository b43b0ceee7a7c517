"""Page numbers of one pool: taken as long runs where there are any, given back and joined with their neighbours.

Pages hold all layers, so a run of pages is one contiguous stretch of memory, and one copy (FastSwitch, arXiv
2411.18424, found large groups 1.4 to 11 times cheaper to swap than single blocks).
"""

from __future__ import annotations

from collections.abc import Iterable

from sortedcontainers import SortedDict

from alignedsched.errors import ExecutorError


class PageAllocator:
    """Free pages as runs by their first page. Taking and giving are O(runs touched · log runs)."""

    def __init__(self, pages: int) -> None:
        self.pages = pages
        self._runs: SortedDict[int, int] = SortedDict({0: pages} if pages else {})  # first page -> length
        self.free = pages

    def take(self, count: int, after: int | None = None) -> list[int]:
        """``count`` pages; those right behind page ``after`` if they are free, else the shortest run that holds them.

        Raises ExecutorError if fewer are free; nothing is taken then.
        """
        if count > self.free:
            raise ExecutorError(f"{count} pages are wanted, {self.free} of {self.pages} are free")
        taken: list[int] = []
        if after is not None and after + 1 in self._runs:
            taken += self._cut(after + 1, min(count, self._runs[after + 1]))
        while len(taken) < count:
            wanted = count - len(taken)
            first = self._best(wanted)
            taken += self._cut(first, min(wanted, self._runs[first]))
        return taken

    def _best(self, count: int) -> int:
        """The shortest run of at least ``count`` pages, else the longest; the lowest of equals."""
        fitting = [(length, first) for first, length in self._runs.items() if length >= count]
        if fitting:
            return min(fitting)[1]
        return max(self._runs.items(), key=lambda run: (run[1], -run[0]))[0]

    def _cut(self, first: int, count: int) -> list[int]:
        length = self._runs.pop(first)
        if length > count:
            self._runs[first + count] = length - count
        self.free -= count
        return list(range(first, first + count))

    def give(self, pages: Iterable[int]) -> None:
        """Pages are free again. Raises ExecutorError for one that is free already or does not exist."""
        for page in pages:
            self._give(page)

    def _give(self, page: int) -> None:
        at = self._runs.bisect_right(page)
        before = self._runs.peekitem(at - 1) if at else None
        after = self._runs.peekitem(at) if at < len(self._runs) else None
        if not 0 <= page < self.pages or (before is not None and page < before[0] + before[1]):
            raise ExecutorError(f"page {page} of {self.pages} is given back, but nobody has it")
        first, length = page, 1
        if after is not None and after[0] == page + 1:
            length += after[1]
            del self._runs[after[0]]
        if before is not None and before[0] + before[1] == page:
            first, length = before[0], before[1] + length
        self._runs[first] = length
        self.free += 1


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
