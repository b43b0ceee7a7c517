"""A decoder of a given shape with random weights made in place: what steps take does not depend on the values."""

from __future__ import annotations

import math
from typing import Any

import torch

from ..kernels.choice import decoder_for
from ..models import Decoder, ModelConfig
from ..models.weights import Layer, Weights

# Shapes of published config.json files: what is measured where no model is given.
TINY: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 512, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 8192, "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0, "tie_word_embeddings": False, "torch_dtype": "float32",
}  # fmt: skip
LLAMA_8B: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 128_256, "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}  # fmt: skip


def random_decoder(raw: dict[str, Any], dtype: torch.dtype, device: torch.device) -> Decoder:
    """A Llama of the shape of these fields of a ``config.json``. Raises ConfigError as ``ModelConfig`` does."""
    config = ModelConfig.from_dict(raw, "a random model")
    generator = torch.Generator(device).manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        made = torch.empty(shape, dtype=dtype, device=device)
        return made.normal_(0.0, 1 / math.sqrt(shape[-1]), generator=generator)

    def ones(*shape: int) -> torch.Tensor:
        return torch.ones(shape, dtype=dtype, device=device)

    c = config
    q, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
    layers = [
        Layer(
            ones(c.hidden), drawn(q + 2 * kv, c.hidden), drawn(c.hidden, q), ones(c.hidden),
            drawn(2 * c.intermediate, c.hidden), drawn(c.hidden, c.intermediate),
        )
        for _ in range(c.layers)
    ]  # fmt: skip
    return decoder_for(config, Weights(drawn(c.vocab, c.hidden), ones(c.hidden), drawn(c.vocab, c.hidden), layers))
