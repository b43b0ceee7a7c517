"""A real engine on the CPU, end to end: 64 requests, the tokens of vLLM alone, whatever is parked and wherever."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from alignedsched.adapters.step_log import read_step_log
from tests.engines.serve_once import Job, serve

PROMPTS = [8 + (37 * number) % 700 for number in range(64)]
OUTPUTS = [8 + (11 * number) % 33 for number in range(64)]
SOFT = {"policy": "tests.engines.rotation:soft", "look_every": 1}
HARD = {"policy": "tests.engines.rotation:hard", "look_every": 1}
SYNC, ASYNC = "AlignedScheduler", "AlignedAsyncScheduler"
POISONED = "tests.engines.poison.PoisonedConnector"
KEEPING = "alignedsched.adapters.vllm.connector.HostConnector"

Served = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the default policy writes its step log."""
    return tmp_path_factory.mktemp("log") / "steps.csv"


@pytest.fixture(scope="module")
def served(tiny_model: Path, log: Path, tmp_path_factory: pytest.TempPathFactory) -> Served:
    """The same load under every scheduler."""

    def job(scheduler: str, **options: Any) -> Job:
        return Job(str(tiny_model), PROMPTS, OUTPUTS, scheduler, **options)

    jobs = {
        "vllm": job(""),
        "default": job(SYNC, settings={"step_log": str(log)}),
        "soft": job(SYNC, settings=SOFT),
        "soft, async class": job(ASYNC, settings=SOFT),
        "hard": job(SYNC, settings=HARD, connector=POISONED),
        "hard, async class": job(ASYNC, settings=HARD, connector=POISONED),
        "hard, few blocks": job(SYNC, settings=HARD, connector=KEEPING, caching=True, blocks=250),
    }
    figures = serve(list(jobs.values()), tmp_path_factory.mktemp("served"))
    return dict(zip(jobs, figures, strict=True))


@pytest.mark.parametrize(("name", "scheduler"), [("soft", SYNC), ("soft, async class", ASYNC)])
def test_soft_parks(name: str, scheduler: str, served: Served) -> None:
    plain, ours = served["vllm"], served[name]
    assert (ours["scheduler"], ours["on"]) == (scheduler, True)
    assert ours["tokens"] == plain["tokens"]
    assert ours["counts"]["sat_out"] > 100
    assert ours["computed"] == plain["computed"]


@pytest.mark.parametrize(("name", "scheduler"), [("hard", SYNC), ("hard, async class", ASYNC)])
def test_hard_parks_with_freed_blocks_overwritten(name: str, scheduler: str, served: Served) -> None:
    """No token is computed twice: all KV that left the device comes back from the host."""
    plain, ours = served["vllm"], served[name]
    assert (ours["scheduler"], ours["on"]) == (scheduler, True)
    assert ours["tokens"] == plain["tokens"]
    assert ours["counts"]["to_host"] > 100
    assert ours["computed"] == plain["computed"]
    assert 0 < ours["copied"][0] < ours["copied"][1]


def test_hard_parks_under_pressure_with_prefix_caching(served: Served) -> None:
    ours = served["hard, few blocks"]
    assert ours["on"]
    assert ours["tokens"] == served["vllm"]["tokens"]
    assert ours["counts"]["to_host"] > 100


def test_the_default_takes_the_same_steps_and_writes_a_step_log(served: Served, log: Path) -> None:
    plain, ours = served["vllm"], served["default"]
    assert ours["tokens"] == plain["tokens"]
    assert (ours["steps"], ours["computed"]) == (plain["steps"], plain["computed"])
    assert ours["counts"]["sat_out"] == 0
    steps = list(read_step_log(log))
    assert len(steps) > plain["steps"] * 0.8  # the last step has no end, nor has one after which the engine was idle
    assert 0 < sum(step.n + step.prefill for step in steps) <= plain["computed"]


def test_an_engine_in_its_own_process_finds_the_class(served: Served, tiny_model: Path, tmp_path: Path) -> None:
    job = Job(str(tiny_model), PROMPTS, OUTPUTS, SYNC, settings=SOFT, several_processes=True)
    assert serve([job], tmp_path)[0]["tokens"] == served["vllm"]["tokens"]
