"""Does it pay on my machine? Surfaces found again in logs with noise and outliers, and verdicts that hold."""

from __future__ import annotations

import io
import json
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attrs import evolve

from alignedsched.adapters.hooks import Hooks
from alignedsched.adapters.step_log import StepLine, StepLog, read_step_log
from alignedsched.cli import main
from alignedsched.costs import AffineCosts, Costs, Load
from alignedsched.errors import ConfigError
from alignedsched.report.advice import print_advice
from alignedsched.sim.advise import AdviseSettings, advise
from alignedsched.sim.build import build
from alignedsched.sim.step_fit import Fit, fit
from alignedsched.sim.step_kinds import Steps
from alignedsched.sim.verdict import verdict_of, word_of
from tests.toy_engine import ToyEngine

BASE = AffineCosts(5e-3, 2e-5, 1e-7, per_prompt=1e-5)
SURFACES = {
    "balanced": BASE,
    "padded": evolve(BASE, surface="padded"),
    "unsplit": evolve(BASE, surface="unsplit", longest_per_token=4e-6),
    "gated": evolve(BASE, surface="gated", longest_per_token=4e-6, gate=32.0),
}


def steps_on(
    costs: Costs, *, alike: bool = False, seed: int = 0, noise: float = 0.03, most: int = 200, prefill: float = 0.2
) -> list[StepLine]:
    """Steps of random batches, with 3 % noise, and outliers of up to eight times one step in thirty."""
    draw = np.random.default_rng(seed)
    lines = []
    for _ in range(2500):
        n = int(draw.integers(1, most))
        spread = 0.0 if alike else draw.uniform(0.2, 1.4)
        lengths = np.maximum(1, draw.uniform(100, 1000) * draw.lognormal(0, spread, n)).astype(np.int64)
        chunk = int(draw.integers(1, 2048)) if draw.random() < prefill else 0
        load = Load(n, int(lengths.sum()), int(lengths.max()), ((0, chunk),) if chunk else ())
        seconds = costs.step_seconds(load) * np.exp(draw.normal(0, noise))
        if draw.random() < 1 / 30:
            seconds *= draw.uniform(1.5, 8)
        lines.append(StepLine(load.n, load.total, load.longest, chunk, 1e3 * float(seconds)))
    return lines


def fitted(costs: Costs, **how: Any) -> Fit:
    return fit(Steps.of(steps_on(costs, **how)))


@pytest.mark.parametrize("surface", SURFACES)
@pytest.mark.parametrize("seed", range(3))
def test_a_known_surface_is_found_again_with_its_coefficients(surface: str, seed: int) -> None:
    truth, found = SURFACES[surface], fitted(SURFACES[surface], seed=seed)
    assert found.costs.surface == surface
    for name, within in (("t0", 0.03), ("per_row", 0.15), ("per_token", 0.03), ("longest_per_token", 0.03)):
        assert getattr(found.costs, name) == pytest.approx(getattr(truth, name), rel=within)
    chunk = found.costs.per_row + found.costs.per_prompt
    assert chunk == pytest.approx(truth.per_row + truth.per_prompt, rel=0.1)
    assert abs(found.costs.gate - truth.gate) <= 1
    assert found.chosen.error < 0.025
    excluded = {kind.name for kind in found.kinds if kind.excluded}
    assert excluded >= {"balanced", "padded"} - {surface}


@pytest.mark.parametrize("surface", SURFACES)
def test_a_modelled_gpu_is_recognised(surface: str) -> None:
    """Its surface is not affine, but near enough; the gate of an H100 with 8 KV heads lies at 26.4 members."""
    costs = build("h100", "llama-3.1-8b", topology="colocated", lanes=1, surface=surface, staging=False).costs
    found = fitted(costs)
    assert found.costs.surface == surface
    assert found.chosen.error < 0.03
    if surface == "gated":
        assert 25 <= found.costs.gate <= 29


def test_where_all_lengths_are_alike_the_kinds_cannot_be_told_apart() -> None:
    found = fitted(SURFACES["padded"], alike=True)
    assert found.costs.surface == "balanced"  # until shown otherwise
    assert not next(kind for kind in found.kinds if kind.name == "padded").excluded
    assert {costs.surface for costs in found.allowed} >= {"padded", "gated"}
    assert found.stretch == pytest.approx((1.0, 1.0))


def test_where_balanced_explains_all_the_log_bounds_what_a_longest_member_could_cost() -> None:
    allowed = fitted(SURFACES["balanced"]).allowed
    assert "padded" not in {costs.surface for costs in allowed}
    # A true gate would show: at 150 members these batches' longest is a tenth of the sum and more.
    strongest = max(costs.longest_per_token / costs.per_token for costs in allowed if costs.gate < 150)
    assert strongest < 8


def test_a_log_of_mixed_steps_alone_is_fitted_too() -> None:
    found = fitted(SURFACES["padded"], prefill=1.0)
    assert (found.decode_only, found.costs.surface) == (0, "padded")
    assert found.costs.per_token == pytest.approx(1e-7, rel=0.05)
    assert found.costs.per_row + found.costs.per_prompt == pytest.approx(3e-5, rel=0.1)


