"""The pool's orders, class aggregates and nearest-first walks equal brute force over a plain list."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignedsched.errors import InvariantError
from alignedsched.pool import FANOUT, LEVELS, LONGEST, Pool, class_of, class_width

Entries = dict[str, tuple[int, int, int]]  # id -> (length, order, blocks)

# Lengths crowd around class edges and beyond the last class, where off-by-one errors live.
edges = st.sampled_from((1, 15, 16, 17, 32, 33, 64, 65, 1024, 1025, LONGEST - 1, LONGEST, LONGEST + 1, 200_000))
lengths = st.one_of(edges, st.integers(1, 300), st.integers(1, 100_000))
moves = st.lists(st.tuples(st.booleans(), st.integers(0, 25), lengths, st.integers(0, 500)), max_size=60)
near = st.integers(1, 24)  # few lengths, so that bounds are met and distances tie
near_moves = st.lists(st.tuples(st.sampled_from((True, True, False)), st.integers(0, 25), near, near), max_size=60)
Moves = list[tuple[bool, int, int, int]]


def play(history: Moves) -> tuple[Pool, Entries]:
    """The pool and a plain dict after some additions and removals; numbers are ids and, shuffled, orders."""
    pool, entries = Pool(), Entries()
    for add, number, length, blocks in history:
        name = f"r{number}"
        order = (7 * number + 3) % 26
        if add and name not in entries:
            entries[name] = (length, order, blocks)
            pool.add(name, length, order, blocks, blocks % 3 == 0)
        elif not add and name in entries:
            del entries[name]
            pool.remove(name)
    return pool, entries


def by_length(entries: Entries) -> list[str]:
    return sorted(entries, key=lambda name: entries[name][:2])


@given(moves)
def test_orders_and_keys(history: Moves) -> None:
    pool, entries = play(history)
    assert len(pool) == len(entries)
    assert list(pool.by_order()) == sorted(entries, key=lambda name: entries[name][1])
    assert list(pool.by_length()) == by_length(entries)
    assert pool.again() == tuple(r for r in pool.by_order() if entries[r][2] % 3 == 0), "who was preempted"
    for number in range(26):
        assert (f"r{number}" in pool) == (f"r{number}" in entries)
    for name, (length, order, blocks) in entries.items():
        assert (pool.length(name), pool.order(name), pool.blocks(name)) == (length, order, blocks)


@given(st.one_of(moves, near_moves), near, near)
def test_by_length_gives_a_half_open_range(history: Moves, low: int, high: int) -> None:
    pool, entries = play(history)
    assert list(pool.by_length(low, high)) == [r for r in by_length(entries) if low <= entries[r][0] < high]
    assert list(pool.by_length(low)) == [r for r in by_length(entries) if low <= entries[r][0]]


@given(moves)
def test_class_aggregates_are_sums_over_the_class(history: Moves) -> None:
    pool, entries = play(history)
    for level in range(LEVELS + 1):
        width = class_width(level)
        touched = {class_of(length, level) for length, _, _ in entries.values()} | {0, FANOUT**level - 1}
        for index in touched:
            last = index == FANOUT**level - 1
            inside = [
                blocks
                for length, _, blocks in entries.values()
                if index * width < length and (last or length <= (index + 1) * width)
            ]
            assert pool.class_count(level, index) == len(inside)
            assert pool.class_blocks(level, index) == sum(inside)
        counts = [pool.class_count(level, index) for index in range(FANOUT**level)]
        assert sum(counts) == len(entries), "a request stands in exactly one class of a level"


@given(lengths)
def test_every_class_lies_in_one_of_the_level_above(length: int) -> None:
    for level in range(1, LEVELS + 1):
        assert class_of(length, level) // FANOUT == class_of(length, level - 1)
        assert class_width(level) * FANOUT == class_width(level - 1)
    assert 0 <= class_of(length, LEVELS) < FANOUT**LEVELS


@given(st.one_of(moves, near_moves, near_moves), near, st.integers(0, 5))
def test_nearest_walks_by_distance_from_a_range(history: Moves, low: int, width: int) -> None:
    pool, entries = play(history)
    high = low + width

    def distance(name: str) -> int:
        length = entries[name][0]
        return max(low - length, 0, length - high)

    walked = list(pool.nearest(low, high))
    assert sorted(walked) == sorted(entries)
    assert [distance(name) for name in walked] == sorted(distance(name) for name in entries)
    inside = [name for name in by_length(entries) if low <= entries[name][0] <= high]
    assert walked[: len(inside)] == inside
    for before, after in pairwise(walked[len(inside) :]):
        if distance(before) == distance(after):
            assert entries[before][0] <= entries[after][0], "of two equally near the shorter comes first"


def test_every_range_of_a_small_pool() -> None:
    pool, entries = Pool(), Entries()
    for length in range(1, 10):
        for order in (length - 1, 20 + length):  # the first order there is stands at the edges too
            entries[f"r{order}"] = (length, order, 1)
            pool.add(f"r{order}", length, order, 1)
    for low in range(1, 12):
        for high in range(low, 12):
            assert pool.longer(low) == sum(length > low for length, _, _ in entries.values())
            assert list(pool.by_length(low, high)) == [r for r in by_length(entries) if low <= entries[r][0] < high]
            walked = [entries[request][0] for request in pool.nearest(low, high)]
            assert sorted(walked) == sorted(length for length, _, _ in entries.values())
            distances = [max(low - length, 0, length - high) for length in walked]
            assert distances == sorted(distances)
    first = Pool()
    first.add("first", 5, 0, 1)
    assert list(first.by_length(5, 6)) == list(first.nearest(5, 5)) == list(first.nearest(4, 4)) == ["first"]
    assert not list(first.by_length(4, 5))


def test_the_classes_are_those_of_the_paper() -> None:
    assert (FANOUT, LONGEST) == (4, 65_536)
    assert [class_width(level) for level in range(LEVELS + 1)] == [65_536, 16_384, 4096, 1024, 256, 64, 16]


def test_a_request_or_an_order_is_there_once() -> None:
    pool = Pool()
    pool.add("a", 10, 0, 1)
    with pytest.raises(InvariantError, match=r"single_owner.*'a'"):
        pool.add("a", 10, 1, 1)
    with pytest.raises(InvariantError, match=r"single_owner.*'b' \(order 0\)"):
        pool.add("b", 10, 0, 1)
    with pytest.raises(KeyError):
        pool.remove("b")
    assert list(pool.by_length()) == ["a"]
    assert (pool.class_count(0, 0), pool.class_blocks(0, 0)) == (1, 1)
