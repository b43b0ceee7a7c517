"""A tiny random model folder, for demos and tests: the shape of a family, weights drawn from a seed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from alignedsched.errors import ConfigError

from .models.config import FAMILIES, ModelConfig

BYTES, END = 256, "<|end|>"
_NAMES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}


def write_tiny(
    folder: str | Path,
    family: str = "llama",
    *,
    vocab: int = 257,
    hidden: int = 128,
    layers: int = 4,
    heads: int = 4,
    kv_heads: int = 2,
    positions: int = 8192,
    tied: bool = False,
    seed: int = 0,
) -> ModelConfig:
    """Write ``config.json`` and ``model.safetensors`` into a folder (made if it is not there).

    With a vocabulary of 257 or more there is a ``tokenizer.json`` too: a token a byte, and one that ends a text.

    Raises ConfigError for an unknown family or a shape that is none.
    """
    if family not in FAMILIES:
        raise ConfigError(f"family {family!r} is not supported; supported: {', '.join(FAMILIES)}")
    raw: dict[str, Any] = {
        "architectures": [_NAMES[family]],
        "model_type": family,
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": hidden // heads,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "max_position_embeddings": positions,
        "tie_word_embeddings": tied,
        "torch_dtype": "float32",
        "bos_token_id": None,
        "eos_token_id": None,
    }
    if family == "mistral":
        raw["sliding_window"] = None
    config = ModelConfig.from_dict(raw, "tiny")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")
    save_file(
        _tensors(config, torch.Generator().manual_seed(seed)), str(folder / "model.safetensors"), {"format": "pt"}
    )
    if vocab > BYTES:
        _tokenizer().save(str(folder / "tokenizer.json"))
    return config


def _tokenizer() -> Tokenizer:
    """Bytes as tokens, in the order of the alphabet that byte-level tokenizers share."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({character: number for number, character in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END])
    return tokenizer


def _tensors(c: ModelConfig, generator: torch.Generator) -> dict[str, torch.Tensor]:
    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) / math.sqrt(shape[-1])

    q, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
    tensors = {"model.embed_tokens.weight": torch.randn((c.vocab, c.hidden), generator=generator)}
    for number in range(c.layers):
        at = f"model.layers.{number}."
        tensors |= {
            at + "input_layernorm.weight": torch.ones(c.hidden),
            at + "post_attention_layernorm.weight": torch.ones(c.hidden),
            at + "self_attn.q_proj.weight": 2 * drawn(q, c.hidden),
            at + "self_attn.k_proj.weight": 2 * drawn(kv, c.hidden),
            at + "self_attn.v_proj.weight": drawn(kv, c.hidden),
            at + "self_attn.o_proj.weight": drawn(c.hidden, q),
            at + "mlp.gate_proj.weight": drawn(c.intermediate, c.hidden),
            at + "mlp.up_proj.weight": drawn(c.intermediate, c.hidden),
            at + "mlp.down_proj.weight": drawn(c.hidden, c.intermediate),
        }
        if c.qkv_bias:
            for part, rows in (("q", q), ("k", kv), ("v", kv)):
                tensors[f"{at}self_attn.{part}_proj.bias"] = 0.1 * torch.randn((rows,), generator=generator)
        if c.qk_norm:
            for part in ("q", "k"):
                tensors[f"{at}self_attn.{part}_norm.weight"] = torch.ones(c.head_dim)
    tensors["model.norm.weight"] = torch.ones(c.hidden)
    if not c.tied:
        tensors["lm_head.weight"] = drawn(c.vocab, c.hidden)
    return tensors
