"""Decode attention over paged KV, one query a request: shared equally among programs, or one program a KV head.

    work = Workspace(programs=132 * 3, heads=32, kv_heads=8, head_dim=128, device=gpu)
    work.load(plan(lengths, 8, page_size, work.programs))  # on the host; once for many steps, see ``plan``
    balanced(q, kv, tables, work, out)

Grids and buffers depend on the workspace alone, never on the batch, so a captured CUDA graph stays valid: new plans
and new tables are written into the same buffers.
"""

from __future__ import annotations

import math

import torch
from attrs import define, frozen

from alignedsched.errors import ExecutorError

from .device import balanced_kernel, merge_kernel, unsplit_kernel
from .options import options, power
from .plan import LEAST_TOKENS, SEGMENTS, Plan

__all__ = ["DTYPES", "Tables", "Workspace", "balanced", "unsplit"]

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
MERGED_AT_ONCE = 32  # parts


@frozen(eq=False)
class Tables:
    """Where the rows of a batch have their KV. Row i of the batch is slot ``rows[i]`` of the columns.

    ``rows`` [n], ``pages`` [slots, most pages] (page numbers) and ``lengths`` [slots] (tokens to attend to, the one
    written in this step included; 0: padding, nothing is read or written), all int64 on the device.
    """

    rows: torch.Tensor
    pages: torch.Tensor
    lengths: torch.Tensor


@define(eq=False, init=False)
class Workspace:
    """Fixed buffers on the device: the plan, and the parts of runs that were cut.

    ``rows``: the most rows, needed with ``invariant`` only (16 parts for each KV head and row). Bytes of the parts:
    programs · 2 · heads / kv_heads · (head_dim + 2) · 4, or with ``invariant`` rows · heads · 16 · (head_dim + 2) · 4.
    """

    programs: int
    heads: int
    kv_heads: int
    head_dim: int
    segments: int
    rows: int
    starts: torch.Tensor
    part_sum: torch.Tensor
    part_top: torch.Tensor
    part_weight: torch.Tensor
    loaded: Plan | None

    def __init__(
        self,
        programs: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        device: torch.device,
        *,
        invariant: bool = False,
        rows: int = 0,
    ) -> None:
        group = heads // kv_heads
        parts = rows * kv_heads * SEGMENTS if invariant else 2 * programs
        self.programs, self.heads, self.kv_heads, self.head_dim = programs, heads, kv_heads, head_dim
        self.segments, self.rows = SEGMENTS if invariant else 0, rows
        self.starts = torch.zeros((3, programs + 1), dtype=torch.int32, device=device)
        self.part_sum = torch.zeros((parts, group, head_dim), dtype=torch.float32, device=device)
        self.part_top = torch.zeros((parts, group), dtype=torch.float32, device=device)
        self.part_weight = torch.zeros((parts, group), dtype=torch.float32, device=device)
        self.loaded = None

    def load(self, plan: Plan) -> None:
        """Write a plan into the buffers, on the current stream. Raises ExecutorError if it was made for others."""
        if (plan.programs, plan.kv_heads, plan.segments) != (self.programs, self.kv_heads, self.segments):
            raise ExecutorError(
                f"a plan for {plan.programs} programs, {plan.kv_heads} KV heads and {plan.segments} segments does not "
                f"fit a workspace for {self.programs}, {self.kv_heads} and {self.segments}"
            )
        host = torch.from_numpy(plan.starts)
        if self.starts.is_cuda:
            host = host.pin_memory()  # torch keeps it until the copy has run
        self.starts.copy_(host, non_blocking=True)
        self.loaded = plan


