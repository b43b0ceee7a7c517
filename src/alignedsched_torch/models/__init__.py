"""Models: configuration, weights, and the one decoder."""

from __future__ import annotations

from .config import ModelConfig
from .decoder import Attention, Decoder
from .weights import Shard, Weights, load_weights

__all__ = ["Attention", "Decoder", "ModelConfig", "Shard", "Weights", "load_weights"]
