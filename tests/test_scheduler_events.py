"""What a scheduler refuses to believe, what it ignores, and that the same events always give the same plans."""

from __future__ import annotations

import hashlib
import math
import os
import subprocess
import sys
from random import Random
from typing import Any

import pytest

from alignedsched import policies
from alignedsched.cluster import Cluster, Device, KVLayout, Lane, Role
from alignedsched.errors import AlignedSchedError, CallerError, ConfigError, ExecutorError, PolicyError
from alignedsched.events import (
    Arrived,
    Cancelled,
    CapacityChanged,
    CopyDone,
    CopyFailed,
    DeviceBack,
    DeviceLost,
    Event,
    LaneBack,
    LaneLost,
    LinkChanged,
    StagedLost,
    StepsDone,
    StepsFailed,
)
from alignedsched.plan import Outcome
from alignedsched.policies.admission import ArrivalOrder
from alignedsched.policies.fcfs import ContinuousBatching
from alignedsched.policies.protocols import Policy, Take
from alignedsched.policies.residency import DirectResidency
from alignedsched.request import Request
from alignedsched.scheduler import Scheduler
from alignedsched.testing.world import World
from alignedsched.views import LaneView


def cluster(blocks: int = 20, positions: int = 100) -> Cluster:
    return Cluster(
        (Device("g0", Role.BOTH, blocks),),
        (Lane("l0", ("g0",), max_members=4, max_tokens=32),),
        layout=KVLayout(4, 10),
        max_positions=positions,
    )


@pytest.fixture
def scheduler() -> Scheduler:
    """Order 0 has prefilled ``a``; order 1 lets it decode, from step 1 on, and has reported nothing."""
    scheduler = Scheduler(cluster(), policies.fcfs(), max_horizon=8)
    scheduler.handle(0.0, Arrived(Request("a", 4, 6)))
    scheduler.handle(1.0, StepsDone("l0", 0, 0, 0, prefilled=("a",)))
    return scheduler


def _facts(scheduler: Scheduler) -> tuple[object, ...]:
    view = scheduler.view("l0")
    return dict(scheduler.counts), view.free("g0"), scheduler.live, scheduler.queued, list(view.ranks[0].batch)


