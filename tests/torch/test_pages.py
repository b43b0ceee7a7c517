"""Pages are never given twice, never lost, and come as long runs where there are any."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignedsched.errors import ExecutorError
from alignedsched_torch.memory.pages import PageAllocator, runs


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 9), st.integers(0, 30)), max_size=60), st.integers(0, 40))
def test_pages_are_neither_lost_nor_given_twice(actions: list[tuple[bool, int, int]], pages: int) -> None:
    allocator = PageAllocator(pages)
    held: list[list[int]] = []
    for take, count, which in actions:
        if take and count <= allocator.free:
            held.append(
                allocator.take(count, after=held[which % len(held)][-1] if held and held[which % len(held)] else None)
            )
        elif held and not take:
            allocator.give(held.pop(which % len(held)))
        owned = [page for some in held for page in some]
        assert len(set(owned)) == len(owned)
        assert allocator.free == pages - len(owned)
    for some in held:
        allocator.give(some)
    if pages:
        assert allocator.take(pages) == list(range(pages)), "all neighbours have been joined"


class Plainly:
    """The same allocator by its definition: a set of free pages, looked through for everything."""

    def __init__(self, pages: int) -> None:
        self.free = set(range(pages))

    def take(self, count: int, after: int | None = None) -> list[int]:
        taken: list[int] = []
        while after is not None and len(taken) < count and after + 1 in self.free and after + 1 not in self._inner():
            taken += self._take(range(after + 1, after + 1 + min(count, self._length(after + 1))))
        while len(taken) < count:
            wanted = count - len(taken)
            starts = sorted((self._length(page), page) for page in self.free - self._inner())
            fits = [(length, page) for length, page in starts if length >= wanted]
            length, page = fits[0] if fits else next(one for one in starts if one[0] == starts[-1][0])
            taken += self._take(range(page, page + min(wanted, length)))
        return taken

    def _take(self, pages: range) -> range:
        self.free -= set(pages)
        return pages

    def _inner(self) -> set[int]:
        """Free pages that are not the first of their run."""
        return {page for page in self.free if page - 1 in self.free}

    def _length(self, page: int) -> int:
        return next(length for length in range(len(self.free) + 1) if page + length not in self.free)


@given(
    st.lists(st.tuples(st.booleans(), st.integers(1, 6), st.integers(0, 30)), min_size=20, max_size=60),
    st.integers(20, 60),
)
def test_the_pages_are_those_of_the_definition(actions: list[tuple[bool, int, int]], pages: int) -> None:
    allocator, plainly = PageAllocator(pages), Plainly(pages)
    held: list[list[int]] = []
    for take, count, which in actions:
        if take and count <= allocator.free:
            after = held[which % len(held)][-1] if held and which % 3 else None
            taken = allocator.take(count, after)
            assert taken == plainly.take(count, after)
            held.append(taken)
        elif held and not take:
            given_back = held.pop(which % len(held))
            allocator.give(given_back)
            plainly.free |= set(given_back)
        assert allocator.free == len(plainly.free)


def test_the_next_page_is_the_one_behind_where_a_run_begins_there() -> None:
    allocator = PageAllocator(8)
    first, second = allocator.take(2), allocator.take(3)
    allocator.give(second[1:])
    assert allocator.take_next([first[-1], second[0]]) == [4, 3], "2 is taken, 3 is free and behind"


def test_a_run_goes_on_where_it_can_and_is_whole_where_it_fits() -> None:
    allocator = PageAllocator(10)
    first = allocator.take(3)
    assert allocator.take(2, after=first[-1]) == [3, 4]
    allocator.give([1])
    assert allocator.take(3) == [5, 6, 7], "not the hole at 1"
    assert allocator.take(1) == [1], "the shortest run that holds it"


@given(st.lists(st.integers(1, 4), min_size=1, max_size=6), st.integers(0, 12))
def test_many_get_their_next_page_at_once_or_nobody_does(counts: list[int], more: int) -> None:
    allocator = PageAllocator(sum(counts) + 3)
    held = [allocator.take(count) for count in counts]
    allocator.give(held[0][1:])
    del held[0][1:]
    for _ in range(more):
        free = allocator.free
        lasts = [pages[-1] for pages in held]
        if free < len(held):
            with pytest.raises(ExecutorError, match=f"{len(held)} pages are wanted, {free} of"):
                allocator.take_next(lasts)
            assert allocator.free == free
            return
        for pages, page in zip(held, allocator.take_next(lasts), strict=True):
            pages.append(page)
        owned = [page for pages in held for page in pages]
        assert len(set(owned)) == len(owned) == allocator.pages - allocator.free


def test_what_is_not_there_is_neither_taken_nor_given() -> None:
    allocator = PageAllocator(2)
    with pytest.raises(ExecutorError, match="3 pages are wanted, 2 of 2"):
        allocator.take(3)
    assert allocator.free == 2
    for page in (0, 2, -1):
        with pytest.raises(ExecutorError, match="nobody has it"):
            allocator.give([page])


@given(st.lists(st.integers(0, 5), max_size=30), st.lists(st.integers(0, 5), max_size=30))
def test_runs_spell_out_the_columns(a: list[int], b: list[int]) -> None:
    size = min(len(a), len(b))
    a, b = a[:size], b[:size]
    spelled = [(x + i, y + i) for x, y, length in runs(a, b) for i in range(length)]
    assert spelled == list(zip(a, b, strict=True))
