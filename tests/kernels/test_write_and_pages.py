"""Rope with the KV write equals torch's own, padding writes nothing; moved pages arrive whole and alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alignedsched.errors import ExecutorError
from alignedsched_torch.kernels.pages import gather_pages, move_pages, scatter_pages
from alignedsched_torch.kernels.write import rope_write
from alignedsched_torch.models.decoder import rotate
from tests.kernels.paged import PLACE, TOLERANCE, error


@settings(max_examples=30)
@given(
    st.integers(1, 4), st.sampled_from([1, 2]), st.sampled_from([1, 3, 4]), st.sampled_from([8, 16, 24, 64]),
    st.sampled_from(list(TOLERANCE)), st.integers(0, 1 << 20),
)  # fmt: skip
def test_rope_and_write_equal_torch(
    rows: int, kv_heads: int, group: int, dim: int, dtype: torch.dtype, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    heads, page = kv_heads * group, 16
    qkv = torch.randn(rows, heads + 2 * kv_heads, dim, generator=generator).to(dtype).to(PLACE)
    q, k, v = qkv.split((heads, kv_heads, kv_heads), dim=1)  # parts of one product, as the decoder gives them
    angles = torch.rand(rows, 1, dim // 2, generator=generator).to(PLACE) * 6.3
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    places = torch.randperm(5 * page, generator=generator)[:rows].to(PLACE)
    at, offset = places // page, places % page
    at[0] = -1
    data = torch.full((5, 3, 2, kv_heads, page, dim), 7.0, dtype=dtype, device=PLACE)
    turned = rope_write(q, k, v, cos, sin, at, offset, data[:, 1])
    tolerance = TOLERANCE[dtype]
    assert error(turned, rotate(q.double(), cos.double(), sin.double())) < tolerance
    wanted = torch.full_like(data, 7.0, dtype=torch.float64)
    wanted[at[1:], 1, 0, :, offset[1:]] = rotate(k.double(), cos.double(), sin.double())[1:]
    wanted[at[1:], 1, 1, :, offset[1:]] = v.double()[1:]
    assert error(data, wanted) < tolerance
    assert torch.equal(data[:, 1, 1], wanted[:, 1, 1].to(dtype)), "values are copied as they are"


@settings(max_examples=30)
@given(st.integers(0, 5), st.integers(1, 3), st.sampled_from([(2, 3), (1, 520), (2, 1100)]), st.integers(0, 1 << 20))
def test_pages_move_whole_and_alone(count: int, programs: int, shape: tuple[int, int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    source = torch.randn(7, *shape, generator=generator).to(PLACE)
    ids = torch.randperm(7, generator=generator)[:count].to(PLACE)
    target = torch.full((6, *shape), 7.0, device=PLACE)
    into = torch.randperm(6, generator=generator)[:count].to(PLACE)
    wanted = target.clone()
    wanted[into] = source[ids]
    move_pages(source, ids, target, into, programs)
    assert torch.equal(target, wanted)


def test_pages_are_gathered_and_scattered_and_minus_one_is_skipped() -> None:
    source = torch.randn(5, 2, 8, device=PLACE).to(torch.bfloat16)
    ids = torch.tensor([4, 0, 3], device=PLACE)
    row = torch.zeros(3, 2, 8, dtype=torch.bfloat16, device=PLACE)
    gather_pages(source, ids, row)
    assert torch.equal(row, source[ids])
    back = torch.zeros_like(source)
    scatter_pages(row, torch.tensor([4, -1, 3], device=PLACE), back)
    assert torch.equal(back[[3, 4]], source[[3, 4]])
    assert not back[:3].any()


def test_pages_that_do_not_fit_are_refused() -> None:
    ids = torch.tensor([0], device=PLACE)
    page = torch.zeros(2, 4, 6, device=PLACE)
    with pytest.raises(ExecutorError, match=r"\(4, 6\) .* do not fit \(4, 5\)"):
        move_pages(page, ids, page[:, :, :5], ids)
    with pytest.raises(ExecutorError, match="not a contiguous row of 4-byte words"):
        move_pages(page[:, :, :5], ids, page[:, :, :5], ids)
