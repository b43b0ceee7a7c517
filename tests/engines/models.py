"""Model folders for engines, made on the spot: a tiny random llama, and configurations under hub names."""

from __future__ import annotations

import json
from pathlib import Path

from alignedsched_torch.tiny import write_tiny

# What vLLM's own tests ask the hub for: they need a configuration and a tokenizer, no weights.
OPT = {
    "architectures": ["OPTForCausalLM"],
    "model_type": "opt",
    "vocab_size": 50272,
    "hidden_size": 768,
    "ffn_dim": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "word_embed_proj_dim": 768,
    "max_position_embeddings": 2048,
    "activation_function": "relu",
    "do_layer_norm_before": True,
    "bos_token_id": 2,
    "eos_token_id": 2,
    "pad_token_id": 1,
    "torch_dtype": "float16",
}


def tiny_llama(folder: Path, *, positions: int = 4096) -> Path:
    """Two layers, two KV heads of 64, weights drawn from a seed; with a tokenizer of bytes."""
    write_tiny(folder, "llama", vocab=512, hidden=256, layers=2, heads=4, kv_heads=2, positions=positions)
    return folder


def hub_names(root: Path) -> None:
    """Folders called as the hub calls the models of vLLM's scheduler tests, for tests that run in ``root``."""
    llama = tiny_llama(root / "tiny-llama", positions=32768)
    opt = root / "opt"
    opt.mkdir(exist_ok=True)
    (opt / "config.json").write_text(json.dumps(OPT))
    (opt / "tokenizer.json").write_text((llama / "tokenizer.json").read_text())
    names = dict.fromkeys(("facebook/opt-125m", "facebook/opt-350m"), opt)
    names |= dict.fromkeys(
        ("Qwen/Qwen3-0.6B", "Qwen/Qwen2.5-VL-3B-Instruct", "hmellor/tiny-random-LlamaForCausalLM"), llama
    )
    for name, folder in names.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).symlink_to(folder)
