"""What is fuzzed: one entry for everything that reads files, options, states or arguments others wrote.

A target makes an input from chance (``make``: payload and size in bytes) and takes it (``feed``). ``feed`` checks what
was accepted as well; it raises an error of ``alignedsched.errors`` for what is refused, and anything else is a finding.
A new reader is added as one more line of ``targets``.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

from attrs import frozen

from alignedsched.cli import main as command
from alignedsched.cost_table import TableCosts
from alignedsched.hardware import GPUS
from alignedsched.load import SURFACES, Load
from alignedsched.measured import Measured
from alignedsched.metrics.work import terms_of
from alignedsched.models import Model
from alignedsched.registry import policy
from alignedsched.report import schema, terminal
from alignedsched.sim.build import build
from alignedsched.sim.settings import TOPOLOGIES, CompareSettings
from alignedsched.views import from_columns
from alignedsched.workloads import FORMATS, Workload, read_trace
from alignedsched.workloads.rows import MAX_TOKENS
from benchmarks.fuzz_logs import feed_log, feed_snapshot, made_of, sound_log, sound_snapshot
from benchmarks.fuzz_values import as_json, bombs, choice_of, hostile, mutated_bytes, mutated_often, near, zipped

RARE = 10_000  # one of so many inputs is large: a bomb, a line of many megabytes


@frozen
class Target:
    """One thing that reads. ``weight`` is its share of the inputs."""

    name: str
    weight: float
    make: Callable[[Random], tuple[Any, int]]
    feed: Callable[[Any], None]


# -- traces

TRACES: dict[str, tuple[bytes, ...]] = {
    "csv": (
        b"arrival_s,prompt_tokens,output_tokens\n0.0,1020,129\n0.4,396,85\n0.4,1,1\n7,2147483647,3\n",
        (
            b"id,arrival_s,prompt_tokens,output_tokens,priority,tenant,session,kind,block_hashes,note\r\n"
            b'r1,0,10,2,-3,"a, b",s1,lora,1 2,x\r\nr2,1.5,10,2,,"say ""hi""",,,,\r\n\r\n,2,1,1,4,,"two\nlines",,9,\r\n'
        ),
    ),
    "azure": (
        b"TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50,396,109\n",
        b"TIMESTAMP,ContextTokens,GeneratedTokens\n2024-05-10T00:00:00.009930+00:00,2162,5\n2024-05-10 02:00:00Z,1,1\n",
    ),
    "jsonl": (
        (
            b'{"arrival_s": 0, "prompt_tokens": 10, "output_tokens": 2}\n'
            b'{"arrival_s": 0.5, "prompt_tokens": 1, "output_tokens": 1}\n'
        ),
        (
            b'\n{"id": "a", "arrival_s": 1.5, "prompt_tokens": 10, "output_tokens": 2, "priority": 3, "tenant": "t", '
            b'"session": 7, "kind": null, "block_hashes": [1, 2, 9223372036854775807], "more": {"x": [1.5, true]}}\n'
        ),
    ),
    "mooncake": (
        (
            b'{"timestamp": 0, "input_length": 6758, "output_length": 500, "hash_ids": [0, 1, 2, 3]}\n'
            b'{"timestamp": 3052, "input_length": 7319, "output_length": 490, "hash_ids": [0, 14]}\n'
        ),
    ),
}


def _trace_input(form: str) -> Callable[[Random], tuple[Any, int]]:
    def make(rng: Random) -> tuple[Any, int]:
        named = rng.choice((None, None, form, rng.choice(FORMATS)))
        how = {"format": named, "skip": rng.random() < 0.5, "limit": rng.choice((None, None, None, 0, 1))}
        if rng.randrange(RARE) == 0:
            data, size = choice_of(rng, bombs())
            if rng.random() < 0.3:
                data = b"x" * rng.randrange(1 << 23, 1 << 24)
                size = len(data)
            return (data, how), size
        data = mutated_bytes(rng, choice_of(rng, TRACES[form]))
        size = len(data)
        return (zipped(rng, data) if rng.random() < 0.1 else data, how), size

    return make


