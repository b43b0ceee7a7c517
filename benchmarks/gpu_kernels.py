"""Decode attention kernels side by side: this project's, torch's variable-length attention, FlashInfer's.

Each gets the same queries and the same KV in its own layout, pages scattered; one layer. ``library`` is torch's
``varlen_attn`` (FlashAttention), which wants pages of 256 tokens, or before torch 2.12 KV in one piece: what it reads
stands in each of its rows. FlashInfer and this project's kernels read pages of ``page`` tokens.
"""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from attrs import frozen

from alignedsched_torch.models.attention import DecodeRows, StepRows
from benchmarks.gpu_timing import Size, Work

LIBRARY_PAGE = 256  # what FlashAttention-2 asks of paged KV
FLASHINFER_WORKSPACE = 256 << 20
TOLERANCE = 2e-2  # of bfloat16 outputs; relative to 1 + |truth|
Ints = np.ndarray


@frozen(eq=False)
class Heads:
    """Of one layer on one GPU."""

    query: int
    kv: int
    size: int

    def kv_bytes(self, item: int) -> int:
        """Of one token in one layer."""
        return 2 * self.kv * self.size * item


class Batch:
    """Requests of these lengths: queries, and KV in scattered pages ``[pages, 2, kv_heads, page, size]``."""

    def __init__(self, lengths: Ints, heads: Heads, page: int, size: Size, room: torch.Tensor) -> None:
        """``room``: memory to put KV into, so that it need not be made for each batch."""
        self.lengths, self.heads, self.page, self.size = lengths, heads, page, size
        self.room = room
        each = -(-lengths // page)
        pages = int(each.sum())
        self.kv = room[: pages * 2 * heads.kv * page * heads.size].view(pages, 2, heads.kv, page, heads.size)
        order = np.random.default_rng(0).permutation(pages)
        width = -(-int(each.max()) // 16) * 16  # Triton compiles another kernel for other multiples
        table = np.zeros((len(lengths), width), dtype=np.int64)
        ends = np.cumsum(each)
        for row, (end, count) in enumerate(zip(ends.tolist(), each.tolist(), strict=True)):
            table[row, :count] = order[end - count : end]
        place = size.device
        self.table = torch.from_numpy(table).to(place)
        self.length = torch.from_numpy(lengths).to(place)
        self.rows = torch.arange(len(lengths), device=place)
        generator = torch.Generator(place).manual_seed(0)
        shape = (len(lengths), heads.query, heads.size)
        self.q = torch.randn(shape, generator=generator, device=place).to(size.dtype)

    @property
    def bytes(self) -> int:
        """Of KV that one step reads."""
        return int(self.lengths.sum()) * self.heads.kv_bytes(self.q.element_size())

    def error(self, out: torch.Tensor) -> float:
        """Largest error of ``out`` over a few rows, against the same KV read in float32."""
        worst = 0.0
        for row in self.checked():
            length = int(self.lengths[row])
            pages = self.table[row, : -(-length // self.page)]
            k, v = (self.kv[pages, side].transpose(0, 1).flatten(1, 2)[:, :length] for side in (0, 1))
            worst = max(worst, off(self.q[row], k, v, out[row]))
        return worst

    def checked(self) -> list[int]:
        """Rows whose results are looked at."""
        return sorted({0, len(self.lengths) // 2, len(self.lengths) - 1})


def off(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor) -> float:
    """Largest |out - truth| / (1 + |truth|) of one row: q, out [heads, size], k and v [kv_heads, tokens, size]."""
    queries = q.float().view(k.shape[0], -1, q.shape[-1]) / math.sqrt(q.shape[-1])
    truth = ((queries @ k.float().transpose(1, 2)).softmax(-1) @ v.float()).flatten(0, 1)
    return float(((out.float() - truth).abs() / (1 + truth.abs())).max())


def room(tokens: int, heads: Heads, size: Size) -> torch.Tensor:
    """Memory for the KV of so many tokens and some pages more, filled with noise."""
    count = (tokens + 64 * LIBRARY_PAGE) * 2 * heads.kv * heads.size
    made = torch.empty(count, dtype=size.dtype, device=size.device)
    generator = torch.Generator(size.device).manual_seed(1)
    stretch = torch.randn(min(count, 1 << 22), generator=generator, device=size.device).to(size.dtype)
    for start in range(0, count, len(stretch)):
        part = made[start : start + len(stretch)]
        part.copy_(stretch[: len(part)])
    return made


Make = Callable[[Batch], tuple[Work, torch.Tensor]]  # of a batch: the work, and what it writes


def kernels(size: Size) -> dict[str, Make]:
    """Every kernel that can be had here, by name."""
    found: dict[str, Make] = {}
    interpreted = os.environ.get("TRITON_INTERPRET", "0") == "1"
    if find_spec("triton") is not None and (not size.smoke or interpreted):
        found |= {"balanced": balanced, "unsplit": unsplit}
    else:
        found["torch"] = plain
    if not size.smoke:
        if library_takes() is not None:
            found["library"] = library if library_takes() else library_in_one_piece
        if find_spec("flashinfer") is not None:
            found["flashinfer"] = flashinfer
    return found


def balanced(batch: Batch, per_processor: int | None = None) -> tuple[Work, torch.Tensor]:
    """The project's kernel: equal shares, ``per_processor`` programs on each multiprocessor (None: its default)."""
    from alignedsched_torch.kernels.attention import default_programs
    from alignedsched_torch.kernels.decode import Tables, Workspace
    from alignedsched_torch.kernels.decode import balanced as run
    from alignedsched_torch.kernels.options import PER_PROCESSOR
    from alignedsched_torch.kernels.plan import plan

    heads, place = batch.heads, batch.size.device
    programs = default_programs(place)
    if per_processor is not None:
        programs = max(1, programs // PER_PROCESSOR * per_processor)
    work = Workspace(programs, heads.query, heads.kv, heads.size, place)
    work.load(plan(batch.lengths, heads.kv, batch.page, programs))
    tables, out = Tables(batch.rows, batch.table, batch.length), torch.empty_like(batch.q)
    return lambda: run(batch.q, batch.kv, tables, work, out), out


def unsplit(batch: Batch) -> tuple[Work, torch.Tensor]:
    """The project's kernel that never splits a request."""
    from alignedsched_torch.kernels.decode import Tables
    from alignedsched_torch.kernels.decode import unsplit as run

    tables, out = Tables(batch.rows, batch.table, batch.length), torch.empty_like(batch.q)
    return lambda: run(batch.q, batch.kv, tables, out), out


@cache
def library_takes() -> bool | None:
    """Whether torch's variable-length attention takes pages; None: this torch has none."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return {"block_table", "seqused_k", "enable_gqa"} <= set(inspect.signature(varlen_attn).parameters)


def reads(name: str, page: int) -> str:
    """What a kernel of that name reads, in words, where this project's pages have ``page`` tokens."""
    if name != "library":
        return f"pages of {page}"
    return f"pages of {LIBRARY_PAGE}" if library_takes() else "KV in one piece"


def library_in_one_piece(batch: Batch) -> tuple[Work, torch.Tensor]:
    """Torch's variable-length attention before it took pages: easier to read than what the others are given."""
    from torch.nn.attention.varlen import varlen_attn

    lengths, place, heads = batch.lengths, batch.size.device, batch.heads
    count = int(lengths.sum()) * heads.kv * heads.size
    k, v = (batch.room[start : start + count].view(-1, heads.kv, heads.size) for start in (0, count))
    one_each = torch.arange(len(lengths) + 1, dtype=torch.int32, device=place)
    ends = np.concatenate(([0], np.cumsum(lengths)))
    sent, longest = torch.from_numpy(ends.astype(np.int32)).to(place), int(lengths.max())
    grouped: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}

    def work() -> torch.Tensor:
        made = varlen_attn(batch.q, k, v, one_each, sent, 1, longest, **grouped)
        assert isinstance(made, torch.Tensor)
        return made

    out = work()
    _check(batch, out, {row: (k[ends[row] : ends[row + 1]], v[ends[row] : ends[row + 1]]) for row in batch.checked()})
    return work, out


def _check(batch: Batch, out: torch.Tensor, read: dict[int, tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Raise RuntimeError if a row is not attention to its keys and values, both [tokens, kv_heads, size]."""
    for row, (keys, values) in read.items():
        error = off(batch.q[row], keys.transpose(0, 1), values.transpose(0, 1), out[row])
        if not error < TOLERANCE:
            raise RuntimeError(f"row {row} is off by {error}")


def library(batch: Batch) -> tuple[Work, torch.Tensor]:
    """Torch's variable-length attention over pages, as it chooses to split."""
    from torch.nn.attention.varlen import varlen_attn

    lengths, place = batch.lengths, batch.size.device
    each = -(-lengths // LIBRARY_PAGE)
    pages, n = int(each.sum()), len(lengths)
    count = pages * LIBRARY_PAGE * batch.heads.kv * batch.heads.size
    k, v = (
        batch.room[start : start + count].view(pages, LIBRARY_PAGE, batch.heads.kv, batch.heads.size)
        for start in (0, count)
    )
    order, table = np.random.default_rng(0).permutation(pages), np.zeros((n, int(each.max())), dtype=np.int32)
    for row, (end, many) in enumerate(zip(np.cumsum(each).tolist(), each.tolist(), strict=True)):
        table[row, :many] = order[end - many : end]
    one_each = torch.arange(n + 1, dtype=torch.int32, device=place)
    used, blocks = (torch.from_numpy(a).to(place) for a in (lengths.astype(np.int32), table))
    ends = torch.from_numpy(np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)).to(place)
    longest = int(lengths.max())

    def work() -> torch.Tensor:
        made = varlen_attn(
            batch.q, k, v, one_each, ends, 1, longest, enable_gqa=True, seqused_k=used, block_table=blocks
        )
        assert isinstance(made, torch.Tensor)
        return made

    def mine(row: int, side: torch.Tensor) -> torch.Tensor:
        return side[table[row, : each[row]].astype(np.int64)].flatten(0, 1)[: lengths[row]]

    out = work()
    _check(batch, out, {row: (mine(row, k), mine(row, v)) for row in batch.checked()})
    return work, out


def flashinfer(batch: Batch) -> tuple[Work, torch.Tensor]:
    """FlashInfer's paged decode kernel, planned for this batch."""
    import flashinfer as fi

    place, heads = batch.size.device, batch.heads
    each = -(-batch.lengths // batch.page)
    wrapper = fi.BatchDecodeWithPagedKVCacheWrapper(
        torch.empty(FLASHINFER_WORKSPACE, dtype=torch.uint8, device=place), "HND",
        use_tensor_cores=heads.query > heads.kv,
    )  # fmt: skip
    pages = torch.cat([batch.table[row, :count] for row, count in enumerate(each.tolist())]).to(torch.int32)
    starts = torch.from_numpy(np.concatenate(([0], np.cumsum(each))).astype(np.int32))
    last = torch.from_numpy((batch.lengths - (each - 1) * batch.page).astype(np.int32))
    wrapper.plan(
        starts, pages, last, heads.query, heads.kv, heads.size, batch.page,
        q_data_type=batch.q.dtype, kv_data_type=batch.q.dtype,
    )  # fmt: skip
    out = torch.empty_like(batch.q)
    return lambda: wrapper.run(batch.q, batch.kv, out=out), out


def plain(batch: Batch) -> tuple[Work, torch.Tensor]:
    """The executor's attention in plain torch, for a smoke run without Triton."""
    from alignedsched_torch.models.attention import _decode, similar

    order = np.argsort(-batch.lengths, kind="stable")
    sent = torch.from_numpy(order).to(batch.size.device)
    decode = DecodeRows(batch.rows[sent], batch.table, batch.length, batch.lengths[order])
    groups = similar(StepRows(batch.rows, batch.rows, decode).decode or decode, batch.page)
    out = torch.empty_like(batch.q)

    def work() -> None:
        for group in groups:
            mine = sent[group.first : group.last]
            out[mine] = _decode(batch.q[mine], batch.kv[:, 0], batch.kv[:, 1], group, poisoned=False)

    return work, out
