"""Decode attention equals float64 whatever the lengths, page sizes, heads and dtypes, and however runs are cut."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from alignedsched.errors import ExecutorError
from alignedsched_torch.kernels.decode import Tables, Workspace, balanced, unsplit
from alignedsched_torch.kernels.plan import plan
from tests.kernels.paged import PLACE, TOLERANCE, Paged, error

# A tile costs the interpreter some 20 ms whatever its size, so batches are small and examples few; what a plan can be
# like is tested without kernels, in test_plan.
LENGTHS = st.lists(st.one_of(st.integers(1, 40), st.integers(1, 300)), min_size=1, max_size=4)
DTYPES = st.sampled_from(list(TOLERANCE))


@settings(max_examples=40)
@given(
    LENGTHS, st.sampled_from([1, 2]), st.sampled_from([1, 2, 3, 4, 8]), st.sampled_from([16, 24, 64]),
    st.sampled_from([16, 32, 48, 64, 128]), DTYPES, st.integers(1, 6), st.integers(0, 1 << 20),
)  # fmt: skip
@example([300, 1, 40], 1, 4, 128, 64, torch.bfloat16, 5, 0)  # long beside short: the long one is cut four times
@example([33] * 3, 2, 1, 16, 16, torch.float16, 4, 0)  # one query a KV head; pages smaller than tiles
@example([128, 256], 1, 8, 64, 128, torch.float32, 3, 0)  # full pages; tiles smaller than pages
def test_balanced_equals_float64(
    lengths: list[int], kv_heads: int, group: int, dim: int, page: int, dtype: torch.dtype, programs: int, seed: int
) -> None:
    batch = Paged.random(lengths, kv_heads, group, dim, page, dtype, seed)
    assert error(batch.balanced(programs), batch.wanted()) < TOLERANCE[dtype]


@pytest.mark.parametrize(("page", "dtype"), [(16, torch.bfloat16), (64, torch.float16), (128, torch.float32)])
def test_unsplit_equals_float64(page: int, dtype: torch.dtype) -> None:
    batch = Paged.random([1, 150, 64], 2, 4, 64, page, dtype, 1)
    assert error(batch.unsplit(), batch.wanted()) < TOLERANCE[dtype]


def test_one_run_shared_by_more_programs_than_are_merged_at_once() -> None:
    batch = Paged.random([640], 1, 2, 16, 16, torch.float32, 2)
    assert error(batch.balanced(40), batch.wanted()) < TOLERANCE[torch.float32]


def test_an_invariant_result_is_the_same_to_the_last_bit_in_any_batch() -> None:
    batch = Paged.random([700, 20, 300, 513], 1, 2, 16, 16, torch.float32, 3)
    together = batch.balanced(3, invariant=True)
    assert error(together, batch.wanted()) < TOLERANCE[torch.float32]
    for row in range(4):
        tables = Tables(batch.tables.rows[row : row + 1], batch.tables.pages, batch.tables.lengths)
        alone = Paged(batch.data, tables, batch.lengths[row : row + 1], batch.q[row : row + 1])
        assert torch.equal(alone.balanced(2, invariant=True)[0], together[row])


@pytest.mark.parametrize("invariant", [False, True])
def test_a_plan_stays_right_while_rows_grow_and_rows_behind_it_are_padding(invariant: bool) -> None:
    batch = Paged.random([270, 5, 40, 700], 1, 2, 16, 16, torch.float32, 4)
    work = Workspace(4, 2, 1, 16, PLACE, invariant=invariant, rows=5)
    work.load(plan(np.array([100, 5, 17, 690]), 1, 16, 4, invariant=invariant, least_tokens=16))
    spare = torch.tensor([len(batch.tables.lengths)], device=PLACE)
    tables = Tables(
        torch.cat((batch.tables.rows, spare)),
        torch.cat((batch.tables.pages, batch.tables.pages[:1])),
        torch.cat((batch.tables.lengths, spare * 0)),
    )
    q = torch.cat((batch.q, batch.q[:1]))
    out = balanced(q, batch.kv, tables, work, torch.full_like(q, 7.0))
    assert error(out[:4], batch.wanted()) < TOLERANCE[torch.float32]
    assert bool((out[4] == 7.0).all())
    assert bool((unsplit(q, batch.kv, tables, torch.full_like(q, 7.0))[4] == 7.0).all())


def test_what_does_not_fit_is_refused_before_anything_is_launched() -> None:
    batch = Paged.random([20, 30], 1, 2, 16, 16, torch.float32, 5)
    work = Workspace(4, 2, 1, 16, PLACE)
    out = torch.full_like(batch.q, 7.0)
    with pytest.raises(ExecutorError, match="no plan for 2 rows"):
        balanced(batch.q, batch.kv, batch.tables, work, out)
    with pytest.raises(ExecutorError, match="a plan for 3 programs"):
        work.load(plan(np.array([20, 30]), 1, 16, 3))
    work.load(plan(np.array([20, 30, 40]), 1, 16, 4))
    with pytest.raises(ExecutorError, match="no plan for 2 rows"):
        balanced(batch.q, batch.kv, batch.tables, work, out)
    work.load(plan(np.array([20, 30]), 1, 32, 4))
    with pytest.raises(ExecutorError, match="no plan for 2 rows with pages of 16 tokens"):
        balanced(batch.q, batch.kv, batch.tables, work, out)
    for other in (Workspace(4, 4, 2, 16, PLACE), Workspace(4, 2, 1, 16, PLACE, invariant=True, rows=1)):
        with pytest.raises(ExecutorError, match="do not fit the workspace"):
            balanced(batch.q, batch.kv, batch.tables, other, out)
    with pytest.raises(ExecutorError, match="do not fit KV"):
        unsplit(batch.q[:, :, :8], batch.kv, batch.tables, out)
    with pytest.raises(ExecutorError, match=r"torch.float64"):
        unsplit(batch.q.double(), batch.kv.double(), batch.tables, out.double())
    assert bool((out == 7.0).all())
