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


def test_a_run_goes_on_where_it_can_and_is_whole_where_it_fits() -> None:
    allocator = PageAllocator(10)
    first = allocator.take(3)
    assert allocator.take(2, after=first[-1]) == [3, 4]
    allocator.give([1])
    assert allocator.take(3) == [5, 6, 7], "not the hole at 1"
    assert allocator.take(1) == [1], "the shortest run that holds it"


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