def test_a_short_log_is_refused() -> None:
    lines = steps_on(BASE, prefill=0.0)
    with pytest.raises(ConfigError, match="the step log has 29 steps; at least 30 are needed"):
        Steps.of(lines[:29])
    with pytest.raises(ConfigError, match="has 0 steps that decode"):
        fit(Steps.of([StepLine(0, 0, 0, 100, 2.0)] * 40))


# -- the whole way: an engine that logs its steps, its trace, and the command


def engine_log(folder: Path, costs: AffineCosts) -> tuple[Path, Path]:
    """What an engine under continuous batching leaves behind: a step log and a trace."""
    draw = random.Random(1)
    asks = {f"r{i}": (draw.choice([60, 100, 200, 300, 4000]), draw.randint(50, 300)) for i in range(200)}
    trace, log = folder / "trace.csv", folder / "steps.jsonl"
    with StepLog(log) as steps:
        hooks = Hooks("fcfs", block_size=16, capacity_blocks=9000, max_members=64, max_tokens=1024, log=steps)
        engine = ToyEngine(hooks, asks, 9000, costs=costs, every=3).run()
    assert len(list(read_step_log(log))) > 600
    rows = [f"{i * engine.now / 250:.3f},{p},{o}" for i, (p, o) in enumerate(asks.values())]
    trace.write_text("\n".join(["arrival_s,prompt_tokens,output_tokens", *rows]) + "\n")
    return trace, log


def advised(folder: Path, costs: AffineCosts, *more: str) -> tuple[int, dict[str, Any]]:
    trace, log = engine_log(folder, costs)
    out = folder / "advice.json"
    code = main(["advise", "--trace", str(trace), "--steps", str(log), "--json", str(out), *more])
    return code, json.loads(out.read_text())


def test_on_a_balanced_surface_it_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, result = advised(tmp_path, SURFACES["balanced"], "--load", "0.9")
    assert code == 0
    assert result["surface"]["surface"] == "balanced"
    assert result["verdict"]["word"] == "changes nothing"
    plain, aligned = result["runs"]
    assert {**plain, "policy": "", "wall_s": 0} == {**aligned, "policy": "", "wall_s": 0}
    printed = capsys.readouterr().out
    assert "cost_aligned changes nothing on your machine" in printed
    assert "bound" in printed
    assert result["engine"]["read_off_the_log"] == ["kv_blocks", "max_members", "max_tokens"]


def test_on_a_padded_surface_it_gains_and_the_costs_can_be_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    costs = tmp_path / "costs.json"
    code, result = advised(tmp_path, evolve(SURFACES["padded"], per_token=5e-7), "--costs", str(costs), "--offline")
    assert code == 0
    assert result["verdict"]["word"] == "gains"
    assert result["verdict"]["throughput"] > 1.3
    assert result["runs"][0]["bound_s"] < result["runs"][1]["simulated_s"] < result["runs"][0]["simulated_s"]
    loaded = AffineCosts.load(costs)
    assert loaded == AffineCosts(**result["surface"])
    Hooks("cost_aligned", block_size=16, capacity_blocks=10, max_members=4, costs=loaded)
    printed = capsys.readouterr().out
    assert "gains on your machine" in printed
    assert "next: run it" in printed


def test_what_the_log_cannot_tell_is_said(tmp_path: Path) -> None:
    trace, log = engine_log(tmp_path, BASE)
    with StepLog(log) as steps:
        for line in steps_on(evolve(BASE, per_token=5e-7), alike=True, prefill=0.0, most=65):
            steps.step(line.n, line.total, line.longest, line.prefill, line.ms)
    result = advise(AdviseSettings(trace=str(trace), steps=str(log), offline=True, kv_blocks=9000))
    assert result["verdict"]["word"] == "undecided"
    assert "padded, which the log does not exclude, it gains" in result["verdict"]["sentence"]
    told = " ".join(result["measure_next"])
    assert "unequal lengths" in told
    assert "steps with prefill" in told
    assert "the trace's longest request has" in told


def test_a_quiet_hour_is_called_one(tmp_path: Path) -> None:
    code, result = advised(tmp_path, BASE, "--rate-scale", "0.1")
    assert code == 0
    assert result["load"] < 0.2
    assert any("try --load 0.9" in advice for advice in result["measure_next"])


def test_the_engine_can_be_a_modelled_one(tmp_path: Path) -> None:
    trace, log = engine_log(tmp_path, BASE)
    told = advise(AdviseSettings(trace=str(trace), steps=str(log), hardware="h100", max_members=48, limit=20))
    built = build("h100", "llama-3.1-8b", topology="colocated", lanes=1, surface="gated", staging=False).cluster
    assert told["engine"] == {
        "kv_blocks": built.devices[0].kv_blocks,
        "block_size": 16,
        "max_members": 48,
        "max_tokens": built.lanes[0].max_tokens,
        "read_off_the_log": [],
    }
    with pytest.raises(ConfigError, match="model goes with hardware"):
        AdviseSettings(trace="t", steps="s", model="llama-3.1-8b")