BAD: list[tuple[Event, type[AlignedSchedError], str]] = [
    (StepsDone("l9", 1, 1, 1), ExecutorError, "l9.*known: l0"),
    (StepsDone("l0", 7, 1, 1), ExecutorError, "order 7.*no such order"),
    (StepsDone("l0", 0, 0, 1), ExecutorError, "order 0: step 1 lies beyond its horizon"),
    (StepsDone("l0", 1, 3, 1), ExecutorError, "no range"),
    (StepsDone("l0", 1, 0, 1), ExecutorError, "step 0 is done"),
    (StepsDone("l0", 1, 2, 2), ExecutorError, "later than run_ahead 0 allows"),
    (StepsDone("l0", 1, 1, 9), ExecutorError, "beyond its horizon of"),
    (StepsDone("l0", 1, 1, 2, finished=(("b", 1),)), ExecutorError, "'b' finished, but is no member"),
    (StepsDone("l0", 1, 1, 2, finished=(("a", 3),)), ExecutorError, "outside of what is newly done"),
    (StepsDone("l0", 1, 1, 6), ExecutorError, "'a' went on beyond its limit, reached in step 5"),
    (StepsDone("l0", 1, 1, 2, launched=1), ExecutorError, "ran step 2, but launched only 1"),
    (StepsDone("l0", 1, 1, 2, prefilled=("b",)), ExecutorError, r"prefilled \('b',\), but its chunks are of \(\)"),
    (StepsFailed("l9", 1, 1, 0, "?"), ExecutorError, "l9"),
    (CopyDone(0), ExecutorError, "copy 0; 0 were ordered"),
    (CopyFailed(-1), ExecutorError, "copy -1"),
    (CapacityChanged("attic", 3), ExecutorError, "'attic'; known: g0"),
    (CapacityChanged("g0", -1), ExecutorError, "at least 0"),
    (LinkChanged("g0", "host", 1.0), ExecutorError, "not linked"),
    (LaneLost("l9"), ExecutorError, "l9"),
    (LaneBack("l9", 0), ExecutorError, "l9"),
    (DeviceLost("g9"), ExecutorError, "'g9'; known: g0"),
    (DeviceBack("g9"), ExecutorError, "'g9'; known: g0"),
    (StagedLost("g0"), ExecutorError, "stages nothing"),
    (Arrived(Request("a", 3)), CallerError, "'a' is here already"),
    (Arrived("a"), CallerError, "must be a Request"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("event", "error", "says"), BAD, ids=lambda value: type(value).__name__)
def test_what_cannot_be_true_is_refused_before_anything_changes(
    scheduler: Scheduler, event: Event, error: type[AlignedSchedError], says: str
) -> None:
    before = _facts(scheduler)
    with pytest.raises(error, match=says):
        scheduler.handle(2.0, event)
    assert _facts(scheduler) == before
    scheduler.check()
    scheduler.handle(3.0, StepsDone("l0", 1, 1, 1))  # and the truth is still taken


def test_what_is_no_event_is_refused_with_a_list_of_what_is(scheduler: Scheduler) -> None:
    with pytest.raises(CallerError, match="no event; known: Arrived"):
        scheduler.handle(2.0, "StepsDone")  # type: ignore[arg-type]


@pytest.mark.parametrize("now", [math.nan, math.inf, -math.inf])
def test_time_is_a_finite_number(scheduler: Scheduler, now: float) -> None:
    before = _facts(scheduler)
    with pytest.raises(CallerError, match="finite number of seconds"):
        scheduler.handle(now, Arrived(Request("b", 1)))
    assert _facts(scheduler) == before


def test_time_that_falls_is_taken_as_the_last_and_counted(scheduler: Scheduler) -> None:
    scheduler.handle(0.5)
    assert scheduler.now == 1.0
    assert scheduler.counts["late_now"] == 1


def test_one_id_twice_in_a_call_is_refused_as_a_whole(scheduler: Scheduler) -> None:
    with pytest.raises(CallerError, match="twice in one call"):
        scheduler.handle(2.0, Arrived(Request("b", 1)), Arrived(Request("b", 2)))
    assert scheduler.queued == 0
    assert scheduler.counts["arrived"] == 1


def test_an_id_may_come_again_when_it_has_ended(scheduler: Scheduler) -> None:
    scheduler.handle(2.0, StepsDone("l0", 1, 1, 1, finished=(("a", 1),)))
    for order in range(2, 4):
        if scheduler.live:
            scheduler.handle(3.0, StepsDone("l0", order, 2, 1))
    scheduler.handle(4.0, Arrived(Request("a", 4, 6)))
    assert scheduler.counts["arrived"] == 2


def test_late_and_duplicate_reports_change_nothing_but_a_counter(scheduler: Scheduler) -> None:
    report = StepsDone("l0", 1, 1, 2)
    scheduler.handle(2.0, report)
    before = _facts(scheduler)[1:]
    late: list[Event] = [report, StepsDone("l0", 1, 1, 1), StepsDone("l0", 0, 0, 0, prefilled=("a",)), Cancelled("x")]
    for event in late:
        scheduler.handle(3.0, event)
        scheduler.check()
    assert _facts(scheduler)[1:] == before
    assert scheduler.counts["ignored"] == len(late)


@pytest.mark.parametrize(
    ("prompt", "limit", "why"),
    [(95, 6, "101 tokens exceed the model's 100 positions"), (80, 2, "fits on no device"), (70, 20, "no device")],
)
def test_what_can_never_fit_is_refused_with_the_reason(prompt: int, limit: int, why: str) -> None:
    scheduler = Scheduler(cluster(), policies.fcfs())
    plan = scheduler.handle(0.0, Arrived(Request("big", prompt, limit)))
    assert [(r.request, r.outcome) for r in plan.releases] == [("big", Outcome.REJECTED)]
    assert why in plan.releases[0].why
    assert scheduler.idle()


def test_a_policy_that_raises_is_named_and_the_next_call_goes_on() -> None:
    class Broken(ArrivalOrder):
        def admit(self, view: LaneView) -> list[Take]:  # type: ignore[override]
            raise ZeroDivisionError("oh")

    policy = Policy("broken", Broken(), ContinuousBatching(), DirectResidency())
    scheduler = Scheduler(cluster(), policy)
    with pytest.raises(PolicyError, match=r"'broken'.*ZeroDivisionError: oh"):
        scheduler.handle(0.0, Arrived(Request("a", 4)))
    scheduler.check()
    assert scheduler.queued == 1
    plan = scheduler.handle(1.0, Cancelled("a"))
    assert plan.releases[0].outcome is Outcome.CANCELLED


@pytest.mark.parametrize(
    "options",
    [
        {"max_horizon": 0}, {"max_horizon": 2.5}, {"max_kinds": 0}, {"copy_retries": -1}, {"step_retries": "x"},
        {"copy_lease_s": float("nan")}, {"step_lease_s": -1.0},
    ],
)  # fmt: skip
def test_the_configuration_is_checked(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=rf"Scheduler\.{next(iter(options))} must be"):
        Scheduler(cluster(), policies.fcfs(), **options)


def fingerprint(seed: int) -> str:
    """A digest of everything said in one random life."""
    world = World(seed)
    digest = hashlib.sha256()
    rng = Random(seed)
    for _ in range(120):
        world.act(rng)
        digest.update(repr((world.log[-2], world.log[-1])).encode())
    return digest.hexdigest()


def test_the_same_events_give_the_same_plans_in_another_process_under_another_hash_seed() -> None:
    seeds = (3, 11, 19, 42)
    code = f"from tests.test_scheduler_events import fingerprint; print(*map(fingerprint, {seeds}))"
    told = set()
    for hash_seed in ("1", "77"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        told.add(done.stdout)
    assert len(told) == 1
    assert told.pop().split() == [fingerprint(seed) for seed in seeds]


def test_without_a_policy_the_default_one_decides() -> None:
    cluster = Cluster((Device("g0", Role.BOTH, 8),), (Lane("l0", ("g0",)),))
    assert Scheduler(cluster).policy.name == "cost_aligned"
