"""A residual's sum with the norm behind it, and the gate of an MLP, each in one launch that reads and writes rows once.

A decode step of few rows is short, and hundreds of launches stand between its products: with these, three a layer
less. Each rounds once, at its end, but for the sum, which goes on rounded as it is stored.
"""

from __future__ import annotations

import torch

from ..models.rowwise import TorchRowwise
from .device import add_norm_kernel, gate_kernel
from .options import power

BLOCK = 1024  # values of a program of ``gated``
MOST_WARPS = 16


def warps(width: int) -> int:
    """For a row of so many values (a power of two): 16 a thread, as far as a program may have threads."""
    return max(1, min(MOST_WARPS, width // 512))


class TritonRowwise(TorchRowwise):
    """See ``models.rowwise.Rowwise``. Norms without a sum in front of them are torch's, fused."""

    def __init__(self, eps: float, dtype: torch.dtype) -> None:
        super().__init__(eps, dtype, fused=True)

    def add_norm(self, x: torch.Tensor, more: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rows, count = x.shape
        x, more = x.contiguous(), more.contiguous()
        total, normed, width = torch.empty_like(x), torch.empty_like(x), power(count)
        add_norm_kernel[(rows,)](
            x, more, weight, total, normed, self.eps, COUNT=count, WIDTH=width, num_warps=warps(width)
        )
        return total, normed

    def gated(self, both: torch.Tensor) -> torch.Tensor:
        both = both.contiguous()
        rows, count = both.shape[0], both.shape[1] // 2
        out = torch.empty((rows, count), dtype=both.dtype, device=both.device)
        gate_kernel[(rows, -(-count // BLOCK))](both, out, COUNT=count, BLOCK=BLOCK, num_warps=4)
        return out
