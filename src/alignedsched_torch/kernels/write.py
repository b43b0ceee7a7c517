"""Rope and the KV write of a step's rows in one launch: each query, key and value is read once and written once."""

from __future__ import annotations

import torch

from .device import rope_write_kernel
from .options import power


def rope_write(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    page: torch.Tensor,
    offset: torch.Tensor,
    kv: torch.Tensor,
) -> torch.Tensor:
    """Turn q and k by their positions, write k and v to their places in ``kv``, return q [rows, heads, head_dim].

    ``q`` [rows, heads, head_dim], ``k`` and ``v`` [rows, kv_heads, head_dim], rows any distance apart; ``cos`` and
    ``sin`` [rows, 1, head_dim / 2], contiguous; ``page`` and ``offset`` [rows], int64, page -1 for a row that is
    padding; ``kv`` as for ``decode.balanced``.
    """
    rows, heads, dim = q.shape
    _, _, kv_heads, page_size, _ = kv.shape
    group = heads // kv_heads
    out = torch.empty((rows, heads, dim), dtype=q.dtype, device=q.device)
    rope_write_kernel[(rows, kv_heads)](
        q, k, v, cos, sin, page, offset, out, kv, q.stride(0), k.stride(0), v.stride(0), kv.stride(0),
        KV_HEADS=kv_heads, GROUP=group, ROWS=1 << (group - 1).bit_length(), DIM=dim, WIDTH=power(dim // 2),
        PAGE=page_size, num_warps=1,
    )  # fmt: skip
    return out
