"""The shape of a dense transformer: what its weights and its KV take, and what one rank of it multiplies."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import evolve, field, frozen

from .errors import ConfigError
from .outside import is_count, read_json, show

MOST = 2**31 - 1  # of any size of a model
DTYPE_BYTES: Mapping[str, int] = {"bfloat16": 2, "float16": 2, "fp8": 1}


def _positive(instance: Model, attribute: Any, value: int) -> None:
    if not is_count(value, 1, MOST):
        raise ConfigError(
            f"model {show(instance.name)}: {attribute.name} must be an integer from 1 to {MOST}, got {show(value)}"
        )


def _dtype(instance: Model, attribute: Any, value: str) -> None:
    if value not in DTYPE_BYTES:
        raise ConfigError(
            f"model {instance.name!r}: {attribute.name} must be one of {', '.join(DTYPE_BYTES)}, got {show(value)}"
        )


@frozen
class Model:
    """A decoder-only dense transformer with full attention in every layer.

    ``gated_mlp`` says that the MLP has a gate beside its up-projection (Llama), ``tied_embeddings`` that the output
    head is the input embedding, ``learned_positions`` that positions have a weight matrix (OPT). ``weight_dtype`` is
    that of the layers' matrices; embedding and head stay at 2 bytes when it is ``fp8``, as engines keep them.

    Raises ConfigError naming the field when a value is out of range.
    """

    name: str
    layers: int = field(validator=_positive)
    hidden: int = field(validator=_positive)
    heads: int = field(validator=_positive)
    kv_heads: int = field(validator=_positive)
    head_size: int = field(validator=_positive)
    intermediate: int = field(validator=_positive)
    vocabulary: int = field(validator=_positive)
    max_positions: int = field(validator=_positive)
    gated_mlp: bool = True
    tied_embeddings: bool = False
    learned_positions: bool = False
    weight_dtype: str = field(default="bfloat16", validator=_dtype)
    kv_dtype: str = field(default="bfloat16", validator=_dtype)

    def __attrs_post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise ConfigError(
                f"model {show(self.name)}: heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})"
            )

    @property
    def kv_bytes_per_token_and_head(self) -> int:
        """Bytes of key and value of one token in one KV head of one layer."""
        return 2 * self.head_size * DTYPE_BYTES[self.kv_dtype]

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of KV of one token over all layers and KV heads (of the whole model, not of one GPU)."""
        return self.layers * self.kv_heads * self.kv_bytes_per_token_and_head

    def kv_bytes_per_token_on(self, tensor_parallel: int) -> int:
        """Bytes of KV of one token on one of ``tensor_parallel`` GPUs; heads are repeated when there are too few."""
        return self.layers * self.kv_heads_on(tensor_parallel) * self.kv_bytes_per_token_and_head

    def kv_heads_on(self, tensor_parallel: int) -> int:
        """KV heads on one of ``tensor_parallel`` GPUs, at least 1. Raises ConfigError when the split is uneven."""
        larger, smaller = max(self.kv_heads, tensor_parallel), min(self.kv_heads, tensor_parallel)
        if tensor_parallel < 1 or self.heads % tensor_parallel or larger % smaller:
            raise ConfigError(
                f"model {show(self.name)}: {self.heads} heads and {self.kv_heads} KV heads cannot be split evenly over "
                f"tensor_parallel={tensor_parallel}"
            )
        return max(1, self.kv_heads // tensor_parallel)

    def products_on(self, tensor_parallel: int) -> tuple[tuple[int, int], ...]:
        """The four matrix products of a layer on one GPU as (outputs, inputs): qkv, attention out, up, down."""
        heads, kv_heads = self.heads // tensor_parallel, self.kv_heads_on(tensor_parallel)
        inner = -(-self.intermediate // tensor_parallel)
        return (
            ((heads + 2 * kv_heads) * self.head_size, self.hidden),
            (self.hidden, heads * self.head_size),
            ((2 if self.gated_mlp else 1) * inner, self.hidden),
            (self.hidden, inner),
        )

    def weight_bytes_on(self, tensor_parallel: int) -> int:
        """Bytes of weights on one of ``tensor_parallel`` GPUs (matrices and embeddings; norms and biases left out)."""
        size = DTYPE_BYTES[self.weight_dtype]
        layer = sum(outputs * inputs for outputs, inputs in self.products_on(tensor_parallel)) * size
        table = -(-self.vocabulary // tensor_parallel) * self.hidden * 2
        positions = self.max_positions * self.hidden * 2 if self.learned_positions else 0
        return self.layers * layer + table * (1 if self.tied_embeddings else 2) + positions

    @property
    def weight_bytes(self) -> int:
        """Bytes of the model's weights."""
        return self.weight_bytes_on(1)

    def with_dtypes(self, weight_dtype: str | None = None, kv_dtype: str | None = None) -> Model:
        """The same shape with other number formats."""
        return evolve(self, weight_dtype=weight_dtype or self.weight_dtype, kv_dtype=kv_dtype or self.kv_dtype)

    @classmethod
    def from_config(cls, source: str | os.PathLike[str] | Mapping[str, Any]) -> Model:
        """Read a Hugging Face ``config.json`` (a path to it or its folder, or its content) of a dense model.

        Raises ConfigError naming file and field when something is missing, or when the model is of a kind whose
        cost is not modelled: mixture of experts, sliding-window attention, multi-head latent attention, recurrent.
        """
        if isinstance(source, Mapping):
            return _from_fields(source, "config")
        path = Path(source)
        path = path / "config.json" if path.is_dir() else path
        content = read_json(path)
        if not isinstance(content, dict):
            raise ConfigError(f"{path}: must hold a JSON object, got {type(content).__name__}")
        return _from_fields(content, str(path))


# What a field's presence says about a model that full attention and four dense products do not describe.
_REFUSED: tuple[tuple[str, str], ...] = (
    ("num_local_experts", "a mixture of experts"),
    ("num_experts", "a mixture of experts"),
    ("n_routed_experts", "a mixture of experts"),
    ("moe_intermediate_size", "a mixture of experts"),
    ("kv_lora_rank", "multi-head latent attention (MLA)"),
    ("ssm_cfg", "a state-space model"),
    ("mamba_d_state", "a state-space hybrid"),
    ("linear_num_value_heads", "a linear-attention hybrid"),
    ("encoder_layers", "an encoder-decoder model"),
    ("is_encoder_decoder", "an encoder-decoder model"),
)
_DENSE = "supported: dense decoder-only models with full attention in every layer"
# Families that say only in code that their MLP has no gate beside the up-projection, that positions are learned, and
# that head and embedding differ where the config does not say (elsewhere transformers' own default, tied, holds).
_PLAIN_MLP = frozenset(
    [
        "bloom",
        "codegen",
        "falcon",
        "gpt2",
        "gpt_bigcode",
        "gpt_neox",
        "gptj",
        "mpt",
        "nemotron",
        "opt",
        "persimmon",
        "phi",
        "starcoder2",
        "xglm",
    ]
)
_LEARNED_POSITIONS = frozenset({"gpt2", "gpt_bigcode", "opt"})
_UNTIED = frozenset(["gpt_neox", "gptj", "llama", "mistral", "phi", "phi3", "qwen2", "qwen3", "stablelm"])


def _from_fields(config: Mapping[str, Any], where: str) -> Model:
    if isinstance(config.get("text_config"), Mapping):  # a multimodal model: its language part is what is scheduled
        config = {**config, **config["text_config"]}
    for name, kind in _REFUSED:
        if config.get(name):
            raise ConfigError(f"{where}: {name}={show(config[name])} says {kind}, whose cost is not modelled; {_DENSE}")
    _refuse_windows(config, where)
    family = str(config.get("model_type", ""))
    hidden = _number(config, where, "hidden_size", "n_embd")
    heads = _number(config, where, "num_attention_heads", "n_head")
    if config.get("word_embed_proj_dim", hidden) != hidden:
        raise ConfigError(f"{where}: word_embed_proj_dim differs from hidden_size, which is not modelled; {_DENSE}")
    one_kv_head = config.get("multi_query") and not config.get("new_decoder_architecture")
    weights, activations = _formats(config, where)
    return Model(
        name=str(config.get("_name_or_path") or family or "model"),
        layers=_number(config, where, "num_hidden_layers", "n_layer"),
        hidden=hidden,
        heads=heads,
        kv_heads=1 if one_kv_head else _number(config, where, "num_key_value_heads", "num_kv_heads", default=heads),
        head_size=_number(config, where, "head_dim", default=max(1, hidden // heads)),
        intermediate=_number(config, where, "intermediate_size", "ffn_dim", "n_inner", default=4 * hidden),
        vocabulary=_number(config, where, "vocab_size"),
        max_positions=_number(config, where, "max_position_embeddings", "n_positions"),
        gated_mlp=family not in _PLAIN_MLP,
        tied_embeddings=bool(config.get("tie_word_embeddings", family not in _UNTIED)),
        learned_positions=family in _LEARNED_POSITIONS,
        weight_dtype=weights,
        kv_dtype=activations,
    )


def _formats(config: Mapping[str, Any], where: str) -> tuple[str, str]:
    """Number formats of weights and KV; engines load 32-bit checkpoints as 16-bit ones."""
    stated = config.get("torch_dtype", config.get("dtype")) or "bfloat16"
    dtype = "bfloat16" if stated == "float32" else stated
    if dtype not in ("bfloat16", "float16"):
        raise ConfigError(f"{where}: torch_dtype={show(dtype)} is not modelled; supported: bfloat16, float16, float32")
    quantised = config.get("quantization_config")
    if not quantised:
        return dtype, dtype
    method = quantised.get("quant_method") if isinstance(quantised, Mapping) else quantised
    if method not in ("fp8", "fbgemm_fp8"):
        raise ConfigError(f"{where}: quantization_config.quant_method={show(method)} is not modelled; supported: fp8")
    return "fp8", dtype


def _refuse_windows(config: Mapping[str, Any], where: str) -> None:
    kinds = config.get("layer_types") or []
    if not isinstance(kinds, list | tuple):
        raise ConfigError(f"{where}: layer_types must be a list, got {show(kinds)}")
    other = next((kind for kind in kinds if kind != "full_attention"), None)
    if other is not None:
        raise ConfigError(f"{where}: layer_types has {show(other)}, not modelled; {_DENSE}")
    # Qwen2 states a window and switches it off in the next field.
    window = config.get("sliding_window") if config.get("use_sliding_window", True) else None
    positions = config.get("max_position_embeddings", 0)
    if isinstance(window, int) and window > 0 and not (isinstance(positions, int) and window >= positions > 0):
        raise ConfigError(
            f"{where}: sliding_window={show(window)} says sliding-window attention, not modelled; {_DENSE}"
        )


def _number(config: Mapping[str, Any], where: str, *names: str, default: int | None = None) -> int:
    for name in names:
        value = config.get(name)
        if value is None:
            continue
        if not is_count(value, 1, MOST):
            raise ConfigError(f"{where}: {name} must be an integer from 1 to {MOST}, got {show(value)}")
        return value
    if default is None:
        raise ConfigError(f"{where}: none of {', '.join(names)} is there; {_DENSE}")
    return default


# Shapes: the models' published config.json files on the Hugging Face hub.
_MODELS: tuple[Model, ...] = (
    # meta-llama/Llama-3.1-8B
    Model("llama-3.1-8b", 32, 4096, 32, 8, 128, 14336, 128_256, 131_072),
    # meta-llama/Llama-3.1-70B
    Model("llama-3.1-70b", 80, 8192, 64, 8, 128, 28672, 128_256, 131_072),
    # facebook/opt-13b
    Model(
        "opt-13b", 40, 5120, 40, 40, 128, 20480, 50_272, 2048,
        gated_mlp=False, tied_embeddings=True, learned_positions=True, weight_dtype="float16", kv_dtype="float16",
    ),
)  # fmt: skip
MODELS: Mapping[str, Model] = {model.name: model for model in _MODELS}


def model_named(name: str) -> Model:
    """The preset of that name. Raises ConfigError listing the known ones."""
    if name not in MODELS:
        raise ConfigError(
            f"unknown model {show(name)}; known: {', '.join(MODELS)} (or read one with Model.from_config)"
        )
    return MODELS[name]
