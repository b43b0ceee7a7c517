"""How far the closed forms of what a step costs lie from published measurements.

    python -m benchmarks.fidelity_tables [--profiles DIR] [--json FILE]

Every table is predicted by the code that schedulers and simulators use, and the relative error is reported: median and
90th percentile of its size, and the median with its sign (above 0: predicted too slow). Rows marked * fitted the
coefficients; the others did not. The tables are looked for in ``../shared/profiles`` beside the repository.
"""

from __future__ import annotations

import argparse
import csv
import functools
import gzip
import hashlib
import json
import platform
import sys
import tomllib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from attrs import asdict, frozen

from alignedsched.costs import Load, ModelCosts
from alignedsched.hardware import Host, gpu_named
from alignedsched.models import Model, model_named

ROOT = Path(__file__).resolve().parents[1]
PROFILES = ROOT.parent / "shared" / "profiles"
RESULTS = ROOT / "benchmarks" / "results" / "fidelity_tables.json"
AIC = {"h200_sxm": "h200", "h100_sxm": "h100", "a100_sxm": "a100"}
RTX = {"RTX4090": "rtx4090", "RTXPRO6000": "rtxpro6000"}
Row = dict[str, str]
Case = tuple[str, float, float]  # subset, predicted, measured


@frozen
class Result:
    """Relative errors of one subset of one table."""

    table: str
    subset: str
    fitted: bool
    cases: int
    p50: float
    p90: float
    bias: float


def rows_of(folder: Path, table: str) -> Iterator[Row]:
    with gzip.open(folder / f"{table}.csv.gz", "rt", encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)


@functools.cache
def layer_costs(
    gpu: str, heads: int, kv_heads: int, surface: str = "balanced", kv_dtype: str = "bfloat16"
) -> ModelCosts:
    """Costs of a model of one layer, to compare with what was measured of one layer of one GPU."""
    shape = Model("table", 1, heads * 128, heads, kv_heads, 128, 4 * heads * 128, 1024, 131_072, kv_dtype=kv_dtype)
    return ModelCosts(gpu_named(gpu), shape, 1, surface, host=Host())


def summary(table: str, cases: Iterable[Case], fitted: Callable[[str], bool]) -> list[Result]:
    """Cases grouped by subset, as errors."""
    groups: dict[str, list[float]] = {}
    for subset, predicted, measured in cases:
        groups.setdefault(subset, []).append(predicted / measured - 1)
    results = []
    for subset, errors in groups.items():
        p50, p90 = np.percentile(np.abs(errors), (50, 90))
        figures = (round(float(figure), 4) for figure in (p50, p90, np.median(errors)))
        results.append(Result(table, subset, fitted(subset), len(errors), *figures))
    return results


def products(folder: Path) -> Iterator[Case]:
    for row in rows_of(folder, "aic_gemm"):
        gpu, fp8 = gpu_named(AIC[row["system"]]), row["gemm_dtype"] == "fp8"
        matmul = gpu.matmul_fp8 if fp8 else gpu.matmul
        m, n, k = int(row["m"]), int(row["n"]), int(row["k"])
        if matmul is not None and min(n, k) >= 1024 and n * k >= 4_000_000:
            predicted = matmul.seconds(m, n, k, 1 if fp8 else 2)
            yield f"{gpu.name} {row['gemm_dtype']}", predicted, float(row["latency_us"]) * 1e-6


def decode(folder: Path) -> Iterator[Case]:
    for row in rows_of(folder, "aic_decode_attention"):
        heads, kv_heads = int(row["num_heads"]), int(row["num_key_value_heads"])
        if row["system"] not in AIC or row["framework"] == "trtllm":
            continue
        shape = "grouped" if kv_heads < heads else "multi-head"
        n, length = int(row["batch_size"]), int(row["kv_len"])
        costs = layer_costs(AIC[row["system"]], heads, kv_heads, "balanced", row["kv_cache_dtype"])
        subset = f"{AIC[row['system']]} {row['framework']} {row['kv_cache_dtype']} {shape}"
        yield subset, costs.decode_attention_seconds(n, n * length, length), float(row["latency_us"]) * 1e-6