def _feed_trace(folder: Path) -> Callable[[Any], None]:
    path, aside = folder / "trace", folder / "aside"

    def feed(payload: Any) -> None:
        data, how = payload
        path.write_bytes(data)
        with read_trace(
            path, how["format"], limit=how["limit"], skip_bad_rows=aside if how["skip"] else None
        ) as reader:
            workload = Workload.from_rows("trace", reader)
        if how["skip"]:
            records = [json.loads(line) for line in aside.read_text(encoding="utf-8").splitlines()]
            assert len(records) == reader.skipped
        last = 0.0
        for request, output in workload.requests():
            assert last <= request.arrival < math.inf
            assert 1 <= min(request.prompt_tokens, output) <= max(request.prompt_tokens, output) <= MAX_TOKENS
            last = request.arrival

    return feed


# -- files of configuration

TABLE = {
    "format": "alignedsched-cost-table",
    "version": 2,
    "source": "measured",
    "prefill": {
        "t0": 1e-3,
        "per_token": 1e-6,
        "per_pair": 1e-9,
        "per_chunk": 0.0,
        "per_cell": 1e-9,
        "per_context": 0,
        "rows": {"rows": [1, 64.0, 512], "seconds": [0.001, 0.001, 0.004]},
    },
    "sheets": [
        {"n": 1, "means": [100.0, 1000.0], "stretches": [1.0], "seconds": [[0.01], [0.02]]},
        {"n": 16, "means": [100.0, 1000.0], "stretches": [1.0, 4.0], "seconds": [[0.01, 0.02], [0.02, 0.04]]},
    ],
}
MEASURED = {
    "format": "alignedsched-measured",
    "version": 1,
    "machine": {"processor": "made up", "clock": "process CPU time"},
    "model": {"name": "tiny", "kv_bytes_per_token": 2048, "max_positions": 8192},
    "memory": {
        "page_size": 16, "kv_tokens": 4096, "host_tokens": 1024, "max_members": 16, "max_tokens": 256, "run_ahead": 0,
    },
    "kernel": "torch",
    "kernels": {"torch": {"costs": TABLE, "held_out": {"decode": {"cases": 9, "p50": 0.1, "p90": 0.2, "bias": -0.1}}}},
    "links": {
        way: {
            "bytes_per_s": 1e9, "latency_s": 1e-5, "error": 0.1, "pieces": {"4096": 1e9}, "copy_beside": 0.9,
            "step_beside": None,
        }
        for way in ("host->device", "device->host", "device->device")
    },
}  # fmt: skip
CONFIGS: tuple[dict[str, Any], ...] = (
    {
        "model_type": "llama", "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8,
        "num_hidden_layers": 32, "intermediate_size": 14336, "vocab_size": 128256, "max_position_embeddings": 131072,
        "torch_dtype": "bfloat16", "tie_word_embeddings": False, "head_dim": 128, "sliding_window": None,
    },
    {
        "model_type": "qwen2", "text_config": {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2},
        "vocab_size": 1000, "max_position_embeddings": 4096, "use_sliding_window": False, "sliding_window": 128,
        "quantization_config": {"quant_method": "fp8"}, "layer_types": ["full_attention", "full_attention"],
        "num_local_experts": 0, "_name_or_path": "x/y", "dtype": "float32",
    },
    {"n_embd": 768, "n_head": 12, "n_layer": 12, "vocab_size": 50257, "n_positions": 1024, "n_inner": None},
)  # fmt: skip


def _json_input(*seeds: Any) -> Callable[[Random], tuple[Any, int]]:
    def make(rng: Random) -> tuple[Any, int]:
        data = as_json(mutated_often(rng, choice_of(rng, seeds)))
        if rng.random() < 0.3:
            data = mutated_bytes(rng, data)
        return data, len(data)

    return make


