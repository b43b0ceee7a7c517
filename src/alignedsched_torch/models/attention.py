"""Attention over paged KV: what a step tells it, and the one in plain torch, which others are tested against.

The torch one is vectorised, for CPUs. Decoding members are taken in groups of similar length (a factor of two in
pages), so that padding wastes less than half of the work whatever the batch; each group is one gather of pages and two
batched products. Prefill rows attend chunk by chunk to what their request has, causally.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from attrs import define, field

from ..memory import KVPool
from .decoder import Attention, rotate


@define(eq=False)
class DecodeRows:
    """The first rows of a step: one for each member that decodes. Row i is slot ``rows[i]`` of the columns."""

    rows: torch.Tensor  # [n] slots
    pages: torch.Tensor  # [slots, most pages] page numbers, any valid page behind a member's own
    lengths: torch.Tensor  # [slots] tokens to attend to, the one written in this step included; 0: padding
    known: np.ndarray[Any, np.dtype[np.int64]]  # [n] the same, on the host
    version: int = -1  # the same version means the same rows in the same order


@define(eq=False)
class ChunkRows:
    """A prefill chunk: rows ``first`` to ``last`` (exclusive) of the step are tokens ``start`` on of one request."""

    first: int
    last: int
    start: int
    pages: torch.Tensor  # [pages that hold all tokens up to the chunk's end]


@define(eq=False)
class StepRows:
    """Where the rows of one step read and write KV."""

    page: torch.Tensor  # [rows] page each row's k and v go to; -1 for padding
    offset: torch.Tensor  # [rows] and its place there
    decode: DecodeRows | None = None
    chunks: Sequence[ChunkRows] = field(factory=list)


class Backend(Protocol):
    """A way to do attention for one lane. What it keeps between steps is its own."""

    name: str
    fixed: bool
    """The device's work for rows that decode is the same for every batch: it may be captured, and padded with rows of
    length 0. What depends on the batch is written to fixed buffers by ``prepare``."""

    def prepare(self, rows: DecodeRows) -> None:
        """What the host has to do for a step, queued before the step's own work; never captured."""
        ...

    def over(self, step: StepRows) -> Attention:
        """Attention for a step that was prepared."""
        ...


class TorchAttention:
    """Plain torch; see above. It takes lengths as they are, so nothing is prepared and nothing can be captured."""

    name = "torch"
    fixed = False

    def __init__(self, pool: KVPool) -> None:
        self._pool = pool

    def prepare(self, rows: DecodeRows) -> None:
        """Nothing to do."""

    def over(self, step: StepRows) -> PagedAttention:
        return PagedAttention(self._pool, step)


@define(eq=False)
class DecodeGroup:
    """Members of similar length: rows ``first`` to ``last`` (exclusive) of the step."""

    first: int
    last: int
    pages: torch.Tensor  # [members, pages of the longest]
    lengths: torch.Tensor  # [members]


def similar(decode: DecodeRows, page_size: int) -> list[DecodeGroup]:
    """Members, longest first, in groups whose numbers of pages differ by less than a factor of two."""
    pages = -(-decode.known // page_size)
    groups, first = [], 0
    while first < len(pages):
        most = int(pages[first])
        last = max(first + 1, int(np.searchsorted(-pages, -(most // 2), side="left")))
        rows = decode.rows[first:last]
        groups.append(DecodeGroup(first, last, decode.pages[rows, :most], decode.lengths[rows]))
        first = last
    return groups


class PagedAttention:
    """Attention of one step over one pool; see ``models.Attention``. Writes of all rows come before any read."""

    def __init__(self, pool: KVPool, step: StepRows) -> None:
        self._data = pool.data
        self._step = step
        self._groups = similar(step.decode, pool.shape.page_size) if step.decode is not None else []
        self._poisoned = pool.device.poisons

    def __call__(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> torch.Tensor:
        step = self._step
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        keys, values = self._data[:, layer, 0], self._data[:, layer, 1]  # [pages, kv_heads, page, head_dim]
        keys[step.page, :, step.offset] = k
        values[step.page, :, step.offset] = v
        out = torch.empty_like(q)
        for group in self._groups:
            mine = slice(group.first, group.last)
            out[mine] = _decode(q[mine], keys, values, group, self._poisoned)
        for chunk in step.chunks:
            mine = slice(chunk.first, chunk.last)
            out[mine] = prefill(q[mine], keys, values, chunk)
        return out


def _decode(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, group: DecodeGroup, poisoned: bool
) -> torch.Tensor:
    """One query a member. q: [n, heads, dim]; returns the same shape. Reads each page once."""
    n, heads, dim = q.shape
    size, kv_heads = keys.shape[2], keys.shape[1]
    per_head = q.view(n, 1, kv_heads, heads // kv_heads, dim) / math.sqrt(dim)
    scores = per_head @ keys[group.pages].transpose(-1, -2)  # [n, pages, kv_heads, heads a kv head, page]
    scores = scores.permute(0, 2, 3, 1, 4).flatten(3)  # [n, kv_heads, heads a kv head, tokens]
    beyond = torch.arange(scores.shape[-1], device=q.device) >= group.lengths[:, None]
    scores.masked_fill_(beyond[:, None, None], -math.inf)
    weights = scores.softmax(-1).unflatten(3, (-1, size)).permute(0, 3, 1, 2, 4)
    found = values[group.pages]
    if poisoned:  # rows of a page that nobody wrote hold NaN, which a weight of 0 does not cancel
        found = found.masked_fill(beyond.view(n, -1, 1, size, 1), 0.0)
    made: torch.Tensor = (weights @ found).sum(1)
    return made.reshape(n, heads, dim)


def prefill(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, chunk: ChunkRows) -> torch.Tensor:
    """Causal attention of a chunk's rows to everything of their request up to themselves. q: [rows, heads, dim]."""
    count, heads, _ = q.shape
    end = chunk.start + count
    k, v = (side[chunk.pages].transpose(0, 1).flatten(1, 2)[:, :end] for side in (keys, values))  # [kv_heads, end, dim]
    groups = heads // k.shape[0]
    k, v = (side.repeat_interleave(groups, dim=0) if groups > 1 else side for side in (k, v))
    seen = torch.ones(count, end, dtype=torch.bool, device=q.device).tril_(chunk.start)
    made = torch.nn.functional.scaled_dot_product_attention(q.transpose(0, 1), k, v, attn_mask=seen)
    return made.transpose(0, 1)
