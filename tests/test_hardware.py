"""Presets, capacities, and reading a model's shape from its config."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignedsched.costs import ModelCosts
from alignedsched.errors import ConfigError
from alignedsched.hardware import GPUS, LINKS, MODELS, MatMul, gpu_named, kv_blocks, link_named, model_named
from alignedsched.models import Model

LLAMA_8B: dict[str, Any] = {
    "model_type": "llama",
    "_name_or_path": "llama-3.1-8b",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_hidden_layers": 32,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
OPT_13B: dict[str, Any] = {
    "model_type": "opt",
    "_name_or_path": "opt-13b",
    "hidden_size": 5120,
    "word_embed_proj_dim": 5120,
    "ffn_dim": 20480,
    "num_attention_heads": 40,
    "num_hidden_layers": 40,
    "vocab_size": 50272,
    "max_position_embeddings": 2048,
    "torch_dtype": "float16",
}


# Parameters as the models' cards count them (norms and biases are left out here, hence the tolerance).
@pytest.mark.parametrize(
    ("name", "parameters", "kv_bytes"),
    [
        ("llama-3.1-8b", 8.03e9, 131_072),
        ("llama-3.1-70b", 70.55e9, 327_680),
        ("opt-13b", 12.85e9, 819_200),
    ],
)
def test_presets_have_the_published_sizes(name: str, parameters: float, kv_bytes: int) -> None:
    model = model_named(name)
    assert model.weight_bytes / 2 == pytest.approx(parameters, rel=2e-3)
    assert model.kv_bytes_per_token == kv_bytes
    assert model.with_dtypes(kv_dtype="fp8").kv_bytes_per_token == kv_bytes // 2


def test_a_config_gives_the_preset(tmp_path: Path) -> None:
    assert Model.from_config(LLAMA_8B) == model_named("llama-3.1-8b")
    assert Model.from_config(OPT_13B) == model_named("opt-13b")
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_8B), encoding="utf-8")
    assert Model.from_config(tmp_path) == Model.from_config(tmp_path / "config.json") == model_named("llama-3.1-8b")


def test_a_config_says_head_size_quantisation_and_tying() -> None:
    quantised = {"quantization_config": {"quant_method": "fp8"}, "head_dim": 64, "tie_word_embeddings": True}
    model = Model.from_config(LLAMA_8B | quantised)
    assert (model.head_size, model.weight_dtype, model.kv_dtype, model.tied_embeddings) == (64, "fp8", "bfloat16", True)
    nested = {"model_type": "llava", "text_config": LLAMA_8B, "torch_dtype": "float32"}
    assert Model.from_config(nested) == model_named("llama-3.1-8b")
    falcon = {"model_type": "falcon", "multi_query": True, "num_kv_heads": 8}
    assert Model.from_config(LLAMA_8B | falcon | {"num_key_value_heads": None}).kv_heads == 1
    new = falcon | {"new_decoder_architecture": True, "num_key_value_heads": None}
    assert Model.from_config(LLAMA_8B | new).kv_heads == 8
    switched_off = {"model_type": "qwen2", "sliding_window": 4096, "use_sliding_window": False}
    assert Model.from_config(LLAMA_8B | switched_off).layers == 32
    assert Model.from_config(LLAMA_8B | {"sliding_window": None}).layers == 32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_local_experts": 8}, "num_local_experts=8 says a mixture of experts"),
        ({"num_experts": 128}, "num_experts=128 says a mixture of experts"),
        ({"kv_lora_rank": 512}, r"kv_lora_rank=512 says multi-head latent attention \(MLA\)"),
        ({"sliding_window": 4096}, "sliding_window=4096 says sliding-window attention"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types has 'sliding_attention', not modelled"),
        ({"is_encoder_decoder": True}, "an encoder-decoder model"),
        ({"hidden_size": None}, "none of hidden_size, n_embd is there; supported: dense"),
        ({"num_hidden_layers": "32"}, "num_hidden_layers must be an integer from 1 to 2147483647, got '32'"),
        ({"num_key_value_heads": 5}, r"heads \(32\) must be a multiple of kv_heads \(5\)"),
        ({"torch_dtype": "int4"}, "torch_dtype='int4' is not modelled; supported: bfloat16"),
        ({"quantization_config": {"quant_method": "awq"}}, "quant_method='awq' is not modelled; supported: fp8"),
        ({"word_embed_proj_dim": 512}, "word_embed_proj_dim differs from hidden_size"),
    ],
)
def test_a_config_that_is_not_modelled_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Model.from_config(LLAMA_8B | change)


def test_a_config_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.json: cannot be read"):
        Model.from_config(tmp_path / "config.json")
    (tmp_path / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"config\.json: is not JSON"):
        Model.from_config(tmp_path)
    (tmp_path / "config.json").write_text("[]", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"config\.json: must hold a JSON object, got list"):
        Model.from_config(tmp_path)


@given(name=st.sampled_from(sorted(MODELS)), parallel=st.sampled_from([1, 2, 4, 8]))
def test_a_split_shares_what_it_can(name: str, parallel: int) -> None:
    model = model_named(name)
    assert model.kv_heads_on(parallel) * parallel == model.kv_heads
    assert model.kv_bytes_per_token_on(parallel) * parallel == model.kv_bytes_per_token
    assert sum(n * k for n, k in model.products_on(parallel)) * parallel == sum(n * k for n, k in model.products_on(1))
    assert model.weight_bytes / parallel <= model.weight_bytes_on(parallel) <= model.weight_bytes


def test_kv_heads_are_repeated_when_too_few_and_uneven_splits_refused() -> None:
    model = model_named("llama-3.1-8b")
    assert model.kv_heads_on(16) == 1
    for parallel in (0, 3, 64):
        with pytest.raises(ConfigError, match=f"cannot be split evenly over tensor_parallel={parallel}"):
            model.kv_heads_on(parallel)


def test_capacity_is_what_vllm_measured_on_one_card() -> None:
    """41,408 tokens on an RTX 4090 (casys-kaist/LLMServingSim, bench): the one point `RESERVED_BYTES` comes from."""
    assert kv_blocks(gpu_named("rtx4090"), model_named("llama-3.1-8b")) * 16 == pytest.approx(41_408, rel=0.01)


@given(
    gpu=st.sampled_from(["h100", "h200", "a100"]),
    utilization=st.floats(0.6, 1.0),
    block_size=st.sampled_from([1, 16, 64]),
    parallel=st.sampled_from([1, 2]),
)
def test_blocks_and_weights_fit_and_one_more_does_not(
    gpu: str, utilization: float, block_size: int, parallel: int
) -> None:
    card, model = gpu_named(gpu), model_named("llama-3.1-8b")
    blocks = kv_blocks(card, model, parallel, block_size, utilization, reserved_bytes=0)
    block, weights = block_size * model.kv_bytes_per_token_on(parallel), model.weight_bytes_on(parallel)
    room = int(card.memory_bytes * utilization)
    assert weights + blocks * block <= room < weights + (blocks + 1) * block


def test_what_does_not_fit_or_is_out_of_range_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'llama-3\.1-70b' at tensor_parallel=1 does not fit on h100: \d+ bytes"):
        kv_blocks(gpu_named("h100"), model_named("llama-3.1-70b"))
    for wrong in ({"utilization": 1.5}, {"utilization": 0.0}, {"block_size": 0}, {"reserved_bytes": -1}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            kv_blocks(gpu_named("h100"), model_named("llama-3.1-8b"), **wrong)


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="unknown GPU 'v100'; known: h200, h100, a100, rtx4090, rtxpro6000"):
        gpu_named("v100")
    with pytest.raises(ConfigError, match=r"unknown model 'gpt-5'; known: llama-3\.1-8b, llama-3\.1-70b, opt-13b"):
        model_named("gpt-5")
    with pytest.raises(ConfigError, match="unknown link 'isa'; known: pcie4, pcie5, nvlink3, nvlink4"):
        link_named("isa")


def test_every_preset_makes_sound_costs_and_links() -> None:
    for gpu in GPUS.values():
        for model in MODELS.values():
            for parallel in (1, *gpu.all_reduce):
                assert 0 < ModelCosts(gpu, model, parallel).linear_seconds(1) < 1
    for link in LINKS.values():
        assert link.bytes_per_s > 1e9
        assert 0 < link.latency_s < 1e-3


@given(rows=st.integers(1, 40_000), more=st.integers(1, 40_000), gpu=st.sampled_from(sorted(GPUS)))
def test_a_product_is_subadditive_in_rows_and_bounded_by_its_parts(rows: int, more: int, gpu: str) -> None:
    for fit in filter(None, (gpu_named(gpu).matmul, gpu_named(gpu).matmul_fp8)):
        one, two, both = (fit.seconds(m, 6144, 4096, 2) for m in (rows, more, rows + more))
        assert max(one, two) <= both <= (one + two) * (1 + 1e-12)
        assert one >= fit.t0 + max(2 * 4096 * 6144 / fit.bandwidth, 2 * rows * 4096 * 6144 / fit.flops)


def test_a_product_reads_8_bit_weights_at_half_the_bytes() -> None:
    fit = MatMul(0.0, 1e12, 1e30, 1.0)
    assert fit.seconds(1, 1000, 1000, 1) == pytest.approx((1000 * 1001 + 2000) / 1e12)
    assert fit.seconds(1, 1000, 1000, 2) == pytest.approx((2 * 1000 * 1001 + 2000) / 1e12)
