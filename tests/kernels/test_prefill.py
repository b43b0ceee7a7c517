"""Prefill through a variable-length attention: what is handed to it is what chunk by chunk would have been read."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alignedsched_torch.devices import CpuDevice, CudaDevice
from alignedsched_torch.kernels.attention import causal, prefill_chunks, varlen
from alignedsched_torch.memory import KVPool, PageShape
from alignedsched_torch.models.attention import ChunkRows
from tests.kernels.paged import error

HEADS, KV_HEADS, DIM = 4, 2, 16


def as_documented(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    *,
    window_size: tuple[int, int],
    enable_gqa: bool,
) -> torch.Tensor:
    """Torch's ``varlen_attn``, which needs a GPU, by its documentation: sequences packed, the last rows aligned."""
    assert window_size == (-1, 0)
    assert enable_gqa
    out = torch.empty_like(query)
    for a, b, c, d in zip(cu_seq_q[:-1], cu_seq_q[1:], cu_seq_k[:-1], cu_seq_k[1:], strict=True):
        assert b - a <= max_q
        assert d - c <= max_k
        seen = torch.ones(int(b - a), int(d - c), dtype=torch.bool).tril_(int(d - c) - int(b - a))
        q, k, v = (side[x:y].transpose(0, 1) for side, x, y in ((query, a, b), (key, c, d), (value, c, d)))
        k, v = (side.repeat_interleave(HEADS // KV_HEADS, 0) for side in (k, v))
        scores = (q @ k.transpose(1, 2) / math.sqrt(DIM)).masked_fill(~seen, -math.inf)
        out[a:b] = (scores.softmax(-1) @ v).transpose(0, 1)
    return out


def without_gqa(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    *,
    window_size: tuple[int, int] = (-1, -1),
) -> torch.Tensor:
    """The same before torch 2.12."""
    assert key.shape[1] == value.shape[1] == query.shape[1]
    k, v = key[:, :: HEADS // KV_HEADS], value[:, :: HEADS // KV_HEADS]
    return as_documented(query, k, v, cu_seq_q, cu_seq_k, max_q, max_k, window_size=window_size, enable_gqa=True)


def without_windows(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    is_causal: bool = False,
) -> torch.Tensor:
    """The same in torch 2.10."""
    assert is_causal
    return without_gqa(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, window_size=(-1, 0))


VERSIONS = (as_documented, without_gqa, without_windows)


def test_torch_takes_what_it_is_handed() -> None:
    attention = pytest.importorskip("torch.nn.attention.varlen", reason="this torch has none").varlen_attn
    assert causal(attention) is not None
    assert list(inspect.signature(attention).parameters)[:7] == list(inspect.signature(as_documented).parameters)[:7]


def test_an_attention_that_cannot_be_causal_is_not_used() -> None:
    assert causal(lambda query, key, value: query) is None


CHUNKS = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 20)), min_size=1, max_size=4)


def made(
    chunks: list[tuple[int, int]], page: int, before: int, seed: int, dtype: torch.dtype, place: torch.device
) -> tuple[torch.Tensor, torch.Tensor, list[ChunkRows]]:
    """Queries, KV and chunks of (start, rows) behind ``before`` rows that decode."""
    generator = torch.Generator().manual_seed(seed)
    counts = [-(-(start + count) // page) for start, count in chunks]
    order = torch.randperm(sum(counts), generator=generator).to(place)
    kv = torch.randn(sum(counts), 2, KV_HEADS, page, DIM, generator=generator).to(dtype).to(place)
    rows, at = [], before
    for (start, count), pages in zip(chunks, order.split(counts), strict=True):
        rows.append(ChunkRows(at, at + count, start, pages))
        at += count
    return torch.randn(at, HEADS, DIM, generator=generator).to(dtype).to(place), kv, rows


@settings(max_examples=40)
@given(CHUNKS, st.sampled_from([1, 4, 16]), st.integers(0, 3), st.sampled_from(VERSIONS), st.integers(0, 1 << 20))
def test_all_chunks_at_once_equal_one_by_one(
    chunks: list[tuple[int, int]], page: int, before: int, version: Callable[..., torch.Tensor], seed: int
) -> None:
    q, kv, rows = made(chunks, page, before, seed, torch.float64, torch.device("cpu"))
    one, all_at_once = torch.full_like(q, 7.0), torch.full_like(q, 7.0)
    prefill_chunks(q, kv, rows, one, None)
    prefill_chunks(q, kv, rows, all_at_once, causal(version))
    assert torch.allclose(one, all_at_once)
    assert bool((all_at_once[:before] == 7.0).all())


def test_on_a_cpu_there_is_none() -> None:
    assert varlen(KVPool("d0", CpuDevice(), PageShape(1, 1, 16, 16, torch.bfloat16), 2)) is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_torchs_own_equals_one_by_one() -> None:
    pool = KVPool("d0", CudaDevice("d0"), PageShape(1, KV_HEADS, DIM, 16, torch.bfloat16), 2)
    attention = varlen(pool)
    if attention is None:
        pytest.skip(f"torch {torch.__version__} has no variable-length attention")
    q, kv, rows = made([(0, 20), (37, 9)], 16, 2, 1, torch.bfloat16, pool.device.torch_device)
    one, all_at_once = torch.zeros_like(q), torch.zeros_like(q)
    prefill_chunks(q, kv, rows, one, None)
    prefill_chunks(q, kv, rows, all_at_once, attention)
    assert error(all_at_once, one.double()) < 2**-6
