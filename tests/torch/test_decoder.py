"""The decoder equals transformers, family by family, and refuses by name what it does not support."""

from __future__ import annotations

import json
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from alignedsched.errors import ConfigError
from alignedsched_torch.devices import CpuDevice
from alignedsched_torch.memory import KVPool, PageShape
from alignedsched_torch.models import Decoder, ModelConfig, Shard, load_weights, weights
from alignedsched_torch.models.attention import ChunkRows, DecodeRows, PagedAttention, StepRows
from alignedsched_torch.models.rowwise import TorchRowwise
from alignedsched_torch.tiny import write_tiny

transformers = pytest.importorskip("transformers")

SHAPE = {
    "vocab_size": 96, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 6,
    "num_key_value_heads": 2, "max_position_embeddings": 256,
}  # fmt: skip
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama3-rope": (
        "Llama",
        {
            "rope_parameters": {
                "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
            }
        },
    ),
    "llama-tied-bias": ("Llama", {"tie_word_embeddings": True, "attention_bias": True}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "mistral": ("Mistral", {"sliding_window": None, "head_dim": 8}),
}  # fmt: skip


def write(case: str, folder: Path) -> Any:
    """A random checkpoint written by transformers; returns its model."""
    family, more = CASES[case]
    torch.manual_seed(sorted(CASES).index(case))
    config = getattr(transformers, f"{family}Config")(**SHAPE, **more)
    model = getattr(transformers, f"{family}ForCausalLM")(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms are constants when new
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder, max_shard_size="60KB" if case == "qwen3" else "1GB")
    return model