def prefill(folder: Path) -> Iterator[Case]:
    for row in rows_of(folder, "aic_prefill_attention"):
        heads, kv_heads = int(row["num_heads"]), int(row["num_key_value_heads"])
        if row["system"] not in AIC or row["kv_cache_dtype"] != "bfloat16":
            continue
        shape = "grouped" if kv_heads < heads else "multi-head"
        costs = layer_costs(AIC[row["system"]], heads, kv_heads)
        predicted = costs.prefill_attention_seconds(0, int(row["isl"]), int(row["batch_size"]))
        yield f"{AIC[row['system']]} {row['framework']} {shape}", predicted, float(row["latency_us"]) * 1e-6


# Heads, KV heads, hidden, intermediate of the models in the tables (their published config.json files).
SHAPES: dict[str, tuple[int, int, int, int]] = {
    "meta-llama/Llama-3.1-8B": (32, 8, 4096, 14336),
    "meta-llama/Meta-Llama-3-8B": (32, 8, 4096, 14336),
    "meta-llama/Meta-Llama-3-70B": (64, 8, 8192, 28672),
    "meta-llama/Llama-2-7b-hf": (32, 32, 4096, 11008),
    "meta-llama/Llama-2-70b-hf": (64, 8, 8192, 28672),
    "codellama/CodeLlama-34b-Instruct-hf": (64, 8, 8192, 22016),
    "Qwen/Qwen-72B": (64, 64, 8192, 24576),
    "Qwen/Qwen3-32B": (64, 8, 5120, 25600),
    "Qwen/Qwen3-30B-A3B-Instruct-2507": (32, 4, 2048, 0),  # a mixture of experts: attention only
}


def products_on(model: str, parallel: int) -> tuple[tuple[int, int], ...]:
    heads, kv_heads, hidden, inner = SHAPES[model]
    return Model(model, 1, hidden, heads, kv_heads, 128, inner, 1024, 4096).products_on(parallel)


