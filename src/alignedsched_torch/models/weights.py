"""Weights from safetensors files, single or sharded, straight into the form the decoder computes with.

Every tensor is checked by name, shape and kind before any memory is taken; what is missing, unknown or cut short is an
error that names it. Tensors are read one by one, q, k, v and gate, up into their fused places, so the peak is about one
copy of the weights. A tensor-parallel rank reads its share of the rows or columns only.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from attrs import define, field, frozen
from safetensors import SafetensorError, safe_open

from alignedsched.errors import ConfigError

from .config import ModelConfig

KINDS = ("F64", "F32", "F16", "BF16")  # as safetensors names them


@define(eq=False)
class Layer:
    """Weights of one layer; matrices are [out, in] as ``torch.nn.functional.linear`` takes them."""

    input_norm: torch.Tensor  # [hidden]
    qkv: torch.Tensor  # [(heads + 2 * kv_heads) * head_dim, hidden]
    out: torch.Tensor  # [hidden, heads * head_dim]
    post_norm: torch.Tensor  # [hidden]
    gate_up: torch.Tensor  # [2 * intermediate, hidden]
    down: torch.Tensor  # [hidden, intermediate]
    qkv_bias: torch.Tensor | None = None
    out_bias: torch.Tensor | None = None
    q_norm: torch.Tensor | None = None  # [head_dim]
    k_norm: torch.Tensor | None = None


@define(eq=False)
class Weights:
    """Everything a decoder computes with."""

    embedding: torch.Tensor  # [vocab, hidden]
    norm: torch.Tensor  # [hidden]
    head: torch.Tensor  # [vocab, hidden]; the embedding where they are tied
    layers: list[Layer] = field(factory=list)


@frozen
class Shard:
    """This rank's share among ``of`` tensor-parallel ranks."""

    rank: int = 0
    of: int = 1

    def rows(self, count: int) -> slice:
        """This rank's rows of ``count``."""
        return slice(self.rank * count // self.of, (self.rank + 1) * count // self.of)


@frozen
class _Place:
    """Where a tensor of a file goes: into ``rows`` of ``target``; ``cut`` is the share of the file's tensor."""

    target: torch.Tensor
    shape: tuple[int, ...]  # of the whole tensor in the file
    cut: tuple[slice, ...]
    rows: slice = slice(None)


def load_weights(
    folder: str | Path, config: ModelConfig, dtype: torch.dtype, device: torch.device, shard: Shard | None = None
) -> Weights:
    """Read all weights of a model folder. Raises MemoryError where they do not fit on the device.

    Raises ConfigError naming the file and the tensor that is missing, unknown, of another shape, or cut short, and
    when the heads cannot be shared out among the ranks.
    """
    shard = shard or Shard()
    for name, count in (("attention", config.heads), ("key/value", config.kv_heads)):
        if count % shard.of:
            raise ConfigError(f"{count} {name} heads cannot be shared out evenly among {shard.of} ranks")
    if config.intermediate % shard.of:
        raise ConfigError(f"intermediate_size {config.intermediate} is no multiple of {shard.of} ranks")
    folder = Path(folder)
    files = _files(folder)
    _check(folder, files, config, _prepare(config, dtype, torch.device("meta"), shard)[1])
    weights, places = _prepare(config, dtype, device, shard)
    for file in files:
        for name, read in _tensors(file):
            if name in places:
                place = places[name]
                place.target[place.rows].copy_(read(place.cut))
    return weights


def _check(folder: Path, files: list[Path], config: ModelConfig, places: dict[str, _Place]) -> None:
    """Names, shapes and kinds by the files' headers, before any memory is taken."""
    missing = dict(places)
    for file in files:
        for name, read in _tensors(file):
            place = missing.pop(name, None)
            if place is None:
                if name in places:
                    raise ConfigError(f"{file}: tensor {name!r} is in two files")
                if _ignorable(name, config):
                    continue
                raise ConfigError(f"{file}: tensor {name!r} belongs to no part of a {config.family} decoder")
            if read.shape != place.shape:
                raise ConfigError(
                    f"{file}: tensor {name!r} has shape {list(read.shape)}, the config says {list(place.shape)}"
                )
            if read.kind not in KINDS:
                raise ConfigError(f"{file}: tensor {name!r} is {read.kind}, supported: {', '.join(KINDS)}")
    if missing:
        some = ", ".join(sorted(missing)[:4])
        raise ConfigError(f"{folder}: {len(missing)} tensors are missing, among them {some}")


def _ignorable(name: str, config: ModelConfig) -> bool:
    """Stored though derived: rotary tables of old checkpoints, and the head where it is the embedding."""
    return name.endswith("rotary_emb.inv_freq") or (config.tied and name == "lm_head.weight")


def _prepare(
    c: ModelConfig, dtype: torch.dtype, device: torch.device, shard: Shard
) -> tuple[Weights, dict[str, _Place]]:
    """Empty weights, and for every tensor of the files its place in them."""

    def empty(*shape: int) -> torch.Tensor:
        try:
            return torch.empty(shape, dtype=dtype, device=device)
        except RuntimeError as error:
            raise MemoryError(f"the weights do not fit on {device}: {error}") from error

    whole = slice(None)
    q, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
    q_mine, kv_mine, inner = q // shard.of, kv // shard.of, c.intermediate // shard.of
    embedding = empty(c.vocab, c.hidden)
    weights = Weights(embedding, empty(c.hidden), embedding if c.tied else empty(c.vocab, c.hidden))
    places = {
        "model.embed_tokens.weight": _Place(embedding, (c.vocab, c.hidden), (whole,)),
        "model.norm.weight": _Place(weights.norm, (c.hidden,), (whole,)),
    }
    if not c.tied:
        places["lm_head.weight"] = _Place(weights.head, (c.vocab, c.hidden), (whole,))
    parts = (
        ("q", q, slice(0, q_mine)),
        ("k", kv, slice(q_mine, q_mine + kv_mine)),
        ("v", kv, slice(q_mine + kv_mine, None)),
    )
    for number in range(c.layers):
        layer = Layer(
            empty(c.hidden), empty(q_mine + 2 * kv_mine, c.hidden), empty(c.hidden, q_mine), empty(c.hidden),
            empty(2 * inner, c.hidden), empty(c.hidden, inner),
            qkv_bias=empty(q_mine + 2 * kv_mine) if c.qkv_bias else None,
            out_bias=empty(c.hidden) if c.out_bias else None,
            q_norm=empty(c.head_dim) if c.qk_norm else None,
            k_norm=empty(c.head_dim) if c.qk_norm else None,
        )  # fmt: skip
        weights.layers.append(layer)
        at = f"model.layers.{number}."
        places[at + "input_layernorm.weight"] = _Place(layer.input_norm, (c.hidden,), (whole,))
        places[at + "post_attention_layernorm.weight"] = _Place(layer.post_norm, (c.hidden,), (whole,))
        for part, rows, into in parts:
            places[f"{at}self_attn.{part}_proj.weight"] = _Place(layer.qkv, (rows, c.hidden), (shard.rows(rows),), into)
            if layer.qkv_bias is not None:
                places[f"{at}self_attn.{part}_proj.bias"] = _Place(layer.qkv_bias, (rows,), (shard.rows(rows),), into)
        places[at + "self_attn.o_proj.weight"] = _Place(layer.out, (c.hidden, q), (whole, shard.rows(q)))
        if layer.out_bias is not None:
            places[at + "self_attn.o_proj.bias"] = _Place(layer.out_bias, (c.hidden,), (whole,))
        for norm, target in (("q_norm", layer.q_norm), ("k_norm", layer.k_norm)):
            if target is not None:
                places[f"{at}self_attn.{norm}.weight"] = _Place(target, (c.head_dim,), (whole,))
        share = shard.rows(c.intermediate)
        for part, into in (("gate", slice(0, inner)), ("up", slice(inner, None))):
            places[f"{at}mlp.{part}_proj.weight"] = _Place(layer.gate_up, (c.intermediate, c.hidden), (share,), into)
        places[at + "mlp.down_proj.weight"] = _Place(layer.down, (c.hidden, c.intermediate), (whole, share))
    return weights, places


def _files(folder: Path) -> list[Path]:
    """The safetensors files of a folder: those its index names, or all there are."""
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise ConfigError(f"{folder}: no *.safetensors file; other formats are not supported")
        return files
    try:
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        files = sorted({folder / Path(str(name)).name for name in names})
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ConfigError(f"{index}: no index of weights ({error!r})") from error
    for file in files:
        if not file.exists():
            raise ConfigError(f"{index} names {file.name!r}, which is not there")
    return files


class _Reader:
    """Reads one tensor of an open file, or a cut of it."""

    def __init__(self, opened: object, name: str, file: Path) -> None:
        self._slice = opened.get_slice(name)  # type: ignore[attr-defined]
        self.shape = tuple(self._slice.get_shape())
        self.kind = str(self._slice.get_dtype())
        self._name, self._file = name, file

    def __call__(self, cut: tuple[slice, ...]) -> torch.Tensor:
        try:
            tensor: torch.Tensor = self._slice[cut if len(cut) > 1 else cut[0]]
        except (SafetensorError, RuntimeError, IndexError) as error:
            raise ConfigError(f"{self._file}: tensor {self._name!r} cannot be read: {error}") from error
        return tensor


def _tensors(file: Path) -> Iterator[tuple[str, _Reader]]:
    """Every tensor of a file by name. Raises ConfigError for a file that is no safetensors, or cut short."""
    try:
        opened = safe_open(str(file), framework="pt")
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"{file}: not a whole safetensors file: {error}") from error
    with opened as tensors:
        for name in tensors.keys():  # noqa: SIM118 - it is no dict
            yield name, _Reader(tensors, name, file)
