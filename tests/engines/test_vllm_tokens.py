"""A real engine on the CPU, end to end: 64 requests, the tokens of vLLM alone, whatever is parked and wherever."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from tests.engines.serve_once import Job, serve

PROMPTS = [8 + (37 * number) % 700 for number in range(64)]
OUTPUTS = [8 + (11 * number) % 33 for number in range(64)]
SOFT = {"policy": "tests.engines.rotation:soft", "look_every": 1}
HARD = {"policy": "tests.engines.rotation:hard", "look_every": 1}
POISONED = "tests.engines.poison.PoisonedConnector"


def job(model: Path, **options: Any) -> Job:
    return Job(str(model), PROMPTS, OUTPUTS, **options)


@pytest.fixture(scope="module")
def plain(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The tokens and figures of vLLM's own scheduler."""
    return serve(job(tiny_model), tmp_path_factory.mktemp("plain"))


@pytest.mark.parametrize("scheduler", ["AlignedScheduler", "AlignedAsyncScheduler"])
def test_soft_parks(scheduler: str, plain: dict[str, Any], tiny_model: Path, tmp_path: Path) -> None:
    ours = serve(job(tiny_model, scheduler=scheduler, settings=SOFT), tmp_path)
    assert (ours["scheduler"], ours["on"]) == (scheduler, True)
    assert ours["tokens"] == plain["tokens"]
    assert ours["counts"]["sat_out"] > 100
    assert ours["computed"] == plain["computed"]


@pytest.mark.parametrize("scheduler", ["AlignedScheduler", "AlignedAsyncScheduler"])
def test_hard_parks_with_freed_blocks_overwritten(
    scheduler: str, plain: dict[str, Any], tiny_model: Path, tmp_path: Path
) -> None:
    """No token is computed twice: all KV that left the device comes back from the host."""
    ours = serve(job(tiny_model, scheduler=scheduler, settings=HARD, connector=POISONED), tmp_path)
    assert (ours["scheduler"], ours["on"]) == (scheduler, True)
    assert ours["tokens"] == plain["tokens"]
    assert ours["counts"]["to_host"] > 100
    assert ours["computed"] == plain["computed"]
    assert 0 < ours["copied"][0] < ours["copied"][1]


def test_hard_parks_under_pressure_with_prefix_caching(plain: dict[str, Any], tiny_model: Path, tmp_path: Path) -> None:
    connector = "alignedsched.adapters.vllm.connector.HostConnector"
    options = {"scheduler": "AlignedScheduler", "settings": HARD, "connector": connector, "caching": True}
    ours = serve(job(tiny_model, blocks=250, **options), tmp_path)
    assert ours["on"]
    assert ours["tokens"] == plain["tokens"]
    assert ours["counts"]["to_host"] > 100


def test_the_default_takes_the_same_steps_and_writes_a_step_log(
    plain: dict[str, Any], tiny_model: Path, tmp_path: Path
) -> None:
    log = tmp_path / "steps.csv"
    ours = serve(job(tiny_model, scheduler="AlignedScheduler", settings={"step_log": str(log)}), tmp_path)
    assert ours["tokens"] == plain["tokens"]
    assert (ours["steps"], ours["computed"]) == (plain["steps"], plain["computed"])
    assert ours["counts"]["sat_out"] == 0
    with log.open() as lines:
        rows = list(csv.DictReader(lines))
    assert len(rows) > plain["steps"] * 0.8  # the last step, and steps before which the engine was idle, have no end
    assert sum(int(row["n"]) + int(row["prefill"]) for row in rows) <= plain["computed"]
    assert all(float(row["ms"]) > 0 for row in rows)


def test_an_engine_in_its_own_process_finds_the_class(plain: dict[str, Any], tiny_model: Path, tmp_path: Path) -> None:
    ours = serve(job(tiny_model, scheduler="AlignedScheduler", settings=SOFT, several_processes=True), tmp_path)
    assert ours["tokens"] == plain["tokens"]


def test_a_priority_is_not_parked_for_the_sake_of_a_lesser_one(tiny_model: Path, tmp_path: Path) -> None:
    """With vLLM's priority policy the urgent half ends in as many steps as if it were alone with its rotation."""
    urgent = [0 if number % 2 else 5 for number in range(64)]
    more = {"priorities": urgent, "engine": {"scheduling_policy": "priority"}}
    plain = serve(job(tiny_model, **more), tmp_path)
    ours = serve(job(tiny_model, scheduler="AlignedScheduler", settings=SOFT, **more), tmp_path)
    assert ours["on"]
    assert ours["tokens"] == plain["tokens"]