def test_on_a_terminal_it_has_colours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.delenv("NO_COLOR", raising=False)
    trace, log = engine_log(tmp_path, evolve(SURFACES["padded"], per_token=5e-7))
    result = advise(AdviseSettings(trace=str(trace), steps=str(log), offline=True))

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal, pipe = Terminal(), io.StringIO()
    print_advice(result, terminal)
    print_advice(result, pipe)
    assert "\x1b[" in terminal.getvalue()
    assert "\x1b[" not in pipe.getvalue()
    words = re.sub(r"\x1b\[[0-9;]*m", "", terminal.getvalue()).split()
    assert [w for w in pipe.getvalue().split() if not w.startswith("--")] == words


@pytest.mark.parametrize(
    ("throughput", "e2e_mean", "word"),
    [
        (1.05, 1.0, "gains"),
        (1.0, 1.05, "gains"),
        (1.01, 0.99, "changes nothing"),
        (0.95, 1.01, "loses"),
        (1.0, 0.9, "loses"),
        (1.1, 0.9, "mixed"),
        (None, 0.9, "loses"),
    ],
)
def test_losses_are_called_so(throughput: float | None, e2e_mean: float, word: str) -> None:
    assert word_of({"throughput": throughput, "e2e_mean": e2e_mean}) == word


@pytest.mark.parametrize(
    ("least", "plain", "said"),
    [
        (0.01234, 0.456, "in less than 0.0123 s, fcfs takes 0.456 s"),
        (99.951, 1234.5, "in less than 100 s, fcfs takes 1,234 s"),
        (9.8765, 99.94, "in less than 9.88 s, fcfs takes 99.9 s"),
    ],
)
def test_short_work_has_its_seconds_too(least: float, plain: float, said: str) -> None:
    same = {"mean": 1.0, "p99": 1.0}
    run = {"bound_s": least, "simulated_s": plain, "throughput_tok_s": 5.0,
           "latency_s": dict.fromkeys(("e2e", "tpot", "ttft", "itl"), same)}  # fmt: skip
    assert verdict_of([run, run], [])["sentence"].endswith(said)


def test_a_trace_that_does_not_fit_says_what_is_missing(tmp_path: Path) -> None:
    trace, log = engine_log(tmp_path, BASE)
    with pytest.raises(ConfigError, match=r"no request of 'trace.csv' fits: the shortest has .* kv_blocks hold 16"):
        advise(AdviseSettings(trace=str(trace), steps=str(log), kv_blocks=1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--trace FILE is missing"),
        (["--trace", "here"], "--trace 'here' is no file"),
        (["--trace", "TRACE"], "--steps FILE is missing"),
        (["--trace", "TRACE", "--steps", "TRACE"], "--trace and --steps name the same file"),
        (["--trace", "TRACE", "--steps", "LOG", "--json", "LOG"], "--steps and --json name the same file"),
        (
            ["--trace", "TRACE", "--steps", "LOG", "--hardware", "MODEL", "--costs", "MODEL"],
            "--hardware and --costs name",
        ),
        (["--trace", "TRACE", "--steps", "LOG", "--model", "FOLDER", "--json", "MODEL"], "--model and --json name"),
        (["--trace", "TRACE", "--steps", "LOG", "--json", "OUT", "--costs", "GONE"], "--costs '.*' cannot be written"),
        (["--trace", "TRACE", "--steps", "LOG", "--load", "0"], "--load: must be a finite number above 0"),
        (["--trace", "TRACE", "--steps", "LOG", "--load", "1", "--offline"], "exclude each other"),
        (["--trace", "TRACE", "--steps", "LOG", "--rate", "1"], "unrecognized arguments: --rate"),
        (["--trace", "LOG", "--steps", "TRACE"], "expected the header 'n,total,longest,prefill,ms'"),
    ],
)
def test_wrong_use_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    trace, log = tmp_path / "trace.csv", tmp_path / "steps.csv"
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n0,10,10\n")
    log.write_text("n,total,longest,prefill,ms\n1,10,10,0,1\n")
    (tmp_path / "config.json").write_text("precious")
    named = {"TRACE": str(trace), "LOG": str(log), "MODEL": str(tmp_path / "config.json"), "FOLDER": str(tmp_path),
             "OUT": str(tmp_path / "out.json"), "GONE": str(tmp_path / "no folder" / "costs.json")}  # fmt: skip
    assert main(["advise", *(named.get(argument, argument) for argument in arguments)]) == 2
    said = capsys.readouterr().err
    assert re.search(message, said)
    assert len(said.splitlines()) == 1
    assert (tmp_path / "config.json").read_text() == "precious"
    assert not (tmp_path / "out.json").exists()


def test_help_has_the_form_of_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["advise", "--help"]) == 0
    assert "n,total,longest,prefill,ms" in capsys.readouterr().out


def test_the_page_shows_what_its_example_prints(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (root / "docs" / "advise.md").read_text(encoding="utf-8")
    example, shown = (page.split(f"```{kind}\n")[1].split("\n```")[0] for kind in ("python", "text"))
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "advise.md", "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out.rstrip() == shown
