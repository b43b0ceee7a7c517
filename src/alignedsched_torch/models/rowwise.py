"""What is done to each row between two products: norms, sums of residuals, and the gate of the MLP."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody knows it by


class Rowwise(Protocol):
    """A way to do it. Rows and what comes of them are [..., width], contiguous where a sum or a gate is asked for."""

    def norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Root-mean-square norm of the last dimension, times ``weight`` [width]."""
        ...

    def add_norm(self, x: torch.Tensor, more: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``x + more``, and its norm."""
        ...

    def gated(self, both: torch.Tensor) -> torch.Tensor:
        """[rows, width] of gates and values [rows, 2 width]: silu of the first half times the second."""
        ...


class TorchRowwise:
    """In torch: norms in float32 at least, as the checkpoints were trained.

    On a GPU a norm is torch's own, which is fused and rounds once, behind the weight; elsewhere, and in float64, it
    rounds where ``transformers`` does.
    """

    def __init__(self, eps: float, dtype: torch.dtype, *, fused: bool = False) -> None:
        self.eps = eps
        self._wide = dtype if dtype == torch.float64 else torch.float32
        self._fused = fused and dtype != torch.float64

    def norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        if self._fused:
            return F.rms_norm(x, weight.shape, weight, self.eps)
        wide = x.to(self._wide)
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return weight * wide.to(x.dtype)

    def add_norm(self, x: torch.Tensor, more: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = x + more
        return x, self.norm(x, weight)

    def gated(self, both: torch.Tensor) -> torch.Tensor:
        gate, up = both.chunk(2, dim=-1)
        return F.silu(gate) * up
