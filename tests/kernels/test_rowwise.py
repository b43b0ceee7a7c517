"""Sums with norms, and gates, equal float64's; a decoder with them makes what the plain one makes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alignedsched_torch.calibrate.random_model import TINY, random_decoder
from alignedsched_torch.kernels.choice import decoder_for, rowwise
from alignedsched_torch.kernels.rowwise import BLOCK, TritonRowwise, warps
from alignedsched_torch.models import Decoder
from alignedsched_torch.models.rowwise import TorchRowwise
from tests.kernels.paged import PLACE, TOLERANCE, error

EPS = 1e-5
DTYPES = st.sampled_from(list(TOLERANCE))


def drawn(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype).to(PLACE)


@settings(max_examples=30)
@given(st.integers(1, 4), st.sampled_from([1, 8, 24, 96, 520]), DTYPES, st.integers(0, 1 << 20))
def test_sums_and_their_norms_equal_float64(rows: int, width: int, dtype: torch.dtype, seed: int) -> None:
    x, more = drawn((rows, width), dtype, seed), drawn((rows, width), dtype, seed + 1)
    weight = drawn((width,), dtype, seed + 2)
    total, normed = TritonRowwise(EPS, dtype).add_norm(x, more, weight)
    assert error(total, x.double() + more.double()) < TOLERANCE[dtype]
    norm = TorchRowwise(EPS, torch.float64).norm(total.double(), weight.double())  # of the sum as it is stored
    assert error(normed, norm) < TOLERANCE[dtype]


@settings(max_examples=30)
@given(st.integers(1, 3), st.sampled_from([1, 24, BLOCK, BLOCK + 8, 2 * BLOCK + 24]), DTYPES, st.integers(0, 1 << 20))
def test_gates_equal_float64(rows: int, width: int, dtype: torch.dtype, seed: int) -> None:
    both = 3 * drawn((rows, 2 * width), dtype, seed)
    made = TritonRowwise(EPS, dtype).gated(both)
    assert made.shape == (rows, width)
    assert error(made, TorchRowwise(EPS, torch.float64).gated(both.double())) < TOLERANCE[dtype]


def test_what_is_no_row_of_its_own_is_taken_too() -> None:
    wide = drawn((3, 64), torch.float32, 0)
    x, weight = wide[:, 8:40], torch.ones(32, device=PLACE)
    total, normed = TritonRowwise(EPS, torch.float32).add_norm(x, x, weight)
    assert torch.equal(total, x + x)
    assert error(normed, TorchRowwise(EPS, torch.float64).norm((x + x).double(), weight.double())) < 2e-6
    assert torch.equal(
        TritonRowwise(EPS, torch.float32).gated(x), TritonRowwise(EPS, torch.float32).gated(x.contiguous())
    )


@pytest.mark.parametrize(("dtype", "bits"), [(torch.float32, 18), (torch.bfloat16, 4)])
def test_a_decoder_makes_the_same_but_for_rounding(dtype: torch.dtype, bits: int) -> None:
    like = random_decoder(TINY, dtype, PLACE)
    rows, eps = torch.arange(7, device=PLACE), like.config.norm_eps
    made = [
        Decoder(like.config, like.weights, rowwise=way).hidden(rows, rows, lambda layer, q, *_: q).double()
        for way in (TorchRowwise(eps, dtype), TritonRowwise(eps, dtype))
    ]
    assert float(((made[0] - made[1]).abs() / (1 + made[0].abs())).max()) < 2.0**-bits


def test_rows_are_dealt_with_where_the_weights_lie() -> None:
    like = random_decoder(TINY, torch.float32, torch.device("cpu"))
    assert type(decoder_for(like.config, like.weights)._rows) is TorchRowwise
    there = torch.empty(1, dtype=torch.float64, device=PLACE)
    assert type(rowwise(EPS, there)) is TorchRowwise, "kernels compute in float32 at most"
    if PLACE.type == "cuda":
        assert type(rowwise(EPS, there.to(torch.bfloat16))) is TritonRowwise


def test_threads_fit_a_program() -> None:
    assert [warps(width) for width in (16, 1024, 4096, 8192, 16_384)] == [1, 2, 8, 16, 16]
