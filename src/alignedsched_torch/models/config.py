"""What a model folder's ``config.json`` says, checked: dense decoders of the Llama, Qwen2, Qwen3 and Mistral families.

One decoder covers them; they differ in biases, in norms of q and k, and in how rotary positions are scaled. Whatever
else a configuration asks for is refused by name: a model that runs, runs right.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import frozen

from alignedsched.errors import ConfigError

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
_REFUSED = {  # field -> values that mean nothing special
    "sliding_window": (None,),
    "pretraining_tp": (None, 1),
    "mlp_bias": (None, False),
    "hidden_act": ("silu",),
}


@frozen
class Llama3Rope:
    """Rotary frequencies of Llama 3.1 and later: low ones slowed down by ``factor``, a smooth passage between."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_positions: int


@frozen
class ModelConfig:
    """Shape and switches of one decoder."""

    family: str
    vocab: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    norm_eps: float
    rope_theta: float
    rope_scaling: Llama3Rope | None
    max_positions: int
    tied: bool  # the output matrix is the embedding
    qkv_bias: bool
    out_bias: bool
    qk_norm: bool
    dtype: str
    eos: tuple[int, ...]

    @classmethod
    def from_folder(cls, folder: str | Path) -> ModelConfig:
        """Read ``config.json`` (and ``generation_config.json`` for stop tokens, where there is one).

        Raises ConfigError naming the file and the field.
        """
        where = Path(folder) / "config.json"
        raw = _read(where)
        config = cls.from_dict(raw, str(where))
        generation = Path(folder) / "generation_config.json"
        if generation.exists():
            more = _eos(_read(generation).get("eos_token_id"), str(generation))
            config = _with_eos(config, more)
        return config

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], where: str = "config") -> ModelConfig:
        """From the parsed content of a ``config.json``."""
        family = raw.get("model_type")
        if family not in FAMILIES:
            raise ConfigError(f"{where}: model_type {family!r} is not supported; supported: {', '.join(FAMILIES)}")
        for name, plain in _REFUSED.items():
            if name in raw and raw[name] not in plain and not (name == "sliding_window" and _no_window(raw)):
                raise ConfigError(f"{where}: {name} = {raw[name]!r} is not supported; it may be {plain[0]!r}")
        if raw.get("quantization_config") is not None:
            raise ConfigError(f"{where}: quantization_config is not supported; give plain weights")
        get = _Getter(raw, where)
        heads, hidden = get.whole("num_attention_heads"), get.whole("hidden_size")
        kv_heads = get.whole("num_key_value_heads", heads)
        head_dim = get.whole("head_dim", hidden // heads)
        if heads % kv_heads:
            raise ConfigError(f"{where}: num_attention_heads {heads} is no multiple of num_key_value_heads {kv_heads}")
        if head_dim % 2:
            raise ConfigError(f"{where}: head_dim {head_dim} must be even")
        theta, scaling = _rope(raw, get)
        bias = get.flag("attention_bias", family == "qwen2")
        return cls(
            family=str(family),
            vocab=get.whole("vocab_size"),
            hidden=hidden,
            intermediate=get.whole("intermediate_size"),
            layers=get.whole("num_hidden_layers"),
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            norm_eps=get.number("rms_norm_eps", 1e-6),
            rope_theta=theta,
            rope_scaling=scaling,
            max_positions=get.whole("max_position_embeddings"),
            tied=get.flag("tie_word_embeddings", False),
            qkv_bias=bias,
            out_bias=bias and family != "qwen2",
            qk_norm=family == "qwen3",
            dtype=str(raw.get("dtype") or raw.get("torch_dtype") or "float32"),
            eos=_eos(raw.get("eos_token_id"), where),
        )


@frozen
class _Getter:
    """Fields of a configuration, or an error that names the one that is wrong."""

    raw: Mapping[str, Any]
    where: str

    def whole(self, name: str, default: int | None = None) -> int:
        value = self.raw.get(name)
        value = default if value is None else value
        if type(value) is not int or value < 1:
            raise ConfigError(f"{self.where}: {name} must be a whole number of at least 1, got {value!r}")
        return value

    def flag(self, name: str, default: bool) -> bool:
        value = self.raw.get(name)
        value = default if value is None else value
        if type(value) is not bool:
            raise ConfigError(f"{self.where}: {name} must be true or false, got {value!r}")
        return value

    def number(self, name: str, default: float | None = None, among: Mapping[str, Any] | None = None) -> float:
        value = (self.raw if among is None else among).get(name, default)
        if type(value) not in (int, float) or not 0 < value < float("inf"):
            raise ConfigError(f"{self.where}: {name} must be a number above 0, got {value!r}")
        return float(value)


def _read(where: Path) -> dict[str, Any]:
    try:
        raw = json.loads(where.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{where}: no such file; a model folder has a config.json") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{where}: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{where}: must hold a JSON object, got {type(raw).__name__}")
    return raw


def _no_window(raw: Mapping[str, Any]) -> bool:
    """Qwen names a window that it uses only where ``use_sliding_window`` says so."""
    return raw.get("use_sliding_window") is False


def _rope(raw: Mapping[str, Any], get: _Getter) -> tuple[float, Llama3Rope | None]:
    """Base and scaling, as written before and since transformers 5 (``rope_scaling``, ``rope_parameters``)."""
    said: Any = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if not isinstance(said, Mapping):
        raise ConfigError(f"{get.where}: rope_scaling must be an object, got {said!r}")
    kind = said.get("rope_type", said.get("type", "default"))
    theta = get.number("rope_theta", 10_000.0, said if "rope_theta" in said else raw)
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise ConfigError(f"{get.where}: rope type {kind!r} is not supported; supported: default, llama3")
    original = said.get("original_max_position_embeddings")
    if type(original) is not int or original < 1:
        raise ConfigError(f"{get.where}: original_max_position_embeddings must be a whole number, got {original!r}")
    low, high = (get.number(f"{end}_freq_factor", among=said) for end in ("low", "high"))
    return theta, Llama3Rope(get.number("factor", among=said), low, high, original)


def _eos(value: object, where: str) -> tuple[int, ...]:
    values: list[Any] = value if isinstance(value, list) else [] if value is None else [value]
    if any(type(token) is not int for token in values):
        raise ConfigError(f"{where}: eos_token_id must be a whole number or a list of them, got {value!r}")
    return tuple(token for token in values if token >= 0)


def _with_eos(config: ModelConfig, more: tuple[int, ...]) -> ModelConfig:
    from attrs import evolve

    return evolve(config, eos=tuple(dict.fromkeys((*config.eos, *more))))