def _feed_table(folder: Path) -> Callable[[Any], None]:
    path = folder / "table.json"

    def feed(payload: Any) -> None:
        path.write_bytes(payload)
        table = TableCosts.load(path)
        for load in (Load(0, 0, 0, ((0, 10),)), Load(1, 50, 50), Load(8, 8000, 2000), Load(900, 10**6, 10**5)):
            table.step_seconds(load)
            table.balanced_seconds(load)
        table.finishing_times(Load(4, 400, 100), 3)

    return feed


def _feed_measured(folder: Path) -> Callable[[Any], None]:
    path = folder / "measured.json"

    def feed(payload: Any) -> None:
        path.write_bytes(payload)
        content = Measured.load(path).content()
        assert json.loads(json.dumps(content))["format"] == MEASURED["format"]
        for topology in TOPOLOGIES:
            built = build(str(path), topology=topology, lanes=1, staging=True)
            terms_of(built.costs, 64)

    return feed


def _points_input(rng: Random) -> tuple[Any, int]:
    points = [[1, 100, 100, 0.01], [1, 1000, 1000, 0.02], [4, 400, 100, 0.01], [4, 4000, 1000, 0.03]]
    return mutated_often(rng, points), 1000


def _feed_points(payload: Any) -> None:
    if isinstance(payload, list):
        TableCosts.from_points(payload).step_seconds(Load(8, 8000, 2000))


def _feed_config(folder: Path) -> Callable[[Any], None]:
    path = folder / "config.json"

    def feed(payload: Any) -> None:
        path.write_bytes(payload)
        model = Model.from_config(path)
        for topology in TOPOLOGIES:
            build("h100", str(path), topology=topology, lanes=1, surface="gated", staging=True)
        assert model.weight_bytes > 0

    return feed


def _hardware_input(rng: Random) -> tuple[Any, int]:
    named = rng.choice((*GPUS, "h100:2", "h100:8", "a100:4"))
    text = named if rng.random() < 0.2 else mutated_bytes(rng, named.encode()).decode("utf-8", "surrogateescape")
    how = {"topology": rng.choice(TOPOLOGIES), "lanes": rng.choice((1, 2)), "surface": rng.choice(SURFACES)}
    how["staging"] = rng.random() < 0.5
    return (near(rng, text) if rng.random() < 0.2 else text, rng.choice(("llama-3.1-8b", "opt-13b", text)), how), len(
        text
    )


def _feed_hardware(payload: Any) -> None:
    hardware, model, how = payload
    build(hardware, model.replace("/", "_"), **how)


# -- results, settings, options, states


def a_result() -> dict[str, Any]:
    """A sound result of one policy."""
    part: dict[str, float] = dict.fromkeys(("mean", "p50", "p90", "p99", "max"), 0.5)
    run = {
        "policy": "fcfs", "output_tokens": 500, "simulated_s": 10.0, "wall_s": 0.1, "steps": 7, "events": 9,
        "requests": {"arrived": 5, "finished": 5, "cancelled": 0, "rejected": 0, "failed": 0},
        "throughput_tok_s": 50.0, "latency_s": {kind: dict(part) for kind in schema.LATENCIES}, "preemptions": 0,
        "bubbles": {"iteration": 0.1, "batch": 0.0, "copy_stall": 0.2}, "bound_s": 5.0, "bound_ratio": 0.5,
        "copies": dict.fromkeys(("host_to_device_bytes", "device_to_host_bytes", "peer_bytes", "staged_bytes"), 12),
    }  # fmt: skip
    return {
        "version": 1, "workload": {"name": "w", "requests": 5, "prompt_tokens": 50, "output_tokens": 500},
        "hardware": "h100", "model": "m", "surface": "gated", "topology": "colocated", "load": 0.9, "seed": 0,
        "runs": [run, {**run, "policy": "other", "simulated_s": 20.0, "throughput_tok_s": 25.0, "bound_ratio": 0.25}],
    }  # fmt: skip


