"""Decode attention kernels side by side: this project's, torch's variable-length attention, FlashInfer's.

Each gets the same queries and the same KV in its own layout, pages scattered; one layer. ``library`` is torch's
``varlen_attn`` (FlashAttention), which wants pages of 256 tokens; FlashInfer and this project's kernels read pages of
``page`` tokens.
"""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Callable
from importlib.util import find_spec

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
        found["library"] = library
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


def library(batch: Batch) -> tuple[Work, torch.Tensor]:
    """Torch's variable-length attention over pages, as it chooses to split. Raises RuntimeError where it has none."""
    from torch.nn.attention.varlen import varlen_attn

    takes = inspect.signature(varlen_attn).parameters
    if not {"block_table", "seqused_k", "enable_gqa"} <= set(takes):
        raise RuntimeError(f"varlen_attn of torch {torch.__version__} reads no pages")
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

    out = work()
    for row in batch.checked():
        mine = table[row, : each[row]].astype(np.int64)
        keys, values = (side[mine].flatten(0, 1)[: lengths[row]].transpose(0, 1) for side in (k, v))
        error = off(batch.q[row], keys, values, out[row])
        if not error < TOLERANCE:
            raise RuntimeError(f"row {row} is off by {error}")
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
