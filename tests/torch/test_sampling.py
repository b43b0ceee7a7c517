"""Draws are right in distribution, and a row's draw is its own affair."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alignedsched.errors import CallerError
from alignedsched_torch.sampling import Sampling, sample, uniform


def columns(rows: int, temperature: float, top_p: float, top_k: int, seed: int) -> tuple[torch.Tensor, ...]:
    return (
        torch.full((rows,), temperature),
        torch.full((rows,), top_p),
        torch.full((rows,), top_k),
        torch.full((rows,), seed),
        torch.arange(rows),
    )


def test_uniform_numbers_are_uniform_and_differ_by_seed_and_position() -> None:
    drawn = uniform(torch.zeros(20_000, dtype=torch.int64), torch.arange(20_000))
    assert float(drawn.min()) >= 0
    assert float(drawn.max()) < 1
    counts = torch.histc(drawn, 20, 0, 1)
    assert float(((counts - 1000) ** 2 / 1000).sum()) < 50, "chi-square with 19 degrees of freedom"
    others = uniform(torch.ones(20_000, dtype=torch.int64), torch.arange(20_000))
    assert abs(float(torch.corrcoef(torch.stack((drawn, others)))[0, 1])) < 0.03


def test_shares_follow_the_temperature() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0]).repeat(30_000, 1)
    tokens = sample(logits, *columns(30_000, 0.5, 1.0, 0, 7))
    wanted = (torch.tensor([0.0, 1.0, 2.0]) / 0.5).softmax(0)
    got = torch.bincount(tokens, minlength=3) / 30_000
    assert torch.allclose(got.double(), wanted.double(), atol=0.01)


@given(st.integers(0, 2**62), st.integers(1, 12), st.floats(0.05, 1.0), st.integers(0, 12))
def test_only_what_top_k_and_top_p_keep_is_drawn(seed: int, rows: int, top_p: float, top_k: int) -> None:
    logits = torch.randn((rows, 12), generator=torch.Generator().manual_seed(seed % 1000)).double()
    tokens = sample(logits, *columns(rows, 1.0, top_p, top_k, seed))
    for row, token in zip(logits, tokens.tolist(), strict=True):
        likelier = row > row[token]
        assert int(likelier.sum()) < (top_k or 12)
        assert float(row.softmax(0)[likelier].sum()) < top_p + 1e-6


@given(st.permutations(range(6)), st.integers(0, 2**62))
def test_a_rows_draw_does_not_depend_on_its_batch(order: list[int], seed: int) -> None:
    logits = torch.randn((6, 20), generator=torch.Generator().manual_seed(1))
    together = columns(6, 0.8, 0.9, 10, seed)
    whole = sample(logits, *together)
    shuffled = sample(logits[order], *(column[order] for column in together))
    assert shuffled.tolist() == whole[order].tolist()
    alone = [sample(logits[i : i + 1], *(column[i : i + 1] for column in together)).item() for i in range(6)]
    assert alone == whole.tolist()


def test_temperature_nought_takes_the_likeliest_and_the_first_of_equals() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0], [5.0, 1.0, 2.0]])
    assert sample(logits, *columns(2, 0.0, 1.0, 0, 3)).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("field", "value"), [("temperature", -1.0), ("top_p", 0.0), ("top_p", 1.5), ("top_k", -1), ("seed", -1)]
)
def test_what_is_no_setting_is_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(CallerError, match=field):
        Sampling(**{field: value})  # type: ignore[arg-type]
