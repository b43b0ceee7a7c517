"""Attention chosen by name, and what each needs said in words where it is missing.

``torch`` runs anywhere. ``triton`` shares decode attention equally among programs; ``triton_invariant`` cuts requests
only where their own length says, so that a result does not depend on the batch; ``triton_unsplit`` never cuts them.
``flashinfer`` is that library's decode kernel. ``auto``: ``triton`` where it can run compiled, else ``torch``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.util import find_spec

import torch

from alignedsched.errors import ConfigError

from ..memory import KVPool
from ..models import Decoder, ModelConfig
from ..models.attention import Backend, TorchAttention
from ..models.rowwise import Rowwise, TorchRowwise
from ..models.weights import Weights

NAMES = ("auto", "torch", "triton", "triton_invariant", "triton_unsplit", "flashinfer")


def attention(name: str, pool: KVPool, heads: int, members: int) -> Backend:
    """The attention of that name for one lane: ``heads`` query heads, at most ``members`` that decode.

    Raises ConfigError for a name that is not known, or naming what it lacks here.
    """
    if name not in NAMES:
        raise ConfigError(f"attention {name!r} is not known; known: {', '.join(NAMES)}")
    lacks = missing(name, pool)
    if name == "auto":
        name = "torch" if missing("triton", pool) or not on_gpu(pool) else "triton"
    elif lacks:
        raise ConfigError(f"attention {name!r} {lacks}")
    if name == "torch":
        return TorchAttention(pool)
    if name == "flashinfer":
        from .flashinfer import FlashInferAttention

        return FlashInferAttention(pool, heads)
    from .attention import TritonAttention

    return TritonAttention(pool, heads, members, name)


def decoder_for(
    config: ModelConfig,
    weights: Weights,
    sum_ranks: Callable[[torch.Tensor], None] | None = None,
    ranks: int = 1,
) -> Decoder:
    """A decoder whose rows are dealt with in the best way there is where its weights lie."""
    return Decoder(config, weights, sum_ranks, ranks, rowwise(config.norm_eps, weights.norm))


def rowwise(eps: float, like: torch.Tensor) -> Rowwise:
    """Triton's for a GPU, where that is installed and computes in this dtype; else torch's."""
    if like.is_cuda and like.dtype != torch.float64 and find_spec("triton") is not None:
        from .rowwise import TritonRowwise

        return TritonRowwise(eps, like.dtype)
    return TorchRowwise(eps, like.dtype, fused=like.is_cuda)


def on_gpu(pool: KVPool) -> bool:
    """Whether a pool's pages lie on a CUDA device."""
    return pool.device.torch_device.type == "cuda"


def missing(name: str, pool: KVPool) -> str:
    """What an attention lacks here, as the end of a sentence; empty if nothing."""
    if name in ("auto", "torch"):
        return ""
    for package in ("flashinfer", "triton") if name == "flashinfer" else ("triton",):
        if find_spec(package) is None:
            extra = "; the extra alignedsched[kernels] has it" if package == "triton" else ""
            return f"needs the package {package}, which is not installed{extra}"
    if pool.shape.dtype == torch.float64:
        return "computes in float32 at most, and the model's dtype is float64"
    if on_gpu(pool) or (name != "flashinfer" and interpreted()):
        return ""
    way = " (or TRITON_INTERPRET=1 in the environment, which interprets kernels on the CPU, only good for tests)"
    return f"needs a CUDA device{'' if name == 'flashinfer' else way}"


def interpreted() -> bool:
    """Whether Triton's kernels are interpreted in this process."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")
