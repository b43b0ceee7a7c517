"""A plan covers every page of every run exactly once, in equal shares, with few parts, and stays right as rows grow."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignedsched.errors import ExecutorError
from alignedsched_torch.kernels.plan import LEAST_TOKENS, SEGMENTS, Plan, plan, segment_pages

LENGTHS = st.lists(st.one_of(st.integers(1, 300), st.integers(1, 20_000)), max_size=40)


def stretches(made: Plan, pages: list[int]) -> list[list[tuple[int, int, int]]]:
    """For each program the (run, first page, last page) it works on, walked as the kernel does."""
    run, page, _ = made.starts.tolist()
    found = []
    for p in range(made.programs):
        mine = []
        for at in range(run[p], run[p + 1] + 1):
            first = page[p] if at == run[p] else 0
            last = pages[at // made.kv_heads] if at < run[p + 1] else page[p + 1]
            if at < run[p + 1] or last > first:
                mine.append((at, first, last))
        found.append(mine)
    return found


@given(LENGTHS, st.sampled_from([1, 2, 8]), st.sampled_from([16, 48, 64, 128]), st.integers(1, 60), st.integers(0, 512))
def test_every_page_is_read_once_in_equal_shares(
    lengths: list[int], kv_heads: int, page: int, programs: int, least: int
) -> None:
    made = plan(np.array(lengths, dtype=np.int64), kv_heads, page, programs, least_tokens=least)
    pages = [-(-length // page) for length in lengths]
    work = stretches(made, pages)
    read = [(run, at) for mine in work for run, first, last in mine for at in range(first, last)]
    assert read == [(run, at) for run in range(len(lengths) * kv_heads) for at in range(pages[run // kv_heads])]
    shares = [sum(last - first for _, first, last in mine) for mine in work]
    busy = [share for share in shares if share]
    assert not busy or max(busy) - min(busy) <= 1
    assert len(busy) <= 1 or min(busy) * page > least - page, "nobody starts for next to nothing"


@given(LENGTHS, st.sampled_from([1, 2, 8]), st.sampled_from([16, 64]), st.integers(1, 60))
def test_only_runs_that_were_cut_have_parts_and_the_plan_counts_them(
    lengths: list[int], kv_heads: int, page: int, programs: int
) -> None:
    made = plan(np.array(lengths, dtype=np.int64), kv_heads, page, programs)
    pages = [-(-length // page) for length in lengths]
    slots: dict[int, list[int]] = {}
    for p, mine in enumerate(stretches(made, pages)):
        for place, (run, first, last) in enumerate(mine):
            if first > 0 or last < pages[run // kv_heads]:
                assert place in (0, len(mine) - 1)
                slots.setdefault(run, []).append(2 * p + (place > 0))
    numbers = [slot for of in slots.values() for slot in of]
    assert len(set(numbers)) == len(numbers)
    counted = {}
    for p, parts in enumerate(made.starts[2, :-1].tolist()):
        if parts:
            run = int(made.starts[0, p + 1])
            late = int(made.starts[0, p]) < run
            counted[run] = [2 * (p + i) + (i == 0 and late) for i in range(parts)]
    assert counted == slots


@given(LENGTHS, st.sampled_from([16, 64]), st.integers(1, 60))
def test_invariant_plans_cut_where_the_request_alone_says(lengths: list[int], page: int, programs: int) -> None:
    made = plan(np.array(lengths, dtype=np.int64), 2, page, programs, invariant=True)
    pages = np.array([-(-length // page) for length in lengths], dtype=np.int64)
    segments = -(-pages // segment_pages(pages, page)) if lengths else pages
    assert made.segments == SEGMENTS
    assert not lengths or int(segments.max()) <= SEGMENTS
    work = stretches(made, segments.tolist())
    read = [(run, at) for mine in work for run, first, last in mine for at in range(first, last)]
    assert read == [(run, at) for run in range(2 * len(lengths)) for at in range(int(segments[run // 2]))]


def test_balance_does_not_depend_on_how_skewed_the_batch_is() -> None:
    for lengths in ([8192] * 64, [131072] + [6241] * 63, [32768] * 8 + [2048] * 120, [16384] * 4):
        made = plan(np.array(lengths), 8, 64, 396)
        work = stretches(made, [-(-length // 64) for length in lengths])
        shares = [sum(last - first for _, first, last in mine) for mine in work]
        assert max(shares) / (sum(shares) / 396) < 1.03, lengths
    skewed = [131072] + [6241] * 63
    assert 131072 / (sum(skewed) * 8 / 396) > 12, "where the longest run is never cut, all wait for it"


def test_few_tokens_are_not_spread_thin() -> None:
    made = plan(np.array([600]), 2, 16, 100)
    busy = [mine for mine in stretches(made, [38]) if mine]
    assert len(busy) == 76 * 16 // LEAST_TOKENS


def test_a_length_below_one_is_refused_by_its_row() -> None:
    with pytest.raises(ExecutorError, match=r"row 1: .* not 0"):
        plan(np.array([5, 0]), 1, 16, 4)
