"""The kernels as a lane's attention: plans on the host, rope with the KV write, decoding, prefill.

A plan is made when rows come or go, and after as many steps as a page has tokens; between, the one before does, since
the rows only grow. It is written into the workspace's buffers before a step, so the step itself is the same for every
batch and can be captured.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from ..memory import KVPool
from ..models.attention import ChunkRows, DecodeRows, StepRows, prefill
from .decode import Tables, Workspace, balanced, unsplit
from .options import PER_PROCESSOR
from .plan import plan
from .write import rope_write

INTERPRETED_PROGRAMS = 4  # on a CPU: enough to cut runs, few enough to wait for
Varlen = Callable[..., Any]  # q, k, v, offsets of both, most rows of both -> causal attention of packed sequences


class TritonAttention:
    """See ``choice``; ``name`` is one of its names that begin with triton."""

    fixed = True

    def __init__(self, pool: KVPool, heads: int, members: int, name: str) -> None:
        self.name = name
        self.pool = pool
        self.varlen = varlen(pool)
        self.work: Workspace | None = None
        if name != "triton_unsplit":
            device, shape = pool.device.torch_device, pool.shape
            self.work = Workspace(
                default_programs(device), heads, shape.kv_heads, shape.head_dim, device,
                invariant=name == "triton_invariant", rows=members,
            )  # fmt: skip
        self._planned: tuple[int, int] = (-1, 0)  # the rows' version, and how long the longest is when it is time again

    def prepare(self, rows: DecodeRows) -> None:
        """Plan anew if the rows are others, or have grown by a page."""
        if self.work is None:
            return
        version, until = self._planned
        longest = int(rows.known[0]) if len(rows.known) else 0
        if version == rows.version >= 0 and longest < until:
            return
        shape, work = self.pool.shape, self.work
        work.load(plan(rows.known, shape.kv_heads, shape.page_size, work.programs, invariant=work.segments > 0))
        self._planned = (rows.version, longest + shape.page_size)

    def over(self, step: StepRows) -> TritonStep:
        return TritonStep(self, step)


class TritonStep:
    """Attention of one step; see ``models.Attention``."""

    def __init__(self, backend: TritonAttention, step: StepRows) -> None:
        self._backend = backend
        self._step = step
        decode = step.decode
        self._rows = 0 if decode is None else len(decode.rows)
        self._tables = None if decode is None else Tables(decode.rows, decode.pages, decode.lengths)

    def __call__(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> torch.Tensor:
        backend, step, n = self._backend, self._step, self._rows
        kv = backend.pool.data[:, layer]
        q = rope_write(q, k, v, cos, sin, step.page, step.offset, kv)
        out = torch.empty_like(q)
        if self._tables is not None and n:
            if backend.work is None:
                unsplit(q[:n], kv, self._tables, out[:n])
            else:
                balanced(q[:n], kv, self._tables, backend.work, out[:n])
        if step.chunks:
            prefill_chunks(q, kv, step.chunks, out, backend.varlen)
        return out


def default_programs(device: torch.device) -> int:
    """Programs that decode: three on each processor of a GPU (see ``options``)."""
    if device.type != "cuda":
        return INTERPRETED_PROGRAMS
    return int(torch.cuda.get_device_properties(device).multi_processor_count) * PER_PROCESSOR


def prefill_chunks(
    q: torch.Tensor, kv: torch.Tensor, chunks: Sequence[ChunkRows], out: torch.Tensor, varlen: Varlen | None
) -> None:
    """Causal attention of all chunks' rows: by torch's variable-length attention in one launch, else one by one.

    Their keys and values are gathered first, a copy of what they read; the library takes pages only in another layout.
    """
    if varlen is None:
        for chunk in chunks:
            mine = slice(chunk.first, chunk.last)
            out[mine] = prefill(q[mine], kv[:, 0], kv[:, 1], chunk)
        return
    first, last = chunks[0].first, chunks[-1].last  # chunks follow each other
    counts = [chunk.last - chunk.first for chunk in chunks]
    ends = [chunk.start + count for chunk, count in zip(chunks, counts, strict=True)]
    k, v = (
        torch.cat([_in_a_row(kv[:, side], chunk.pages, end) for chunk, end in zip(chunks, ends, strict=True)])
        for side in (0, 1)
    )
    out[first:last] = varlen(
        q[first:last], k, v, _offsets(counts, q.device), _offsets(ends, q.device), max(counts), max(ends)
    )


def _in_a_row(side: torch.Tensor, pages: torch.Tensor, end: int) -> torch.Tensor:
    """[end, kv_heads, head_dim] of a side [pages, kv_heads, page_size, head_dim]."""
    return side[pages].transpose(1, 2).flatten(0, 1)[:end]


def _offsets(counts: list[int], device: torch.device) -> torch.Tensor:
    """Where each begins, and the end: int32 [n + 1] on the device."""
    host = torch.zeros(len(counts) + 1, dtype=torch.int32)
    host[1:] = torch.tensor(counts).cumsum(0)
    return (host.pin_memory() if device.type == "cuda" else host).to(device, non_blocking=True)


def varlen(pool: KVPool) -> Varlen | None:
    """``torch.nn.attention.varlen.varlen_attn``, where this torch has it (2.10 and later) and it takes such KV."""
    if pool.device.torch_device.type != "cuda" or pool.shape.dtype not in (torch.bfloat16, torch.float16):
        return None
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return causal(varlen_attn)


def causal(attention: Callable[..., Any]) -> Varlen | None:
    """Torch's variable-length attention as ``prefill_chunks`` calls it, whatever this version's arguments are.

    Without ``enable_gqa`` (before 2.12) it is documented for as many KV heads as query heads, so they are repeated.
    """
    takes = inspect.signature(attention).parameters
    if "window_size" in takes:
        made = partial(attention, window_size=(-1, 0))
    elif "is_causal" in takes:
        made = partial(attention, is_causal=True)
    else:
        return None
    if "enable_gqa" in takes:
        return partial(made, enable_gqa=True)

    def repeated(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *rest: Any) -> Any:
        each = q.shape[1] // k.shape[1]
        return made(q, *(side.repeat_interleave(each, 1) if each > 1 else side for side in (k, v)), *rest)

    return repeated