def skew(folder: Path) -> Iterator[Case]:
    for row in rows_of(folder, "llmservingsim_decode_skew"):
        gpu, parallel = gpu_named(RTX[row["gpu"]]), int(row["tp"])
        heads, kv_heads = (count // parallel for count in SHAPES[row["model"]][:2])
        n, many, longest = int(row["n"]), int(row["nb"]), int(row["kv_big"])
        total = many * longest + (n - many) * int(row["kvs"])
        measured, mean = float(row["t_skew_sum3_us"]) / 3e6, float(row["t_mean_sum3_us"]) / 3e6
        if row["regime"] != "pure":
            load = Load(n, total, longest, ((int(row["kp"]), int(row["kp"]) + int(row["pc"])),))
            yield (
                f"{gpu.name} mixed, gated",
                layer_costs(gpu.name, heads, kv_heads, "gated").attention_seconds(load),
                measured,
            )
            continue
        for surface in ("balanced", "gated", "unsplit"):
            costs = layer_costs(gpu.name, heads, kv_heads, surface)
            yield f"decode only, {surface}", costs.decode_attention_seconds(n, total, longest), measured
            tail = gpu.decode.t0 + longest * costs.model.kv_bytes_per_token_and_head * gpu.sms / gpu.decode.bandwidth
            binds = surface == "unsplit" or (surface == "gated" and n >= costs.gate)
            yield f"decode only, {surface}, uniform time as measured", max(mean, tail) if binds else mean, measured


def uniform_grid(folder: Path) -> Iterator[Case]:
    for row in rows_of(folder, "llmservingsim_attention"):
        parallel = int(row["tp"])
        heads, kv_heads = (count // parallel for count in SHAPES[row["model"]][:2])
        chunk, past, n, length = (int(row[name]) for name in ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode"))
        if n and not length:
            continue
        kind = "mixed" if n and chunk else "decode" if n else "prefill with history" if past else "prefill"
        load = Load(n, n * length, length, ((past, past + chunk),) if chunk else ())
        costs = layer_costs(RTX[row["gpu"]], heads, kv_heads)
        yield f"{RTX[row['gpu']]} {kind}", costs.attention_seconds(load), float(row["time_us"]) * 1e-6


def dense_layers(folder: Path) -> Iterator[Case]:
    order = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")
    for row in rows_of(folder, "llmservingsim_dense_layers"):
        if row["layer"] not in order or row["model"] == "Qwen/Qwen3-30B-A3B-Instruct-2507":
            continue
        outputs, inputs = products_on(row["model"], int(row["tp"]))[order.index(row["layer"])]
        size = "weights of 100 MB and more" if outputs * inputs >= 50_000_000 else "smaller weights"
        predicted = gpu_named(RTX[row["gpu"]]).matmul.seconds(int(row["tokens"]), outputs, inputs, 2)
        yield f"{RTX[row['gpu']]} {size}", predicted, float(row["time_us"]) * 1e-6


def vidur_layers(folder: Path) -> Iterator[Case]:
    measured = ("attn_pre_proj_ms", "attn_post_proj_ms", "mlp_up_proj_ms", "mlp_down_proj_ms")
    small = ("input_layernorm_ms", "post_attention_layernorm_ms", "attn_rope_ms", "mlp_act_ms")
    for row in rows_of(folder, "vidur_linear_layers"):
        gpu, rows = gpu_named(row["gpu"]), int(row["num_tokens"])
        shapes = products_on(row["model"], int(row["num_tensor_parallel_workers"]))
        predicted = sum(gpu.matmul.seconds(rows, outputs, inputs, 2) for outputs, inputs in shapes)
        yield f"{gpu.name} four products of a layer", predicted, sum(float(row[name]) for name in measured) * 1e-3
        if all(row[name] for name in small):
            other = 4 * (gpu.small_kernel + 6 * rows * SHAPES[row["model"]][2] / gpu.matmul.bandwidth)
            yield f"{gpu.name} small kernels of a layer", other, sum(float(row[name]) for name in small) * 1e-3


def vidur_attention(folder: Path) -> Iterator[Case]:
    costs = layer_costs("a100", 32, 4)
    for row in rows_of(folder, "vidur_a100_attention_70b_tp2"):
        n, past, chunk = int(row["batch_size"]), int(row["kv_cache_size"]), int(row["prefill_chunk_size"])
        if chunk and float(row["attn_prefill_ms"] or 0):
            kind = "prefill with history" if past else "prefill"
            predicted = costs.prefill_attention_seconds(past, past + chunk, n)
            yield f"a100 {kind}", predicted, float(row["attn_prefill_ms"]) * 1e-3
        elif past and float(row["attn_decode_ms"] or 0):
            yield "a100 decode", costs.decode_attention_seconds(n, n * past, past), float(row["attn_decode_ms"]) * 1e-3


def servers(folder: Path) -> Iterator[Case]:
    """Time per output token of whole servers: a closed loop of ``batch_size`` requests in its steady state.

    Every output token of a request sees one decode step, and (batch - 1) / outputs prefills of the others in it. Some
    runs seem not to count the others' prefills (their rate would exceed the GPU), so both figures are given.
    """
    names = {"meta-llama/Llama-3.1-70B": "llama-3.1-70b", "meta-llama/Llama-3.1-8B-Instruct": "llama-3.1-8b"}
    names["nvidia/Llama-3.1-8B-Instruct-FP8"] = "llama-3.1-8b"
    for row in rows_of(folder, "aic_silicon_end_to_end"):
        known = row["model_path"] in names and row["system"] in ("h100_sxm", "h200_sxm")
        plain = row["mode"] == "agg" and all(row[name] in ("", "1") for name in ("pp_size", "attention_dp_size"))
        if not (known and plain and row["precision"] == "fp8" and row["silicon_tpot_ms"]):
            continue
        costs = server_costs(AIC[row["system"]], names[row["model_path"]], int(row["tp_size"]))
        inputs, outputs, n = int(row["isl"]), int(row["osl"]), int(row["batch_size"])
        total, longest = int(n * (inputs + outputs / 2)), inputs + outputs
        step = costs.step_seconds(Load(n, total, longest))
        joined = costs.step_seconds(Load(n, total, longest, ((0, inputs),))) - step
        predicted = step + (n - 1) / outputs * joined
        measured = float(row["silicon_tpot_ms"]) * 1e-3
        subset = f"{costs.gpu.name} {row['backend']} {costs.model.name} fp8"
        yield subset, predicted, measured
        yield f"{subset}, decode steps alone", step, measured
        if row["backend"] == "vllm" and n <= 8 and outputs >= 1024 and inputs <= 1024:
            yield "vllm, decode dominates (n <= 8, 1k in, 1k out or more)", predicted, measured


@functools.cache
def server_costs(gpu: str, model: str, parallel: int) -> ModelCosts:
    shape = model_named(model).with_dtypes(weight_dtype="fp8")
    return ModelCosts(gpu_named(gpu), shape, parallel, "gated")


TABLES: dict[str, tuple[Callable[[Path], Iterator[Case]], Callable[[str], bool]]] = {
    "aic_gemm": (products, lambda subset: True),
    "aic_decode_attention": (decode, lambda subset: "vllm" in subset and "grouped" in subset),
    "aic_prefill_attention": (prefill, lambda subset: "vllm grouped" in subset),
    "llmservingsim_decode_skew": (skew, lambda subset: False),
    "llmservingsim_attention": (uniform_grid, lambda subset: "rtxpro6000" in subset or "mixed" not in subset),
    "llmservingsim_dense_layers": (dense_layers, lambda subset: "smaller" not in subset or "4090" in subset),
    "vidur_linear_layers": (vidur_layers, lambda subset: False),
    "vidur_a100_attention_70b_tp2": (vidur_attention, lambda subset: False),
    "aic_silicon_end_to_end": (servers, lambda subset: False),
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fidelity_tables", description=__doc__.splitlines()[0])
    parser.add_argument("--profiles", type=Path, default=PROFILES, help="folder of the measured tables")
    parser.add_argument("--json", type=Path, default=RESULTS, help="where the result goes (default: %(default)s)")
    options = parser.parse_args(arguments)
    if not options.profiles.is_dir():
        print(f"skipped: no measured tables at {options.profiles} (name their folder with --profiles)")
        return 0
    results = []
    print(f"{'table':30} {'subset':58} {'cases':>7} {'p50':>7} {'p90':>7} {'bias':>7}")
    for table, (predict, fitted) in TABLES.items():
        if not (options.profiles / f"{table}.csv.gz").exists():
            print(f"{table:30} skipped: the table is not in {options.profiles}")
            continue
        for result in summary(table, predict(options.profiles), fitted):
            results.append(result)
            name = result.subset + (" *" if result.fitted else "")
            print(f"{table:30} {name:58} {result.cases:7} {result.p50:7.1%} {result.p90:7.1%} {result.bias:+7.1%}")
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(report(results, options.profiles), indent=1) + "\n", encoding="utf-8")
    return 0


def report(results: list[Result], folder: Path) -> dict[str, object]:
    """What the JSON holds: versions, the digest of each table, and every result."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    versions = {"alignedsched": project["version"], "python": platform.python_version(), "numpy": np.__version__}
    tables = sorted({result.table for result in results})
    digests = {table: hashlib.sha256((folder / f"{table}.csv.gz").read_bytes()).hexdigest() for table in tables}
    figures = [asdict(result) for result in results]
    return {"benchmark": "fidelity_tables", "versions": versions, "tables_sha256": digests, "results": figures}


if __name__ == "__main__":
    sys.exit(main())
