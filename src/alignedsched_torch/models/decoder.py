"""The decoder: token ids to logits over packed rows. One forward pass for all four families.

Rows of one step lie packed: first a row for each decoding member, then the rows of the prefill chunks. What depends
on KV is behind ``Attention``; everything else is the same arithmetic for each row, so a row's result does not depend
on who else is in the step, up to the order in which a matrix product adds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody knows it by

from .config import ModelConfig
from .rowwise import Rowwise, TorchRowwise
from .weights import Layer, Weights


class Attention(Protocol):
    """Attention over paged KV for the rows of one step."""

    def __call__(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> torch.Tensor:
        """Turn q and k by their positions (``rotate``), write k and v to their places, attend for q.

        ``q`` and the result are [rows, heads, head_dim]; ``k`` and ``v`` [rows, kv_heads, head_dim]; ``cos`` and
        ``sin`` [rows, 1, head_dim / 2]. Rows may be any distance apart.
        """
        ...


class Decoder:
    """A model's arithmetic. ``sum_ranks`` adds a tensor over tensor-parallel ranks, in place. ``rowwise``: what is done
    to rows between the products (None: torch's).
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        sum_ranks: Callable[[torch.Tensor], None] | None = None,
        ranks: int = 1,
        rowwise: Rowwise | None = None,
    ) -> None:
        self.config = config
        self.weights = weights
        self.ranks = ranks
        self.heads = config.heads // ranks
        self.kv_heads = config.kv_heads // ranks
        self._sum_ranks = sum_ranks
        self._inverse = frequencies(config).to(weights.norm.device)
        self._angles = weights.norm.dtype if weights.norm.dtype == torch.float64 else torch.float32
        self._rows = rowwise or TorchRowwise(config.norm_eps, weights.norm.dtype, fused=weights.norm.is_cuda)

    def hidden(self, tokens: torch.Tensor, positions: torch.Tensor, attention: Attention) -> torch.Tensor:
        """Final hidden states [rows, hidden] of ``tokens`` [rows] at ``positions`` [rows]."""
        x = F.embedding(tokens, self.weights.embedding)
        angles = positions.to(self._angles)[:, None] * self._inverse.to(self._angles)
        cos, sin = angles.cos().to(x.dtype)[:, None], angles.sin().to(x.dtype)[:, None]  # [rows, 1, head_dim / 2]
        layers, rows = self.weights.layers, self._rows
        behind = [*(layer.input_norm for layer in layers[1:]), self.weights.norm]  # the norm after each layer
        normed = rows.norm(x, layers[0].input_norm)
        for number, (layer, following) in enumerate(zip(layers, behind, strict=True)):
            x, normed = rows.add_norm(x, self._attend(number, layer, normed, cos, sin, attention), layer.post_norm)
            x, normed = rows.add_norm(x, self._mlp(layer, normed), following)
        return normed

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[rows, vocab] of hidden states [rows, hidden]."""
        return F.linear(hidden, self.weights.head)

    def _attend(
        self, number: int, layer: Layer, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, attention: Attention
    ) -> torch.Tensor:
        c = self.config
        qkv = F.linear(x, layer.qkv, layer.qkv_bias).view(x.shape[0], -1, c.head_dim)
        q, k, v = qkv.split((self.heads, self.kv_heads, self.kv_heads), dim=1)
        if layer.q_norm is not None and layer.k_norm is not None:
            q, k = self._rows.norm(q, layer.q_norm), self._rows.norm(k, layer.k_norm)
        made = attention(number, q, k, v, cos, sin)
        return self._summed(F.linear(made.reshape(x.shape[0], -1), layer.out), layer.out_bias)

    def _mlp(self, layer: Layer, x: torch.Tensor) -> torch.Tensor:
        return self._summed(F.linear(self._rows.gated(F.linear(x, layer.gate_up)), layer.down), None)

    def _summed(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        if self._sum_ranks is not None:
            self._sum_ranks(x)
        return x if bias is None else x + bias


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary positions: the two halves of each head turned by an angle a position. x: [rows, heads, head_dim]."""
    one, two = x.chunk(2, dim=-1)
    return torch.cat((one * cos - two * sin, two * cos + one * sin), dim=-1)


def frequencies(config: ModelConfig) -> torch.Tensor:
    """Inverse frequencies [head_dim / 2] in float64, scaled as Llama 3.1 does where the config says so."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.int64).to(torch.float32) / config.head_dim
    inverse = 1.0 / (config.rope_theta**exponents)
    scaling = config.rope_scaling
    if scaling is None:
        return inverse
    wavelength = 2 * math.pi / inverse
    low = scaling.original_positions / scaling.low_freq_factor
    high = scaling.original_positions / scaling.high_freq_factor
    smooth = (scaling.original_positions / wavelength - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    between = (1 - smooth) * inverse / scaling.factor + smooth * inverse
    slowed = torch.where(wavelength > low, inverse / scaling.factor, inverse)
    return torch.where((wavelength <= low) & (wavelength >= high), between, slowed)