def logits_of(folder: Path, tokens: list[int], cuts: list[int], page_size: int, dtype: torch.dtype) -> torch.Tensor:
    """Logits at every position: prefill in chunks cut at ``cuts``, then token by token."""
    config = ModelConfig.from_folder(folder)
    device = CpuDevice()
    decoder = Decoder(config, load_weights(folder, config, dtype, device.torch_device))
    pool = KVPool("d0", device, PageShape(config.layers, config.kv_heads, config.head_dim, page_size, dtype), 64)
    pool.hold("other", 3)
    out = []
    spans = [*zip([0, *cuts], cuts, strict=False), *((i, i + 1) for i in range(cuts[-1] if cuts else 0, len(tokens)))]
    for start, end in spans:
        pool.hold("a", end)
        pages = torch.tensor(pool.pages("a"))
        place = torch.arange(start, end)
        rows = StepRows(pages[place // page_size], place % page_size)
        if end - start == 1:
            rows.decode = DecodeRows(torch.tensor([0]), pages[None], torch.tensor([end]), np.array([end]))
        else:
            rows.chunks = [ChunkRows(0, end - start, start, pages)]
        hidden = decoder.hidden(torch.tensor(tokens[start:end]), place, PagedAttention(pool, rows))
        out.append(decoder.logits(hidden))
    return torch.cat(out)


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_those_of_transformers(case: str, tmp_path: Path) -> None:
    model = write(case, tmp_path)
    tokens = torch.randint(0, 96, (50,), generator=torch.Generator().manual_seed(3)).tolist()
    with torch.no_grad():
        wanted = model(torch.tensor([tokens])).logits[0]
    for page_size in (1, 4, 16):
        got = logits_of(tmp_path, tokens, [7, 40], page_size, torch.float64)
        assert torch.allclose(got, wanted, atol=1e-5, rtol=1e-5), float((got - wanted).abs().max())
    narrow = logits_of(tmp_path, tokens, [7, 40], 16, torch.float32)
    assert float((narrow.double() - wanted).abs().max()) < 1e-4


@pytest.mark.parametrize(("dtype", "bits"), [(torch.float32, 20), (torch.bfloat16, 5)])
def test_fused_norms_are_the_same_but_for_rounding(dtype: torch.dtype, bits: int, tmp_path: Path) -> None:
    write("qwen3", tmp_path)  # norms of q and k too, which are parts of one tensor
    config, calls = ModelConfig.from_folder(tmp_path), []
    loaded = load_weights(tmp_path, config, dtype, torch.device("cpu"))
    plain = Decoder(config, loaded)
    fused = Decoder(config, loaded, rowwise=TorchRowwise(config.norm_eps, dtype, fused=True))
    fused_norm = torch.nn.functional.rms_norm
    rows = torch.arange(7)

    def counted(*given: Any) -> torch.Tensor:
        calls.append(given)
        return fused_norm(*given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "rms_norm", counted)
        made = [decoder.hidden(rows, rows, lambda layer, q, *_: q).double() for decoder in (plain, fused)]
    assert len(calls) == 4 * config.layers + 1, "on a CPU the plain one's tokens are those of transformers to the bit"
    assert float(((made[0] - made[1]).abs() / (1 + made[0].abs())).max()) < 2.0**-bits


@pytest.mark.parametrize("case", ["llama", "qwen2", "qwen3"])
def test_the_shards_of_two_ranks_add_up(case: str, tmp_path: Path) -> None:
    write(case, tmp_path)
    config = ModelConfig.from_folder(tmp_path)
    cpu = torch.device("cpu")
    whole = load_weights(tmp_path, config, torch.float64, cpu)
    halves = [load_weights(tmp_path, config, torch.float64, cpu, Shard(rank, 2)) for rank in range(2)]
    x = torch.randn(5, config.hidden, dtype=torch.float64)
    for number, layer in enumerate(whole.layers):
        parts = [half.layers[number] for half in halves]
        gate, up = (x @ layer.gate_up.T).chunk(2, -1)
        split = torch.zeros_like(x)
        for part in parts:
            g, u = (x @ part.gate_up.T).chunk(2, -1)
            split += (torch.nn.functional.silu(g) * u) @ part.down.T
        assert torch.allclose(split, (torch.nn.functional.silu(gate) * up) @ layer.down.T)
        assert sum(part.qkv.shape[0] for part in parts) == layer.qkv.shape[0]
        assert torch.equal(torch.cat([part.out for part in parts], 1), layer.out)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_a_tiny_model_is_one_that_transformers_loads_too(family: str, tmp_path: Path) -> None:
    write_tiny(tmp_path, family, layers=2, hidden=32)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    tokens = list(range(3, 40))
    with torch.no_grad():
        wanted = model(torch.tensor([tokens])).logits[0]
    assert torch.allclose(logits_of(tmp_path, tokens, [20], 8, torch.float64), wanted, atol=1e-5)


def edit(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2' is not supported"),
        ({"sliding_window": 4096}, "sliding_window = 4096"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ({"num_hidden_layers": "three"}, "num_hidden_layers must be a whole number"),
        ({"num_key_value_heads": 3}, "no multiple of num_key_value_heads 3"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope type 'yarn'"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"num_hidden_layers": 3}, "9 tensors are missing, among them model.layers.2"),
        ({"num_hidden_layers": 1}, "belongs to no part"),
        ({"intermediate_size": 60}, "has shape .* the config says"),
        ({"vocab_size": 300}, r"'lm_head.weight' has shape \[257, 32\], the config says \[300, 32\]"),
        ({"hidden_size": 10**12}, "the config says"),  # and nobody tried to get that much memory
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings must be true or false"),
        ({"attention_bias": 1}, "attention_bias must be true or false"),
    ],
)
def test_what_is_not_supported_or_does_not_fit_is_refused_by_name(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    write_tiny(tmp_path, "llama", layers=2, hidden=32)
    edit(tmp_path, **change)
    with pytest.raises(ConfigError, match=message) as caught:
        load_weights(tmp_path, ModelConfig.from_folder(tmp_path), torch.float32, torch.device("cpu"))
    assert str(tmp_path) in str(caught.value)


def test_loading_holds_one_tensor_beside_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = write_tiny(tmp_path, "llama", layers=3, hidden=64)
    alive, most, largest = 0, 0, 0

    def gone(size: int) -> None:
        nonlocal alive
        alive -= size

    read = weights._Reader.__call__

    def counted(self: weights._Reader, cut: tuple[slice, ...]) -> torch.Tensor:
        nonlocal alive, most, largest
        tensor = read(self, cut)
        weakref.finalize(tensor, gone, tensor.nbytes)
        alive, largest = alive + tensor.nbytes, max(largest, tensor.nbytes)
        most = max(most, alive)
        return tensor

    monkeypatch.setattr(weights._Reader, "__call__", counted)
    load_weights(tmp_path, config, torch.float32, torch.device("cpu"))
    assert most == largest > 0


def test_weights_of_another_kind_and_in_two_files_are_refused_by_name(tmp_path: Path) -> None:
    config = write_tiny(tmp_path, "llama", layers=1, hidden=32)
    tensors = load_file(tmp_path / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    save_file(tensors | {name: tensors[name].to(torch.int8)}, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match=rf"model\.safetensors: tensor '{name}' is I8, supported: F64"):
        load_weights(tmp_path, config, torch.float32, torch.device("cpu"))
    save_file(tensors, tmp_path / "model.safetensors")
    save_file({name: tensors[name]}, tmp_path / "more.safetensors")
    with pytest.raises(ConfigError, match=rf"more\.safetensors: tensor '{name}' is in two files"):
        load_weights(tmp_path, config, torch.float32, torch.device("cpu"))


def test_files_that_are_cut_short_or_missing_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.json: no such file"):
        ModelConfig.from_folder(tmp_path)
    config = write_tiny(tmp_path, "llama", layers=1, hidden=32)
    file = tmp_path / "model.safetensors"
    whole = file.read_bytes()
    for kept in (4, 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:kept])
        with pytest.raises(ConfigError, match=r"model\.safetensors: not a whole safetensors file"):
            load_weights(tmp_path, config, torch.float32, torch.device("cpu"))
    file.unlink()
    with pytest.raises(ConfigError, match=r"no \*\.safetensors file"):
        load_weights(tmp_path, config, torch.float32, torch.device("cpu"))
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "gone.safetensors"}}')
    with pytest.raises(ConfigError, match=r"names 'gone\.safetensors', which is not there"):
        load_weights(tmp_path, config, torch.float32, torch.device("cpu"))
