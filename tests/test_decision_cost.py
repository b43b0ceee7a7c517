"""Work is proportional to change: the calls a decision makes, counted, do not follow what just runs or waits.

Calls of Python and C functions are counted, not time, so the result is the same on every machine. The times themselves
are the business of ``python -m benchmarks.decision_cost``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from statistics import mean
from types import FrameType
from typing import Any, NoReturn

import pytest

from alignedsched import Request, Scheduler, policy
from alignedsched.events import Arrived, Cancelled, Event
from benchmarks import decision_cost
from benchmarks.decision_cases import lengths, pooling
from benchmarks.deep_cases import SingleEvents
from benchmarks.step_by_step import StepByStep, decoding, one_lane

BLOCK = 16
STEPS = 3 * BLOCK  # every member crosses a block boundary three times
HORIZON = 256  # the scheduler's longest; a standing order is renewed within it


def calls_of(action: Callable[[], object]) -> int:
    """Python and C functions called by an action."""
    count = 0

    def tally(frame: FrameType, event: str, arg: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(tally)
    try:
        action()
    finally:
        sys.setprofile(None)
    return count


def calls_of_handle(rig: StepByStep, events: list[Event]) -> int:
    """Calls that handing these events over makes; what is ordered is held."""
    plans = []
    rig.now += 0.01
    count = calls_of(lambda: plans.append(rig.scheduler.handle(rig.now, *events)))
    rig.hold(plans[0])
    return count


def calls_per_step(members: int, name: str, run_ahead: int, steps: int) -> list[int]:
    rig = decoding(members, policy(name), lengths(Random(members)), run_ahead)
    lane = rig.lanes["gpu-lane"]
    phases = {rig.scheduler.view("gpu-lane").ranks[0].batch.context_length(r) % BLOCK for r in lane.members}
    assert len(lane.members) == members
    assert len(phases) == BLOCK, "every phase is there, so somebody crosses a boundary in every step"
    counts = [calls_of_handle(rig, lane.run()) for _ in range(steps)]
    assert len(lane.members) == members
    return counts


@pytest.mark.parametrize(("name", "run_ahead"), [("fcfs", 0), ("fcfs", 1), ("density_first", 0)])
def test_a_plain_step_makes_as_many_calls_for_64_as_for_1024_members(name: str, run_ahead: int) -> None:
    few = calls_per_step(64, name, run_ahead, HORIZON + STEPS)
    many = calls_per_step(1024, name, run_ahead, HORIZON + STEPS)
    assert few == many
    assert max(few) > min(few), "the horizon was renewed on the way, and that is counted too"


def test_a_plain_step_makes_as_many_calls_for_16384_members() -> None:
    few = calls_per_step(64, "fcfs", 0, STEPS)
    assert calls_per_step(16_384, "fcfs", 0, STEPS) == few
    assert max(few) <= 80, "what a plain step may cost at all, in calls"


class NotWalked(dict[str, Any]):
    """A dict that answers single questions only: built-in functions that walk over one make no calls to count."""

    def __iter__(self) -> NoReturn:
        raise AssertionError("a plain step walked over what runs")

    keys = values = items = copy = __iter__


def test_a_plain_step_walks_over_nobody() -> None:
    rig = decoding(64, policy("fcfs"), lengths(Random(64)))
    books = rig.scheduler._books
    batch = books.lanes["gpu-lane"].state.batches[0]
    batch._bases, batch._limit_of = NotWalked(batch._bases), NotWalked(batch._limit_of)
    books.live = NotWalked(books.live)
    for _ in range(HORIZON + STEPS):
        rig.round()
    with pytest.raises(AssertionError, match="walked"):
        sum(map(len, batch._bases))


def queue_of(queued: int) -> StepByStep:
    """Four members and so many requests behind them."""
    rig = StepByStep(Scheduler(one_lane(4), policy("fcfs")))
    requests = [Request(f"r{i}", 100 + i % 50) for i in range(queued + 4)]
    rig.fill(requests, "gpu-lane", 4)
    assert rig.scheduler.queued == queued
    return rig


@pytest.fixture(scope="module")
def queues() -> dict[int, StepByStep]:
    return {queued: queue_of(queued) for queued in (1000, 10_000)}


def test_an_arrival_costs_no_more_calls_behind_a_longer_queue(queues: dict[int, StepByStep]) -> None:
    few, many = (
        mean(calls_of_handle(rig, [Arrived(Request(f"n{i}", 99))]) for i in range(50)) for rig in queues.values()
    )
    assert many <= 1.1 * few


def test_a_cancel_costs_no_more_calls_in_a_longer_queue(queues: dict[int, StepByStep]) -> None:
    few, many = (
        mean(calls_of_handle(rig, [Cancelled(f"r{i}")]) for i in Random(1).sample(range(4, queued), 50))
        for queued, rig in queues.items()
    )
    assert many <= 1.2 * few


@pytest.mark.parametrize("name", ["fcfs", "density_first"])
def test_events_cost_no_more_calls_beside_a_deeper_pool(name: str) -> None:
    """A finish with its refill, and a cancel of a pooled request."""
    calls: dict[str, list[float]] = {"finish": [], "cancel": []}
    for pooled in (300, 3000):
        single = SingleEvents(pooling(policy(name), 32, pooled, host=name != "fcfs"), Random(2))
        rig, lane = single.rig, single.rig.lanes["d-lane"]
        assert rig.scheduler.pooled > 0.8 * pooled
        finishes, cancels = [], []
        for _ in range(20):
            single.rest()
            finishes.append(calls_of_handle(rig, lane.run((next(iter(lane.members)),))))
            single.rest()
            pool = list(rig.scheduler.view("d-lane").pool.by_order())
            cancels.append(calls_of_handle(rig, [Cancelled(pool[len(pool) // 2])]))
        calls["finish"].append(mean(finishes))
        calls["cancel"].append(mean(cancels))
    for event, (few, many) in calls.items():
        assert many <= 1.5 * few, f"{event}: {few} calls beside 300, {many} beside 3,000"


def test_the_benchmark_runs_small_and_writes_every_case(tmp_path: Path) -> None:
    target = tmp_path / "figures.json"
    assert decision_cost.main(["--smoke", "--json", str(target)]) == 0
    result = json.loads(target.read_text(encoding="utf-8"))
    ours = [figure["case"] for figure in result["figures"] if figure["scheduler"] == "alignedsched"]
    assert len(ours) == len(set(ours)) == 22
    assert len(result["ratios_of_medians_naive_over_ours"]) == 10
    assert {depth["scheduler"] for depth in result["queue"]} == {"alignedsched", "naive"}
    for figure in result["figures"]:
        assert 0 < figure["least_us"] <= figure["median_us"] <= figure["p999_us"] <= figure["longest_us"]