def balanced(q: torch.Tensor, kv: torch.Tensor, tables: Tables, work: Workspace, out: torch.Tensor) -> torch.Tensor:
    """Attention of each row's query to its KV, all programs with equal shares, by the plan that was loaded last.

    ``q`` and ``out`` [n, heads, head_dim]; ``kv`` [pages, 2, kv_heads, page_size, head_dim], one layer of a pool (its
    pages may be any distance apart). The plan must have been made for these rows in this order; they may have grown
    since. Rows behind the plan's own are padding: their ``out`` is left as it is. Returns ``out``.
    """
    n, page = _check(q, kv, out), kv.shape[3]
    group, dim = work.heads // work.kv_heads, work.head_dim
    if (work.heads, work.kv_heads, dim) != (q.shape[1], kv.shape[2], kv.shape[4]) or (work.segments and n > work.rows):
        raise ExecutorError(f"queries {tuple(q.shape)} and KV {tuple(kv.shape)} do not fit the workspace")
    if work.loaded is None or n < work.loaded.rows or page != work.loaded.page_size:
        raise ExecutorError(f"no plan for {n} rows with pages of {page} tokens was loaded")
    chosen, least = options(dim, kv.element_size()), max(1, LEAST_TOKENS // page)
    parts = (work.part_sum, work.part_top, work.part_weight)
    balanced_kernel[(work.programs,)](
        q, kv, tables.rows, tables.pages, tables.lengths, work.starts, out, *parts,
        q.stride(0), kv.stride(0), tables.pages.stride(0), 1 / math.sqrt(dim), work.programs,
        KV_HEADS=work.kv_heads, GROUP=group, ROWS=power(group), DIM=dim, WIDTH=power(dim),
        PAGE=page, TILE=chosen.tile, STAGES=chosen.stages, SEGMENTS=work.segments, LEAST=least,
        num_warps=chosen.warps,
    )  # fmt: skip
    merges = n * work.kv_heads if work.segments else work.programs
    merge_kernel[(merges, group)](
        tables.rows, tables.lengths, work.starts, out, *parts, work.programs,
        KV_HEADS=work.kv_heads, GROUP=group, DIM=dim, WIDTH=power(dim), PAGE=page, PARTS=MERGED_AT_ONCE,
        SEGMENTS=work.segments, LEAST=least, num_warps=4,
    )  # fmt: skip
    return out


def unsplit(q: torch.Tensor, kv: torch.Tensor, tables: Tables, out: torch.Tensor) -> torch.Tensor:
    """The same with one program for each request and KV head, never split: it waits for the longest request.

    Here to show where iteration bubbles come from; nothing needs to be planned. Rows of length 0 are left as they are.
    """
    n, page, heads, dim = _check(q, kv, out), kv.shape[3], kv.shape[2], kv.shape[4]
    group, chosen = q.shape[1] // heads, options(dim, kv.element_size())
    unsplit_kernel[(n, heads)](
        q, kv, tables.rows, tables.pages, tables.lengths, out,
        q.stride(0), kv.stride(0), tables.pages.stride(0), 1 / math.sqrt(dim),
        KV_HEADS=heads, GROUP=group, ROWS=power(group), DIM=dim, WIDTH=power(dim),
        PAGE=page, TILE=chosen.tile, STAGES=chosen.stages, num_warps=chosen.warps,
    )  # fmt: skip
    return out


def _check(q: torch.Tensor, kv: torch.Tensor, out: torch.Tensor) -> int:
    """Rows of ``q``, if the shapes and layouts are what the kernels read."""
    _, _, heads, page, dim = kv.shape
    if q.shape[1] % heads or q.shape[2] != dim or q.stride()[1:] != (dim, 1) or not out.is_contiguous():
        raise ExecutorError(f"queries {tuple(q.shape)}, strides {q.stride()}, do not fit KV {tuple(kv.shape)}")
    if kv.stride()[1:] != (heads * page * dim, page * dim, dim, 1) or kv.dtype not in DTYPES or q.dtype != kv.dtype:
        raise ExecutorError(f"KV of {kv.dtype} with strides {kv.stride()} for queries of {q.dtype}: the kernels read "
                            f"pages whole, of one dtype of {', '.join(map(str, DTYPES))}")  # fmt: skip
    return int(q.shape[0])
