"""The closed forms of the running batch equal a naive account that keeps every token of every member."""

from __future__ import annotations

import heapq
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignedsched.batch import RunningBatch
from alignedsched.errors import InvariantError

NAMES = tuple("abcd")


class TokenByToken:
    """A batch as one writes it first: a length per member, and every step adds one to each."""

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self.lengths: dict[str, int] = {}
        self.limits: dict[str, int] = {}
        self.step = 0

    def advance(self) -> None:
        self.step += 1
        for name in self.lengths:
            self.lengths[name] += 1

    def blocks(self) -> int:
        return sum(-(-length // self.block_size) for length in self.lengths.values())

    def blocks_later(self, steps: int) -> int:
        return sum(-(-(length + steps) // self.block_size) for length in self.lengths.values())


join = st.tuples(st.just("join"), st.sampled_from(NAMES), st.integers(1, 90), st.none() | st.integers(1, 40))
leave = st.tuples(st.just("leave"), st.sampled_from(NAMES), st.just(0), st.none())
advance = st.tuples(st.just("advance"), st.just(""), st.integers(1, 40), st.none())
histories = st.lists(st.one_of(join, join, leave, advance), max_size=40)
Move = tuple[str, str, int, int | None]


def play(block_size: int, history: list[Move]) -> tuple[RunningBatch, TokenByToken]:
    """Both batches after a history, compared on the way."""
    batch, naive = RunningBatch(block_size), TokenByToken(block_size)
    for kind, name, number, allowance in history:
        if kind == "advance":
            for _ in range(number):
                naive.advance()
        elif kind == "join" and name not in naive.lengths:
            naive.lengths[name] = number
            limit = None if allowance is None else naive.step + allowance - 1
            if limit is not None:
                naive.limits[name] = limit
            batch.add(name, number - naive.step, limit)
        elif kind == "leave" and name in naive.lengths:
            assert batch.remove(name) + naive.step == naive.lengths.pop(name)
            naive.limits.pop(name, None)
        compare(batch, naive)
    return batch, naive


def compare(batch: RunningBatch, naive: TokenByToken) -> None:
    lengths, step = naive.lengths, naive.step
    assert len(batch) == len(lengths)
    assert batch.total(step) == sum(lengths.values())
    assert batch.longest(step) == max(lengths.values(), default=0)
    assert batch.shortest(step) == min(lengths.values(), default=0)
    assert batch.spread() == max(lengths.values(), default=0) - min(lengths.values(), default=0)
    assert batch.blocks(step) == naive.blocks()
    assert batch.next_limit() == min(((limit, name) for name, limit in naive.limits.items()), default=None)
    assert list(batch) == sorted(lengths, key=lambda name: (lengths[name], name))
    assert list(batch.longest_first()) == list(batch)[::-1]
    for name in NAMES:
        assert (name in batch) == (name in lengths)
    for name, length in lengths.items():
        assert batch.base(name) + step == length


@given(st.integers(1, 17), histories)
def test_closed_forms_equal_a_token_by_token_account(block_size: int, history: list[Move]) -> None:
    play(block_size, history)


@given(st.integers(1, 17), histories, st.integers(0, 100))
def test_blocks_of_any_later_step_are_known_now(block_size: int, history: list[Move], later: int) -> None:
    batch, naive = play(block_size, history)
    assert batch.blocks(naive.step + later) == naive.blocks_later(later)
    assert batch.growth(naive.step + later) == naive.blocks_later(later) - naive.blocks_later(later - 1)


@given(st.integers(1, 17), histories, st.integers(0, 80), st.integers(0, 90), st.sampled_from((-1, 0, 0, 1)))
def test_last_step_within_is_the_last_one_whose_blocks_fit(
    block_size: int, history: list[Move], most: int, pivot: int, spare: int
) -> None:
    batch, naive = play(block_size, history)
    start, blocks = naive.step, naive.blocks_later(pivot) + spare  # just enough for some step, or one too few
    fitting = [start + k for k in range(most) if not naive.lengths or naive.blocks_later(k) <= blocks]
    expected = max(fitting, default=start - 1)
    assert batch.last_step_within(blocks, start, most) == expected


def test_of_a_member_that_comes_back_the_new_limit_counts() -> None:
    batch = RunningBatch(16)
    batch.add("a", 1, 5)
    batch.remove("a")
    batch.add("a", 1, 9)
    assert batch.next_limit() == (9, "a")
    batch.remove("a")
    batch.add("a", 1)
    assert batch.next_limit() is None


@given(histories)
def test_the_limit_heap_does_not_grow_with_the_number_of_joins(history: list[Move]) -> None:
    batch = RunningBatch(16)
    for turn in range(40):
        for kind, name, number, _ in history:
            if kind == "join" and name not in batch:
                batch.add(name, number, 10_000 - turn)
            elif kind == "leave" and name in batch:
                batch.remove(name)
        for name in list(batch):
            batch.remove(name)
    assert len(batch._limits) <= 66
    assert batch.next_limit() is None


def test_the_limit_heap_stays_small_and_is_made_anew_rarely(monkeypatch: pytest.MonkeyPatch) -> None:
    made_anew: list[int] = []
    heapify = heapq.heapify

    def counted(heap: list[tuple[int, str]]) -> None:
        made_anew.append(len(heap))
        heapify(heap)

    monkeypatch.setattr("alignedsched.batch.heapq.heapify", counted)
    members, turns = 100, 1000
    limits = {f"r{number}": (number * 37) % 1009 for number in range(members)}
    batch = RunningBatch(16)
    for name, limit in limits.items():
        batch.add(name, 1, limit)
    for number in range(members, members + turns):
        gone = f"r{number - members}"
        batch.remove(gone)
        del limits[gone]
        limits[f"r{number}"] = (number * 37) % 1009
        batch.add(f"r{number}", 1, limits[f"r{number}"])
        assert len(batch._limits) <= 2 * members + 1
    assert batch.next_limit() == min((limit, name) for name, limit in limits.items())
    assert 1 <= len(made_anew) <= turns // members + 1
    for name in sorted(limits)[: members - 1]:  # from here on it shrinks, and is made anew with the rest out of order
        batch.remove(name)
        del limits[name]
        assert batch.next_limit() == min((limit, name) for name, limit in limits.items())


@given(st.integers(1, 17), st.lists(st.integers(1, 500), min_size=1, max_size=30), st.integers(0, 50))
def test_a_cycle_of_block_size_steps_takes_one_block_a_member(block_size: int, lengths: list[int], step: int) -> None:
    batch = RunningBatch(block_size)
    for i, length in enumerate(lengths):
        batch.add(f"r{i}", length)
    series = [batch.blocks(step + k) for k in range(block_size + 1)]
    assert series[-1] - series[0] == len(lengths)
    assert all(before <= after for before, after in pairwise(series))


def test_a_batch_of_many_takes_little_memory() -> None:
    assert not hasattr(RunningBatch(16), "__dict__")


def test_a_member_joins_once_and_a_stranger_does_not_leave() -> None:
    batch = RunningBatch(16)
    batch.add("a", 5, 7)
    with pytest.raises(InvariantError, match=r"single_owner.*'a'"):
        batch.add("a", 6)
    with pytest.raises(KeyError):
        batch.remove("b")
    with pytest.raises(KeyError):
        batch.base("b")
    assert (batch.total(0), len(batch), batch.next_limit()) == (5, 1, (7, "a"))


@given(st.integers(1, 17), st.integers(1, 90), st.integers(0, 40), st.integers(1, 3))
def test_of_few_steps_none_fits_or_just_those_that_do(block_size: int, length: int, start: int, most: int) -> None:
    batch = RunningBatch(block_size)
    batch.add("a", length)
    for spare in range(-1, 3):
        blocks = batch.blocks(start) + spare
        fitting = [step for step in range(start, start + most) if batch.blocks(step) <= blocks]
        assert batch.last_step_within(blocks, start, most) == max(fitting, default=start - 1)