def _value_input(*seeds: Any) -> Callable[[Random], tuple[Any, int]]:
    def make(rng: Random) -> tuple[Any, int]:
        return mutated_often(rng, choice_of(rng, seeds)), 2000

    return make


def _feed_result(payload: Any) -> None:
    schema.validate(payload)
    shown = terminal.plain(payload)
    assert all(line.isprintable() for line in shown.splitlines()), "the table holds what upsets a terminal"


SETTINGS: tuple[dict[str, Any], ...] = (
    {"workload": "mooncake", "policies": ["fcfs", "density_first"], "lanes": 2, "seed": 1, "offline": True, "limit": 5},
    {"trace": "t.csv", "format": "csv", "rate_scale": 1.5, "hardware": "h100:2", "model": "x", "staging": False},
    {"workload": "giant", "load": 0.5, "requests": 10, "topology": "disaggregated", "surface": "padded"},
)


def _feed_settings(payload: Any) -> None:
    if isinstance(payload, dict) and payload.keys() <= {field.name for field in CompareSettings.__attrs_attrs__}:
        CompareSettings(**payload)


OPTIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("fcfs", {"swap": True, "token_budget": 64, "by_priority": True}),
    (
        "density_first",
        {
            "batch_share": 0.4, "k_min": 2, "mix_share": 0.8, "near_share": 0.25, "near_tokens": 512,
            "drain_share": 0.5, "guard_s": 30.0, "patience_s": None, "dwell_s": 0.25, "to_host": "always",
            "staging": True, "token_budget": None, "by_priority": False, "growth_share": 0.1, "pool_batches": 8.0,
        },
    ),
)  # fmt: skip
STATES: tuple[Any, ...] = (
    {"clocks": {}, "lanes": {}},
    {
        "clocks": {"0": 1.5, "63": 0.0},
        "lanes": {"lane": {"old": ["r0"], "since": 0.5, "chosen": None, "turning": True}},
    },
)


def _ask(made: Any) -> None:
    """A policy that was accepted answers every question."""
    view = from_columns(
        running=["r0", "r1"], running_lengths=[500, 60], pooled=["a", "b", "c"], pooled_lengths=[9000, 40, 700],
        free_blocks=100, capacity_blocks=140,
    )  # fmt: skip
    composition = made.batching.compose(view)
    list(made.batching.victims(view, 0, 1))
    list(made.admission.admit(view))
    list(made.residency.place(view))
    made.batching.taken(view, composition)
    made.batching.state()


def _options_input(rng: Random) -> tuple[Any, int]:
    name, options = choice_of(rng, OPTIONS)
    kept = {key: value for key, value in options.items() if rng.random() < 0.4}
    return (name, mutated_often(rng, kept)), 2000


def _feed_options(payload: Any) -> None:
    name, options = payload
    if isinstance(options, dict) and "name" not in options:
        _ask(policy(name, **options))


def _feed_state(payload: Any) -> None:
    made = policy("density_first")
    before = made.batching.state()
    try:
        made.batching.load(payload)
    except Exception:
        assert made.batching.state() == before, "a state that was refused left something behind"
        raise
    assert json.loads(json.dumps(made.batching.state())) == made.batching.state()
    _ask(made)


# -- the command

COMMANDS: tuple[tuple[str, ...], ...] = (
    ("compare", "--workload", "mooncake", "--policy", "fcfs", "--policy", "density_first", "--json", "o"),
    ("compare", "--workload", "giant", "--html", "page", "--timeline", "t.gz", "--timeline-until", "10"),
    ("compare", "--trace", "trace", "--format", "csv", "--rate-scale", "1", "--skip-bad-rows", "aside", "--limit", "9"),
    ("compare", "--workload", "giant", "--load", "0.5", "--lanes", "2", "--topology", "disaggregated", "--no-staging"),
    ("compare", "--workload", "giant", "--requests", "12", "--offline", "--hardware", "h100:2", "--model", "opt-13b"),
    ("--help",), ("--version",), ("compare", "--help"), (),
)  # fmt: skip


def _words(rng: Random, words: tuple[str, ...]) -> list[str]:
    made = list(words)
    for _ in range(rng.choice((0, 1, 1, 2, 3))):
        at, action = rng.randrange(len(made) + 1), rng.random()
        if action < 0.5 and at < len(made):
            made[at] = mutated_bytes(rng, made[at].encode("utf-8", "surrogatepass")).decode("utf-8", "surrogateescape")
        elif action < 0.7 and at < len(made):
            del made[at]
        elif action < 0.85:
            made.insert(at, str(near(rng, choice_of(rng, COMMANDS[:4])[rng.randrange(8)])))
        else:
            value = hostile(rng)
            made.insert(at, value if isinstance(value, str) else str(rng.randint(-5, 5)))
    return made


def _command_input(rng: Random) -> tuple[Any, int]:
    # No path leaves the folder, and no argument of a process can hold a zero byte.
    words = [word.replace("/", "_").replace("\0", "") for word in _words(rng, choice_of(rng, COMMANDS))]
    return words, 40_000  # so many lanes may be asked for


def _feed_command(folder: Path) -> Callable[[Any], None]:
    result = a_result()

    def work(settings: CompareSettings, progress: object = None, watch: object = None) -> dict[str, Any]:
        for name in settings.policies:
            policy(name)
        build(
            settings.hardware, settings.model, topology=settings.topology, lanes=settings.lanes,
            surface=settings.surface, staging=settings.staging,
        )  # fmt: skip
        if settings.trace is not None:
            with read_trace(settings.trace, settings.format, limit=settings.limit) as reader:
                result["workload"]["name"] = Workload.from_rows(Path(settings.trace).name, reader).name or "w"
        return result

    def feed(payload: Any) -> None:
        (folder / "trace").write_bytes(TRACES["csv"][0])
        out, err = io.StringIO(), io.StringIO()
        # The command sets the garbage collector up for a process of its own.
        quiet = mock.patch("alignedsched.cli.run.gc")
        with contextlib.chdir(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), quiet:
            code = command(payload, compare=work)
        assert code in (0, 2), f"exit code {code}: {err.getvalue()}"
        assert all(line.isprintable() for line in err.getvalue().splitlines()), "stderr holds what upsets a terminal"
        for path in folder.iterdir():
            path.unlink()

    return feed


@contextmanager
def targets() -> Iterator[dict[str, Target]]:
    """Every target by name. Files are written to a folder in memory, where there is one, that is removed at the end."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        folder, apart = Path(name), Path(name) / "command"
        apart.mkdir()
        table: list[Target] = [
            *(Target(f"trace-{form}", 3, _trace_input(form), _feed_trace(folder)) for form in TRACES),
            Target("cost-table", 2, _json_input(TABLE), _feed_table(folder)),
            Target("measured", 2, _json_input(MEASURED), _feed_measured(folder)),
            Target("cost-points", 1, _points_input, _feed_points),
            Target("model-config", 2, _json_input(*CONFIGS), _feed_config(folder)),
            Target("hardware", 1, _hardware_input, _feed_hardware),
            Target("result", 2, _value_input(a_result()), _feed_result),
            Target("settings", 1, _value_input(*SETTINGS), _feed_settings),
            Target("policy-options", 2, _options_input, _feed_options),
            Target("policy-state", 2, _value_input(*STATES), _feed_state),
            Target("log", 1, made_of(sound_log), feed_log(folder)),
            Target("snapshot", 1, made_of(sound_snapshot), feed_snapshot),
            Target("command", 0.5, _command_input, _feed_command(apart)),
        ]
        yield {target.name: target for target in table}
