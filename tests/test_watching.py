"""What watches hear: loads that explain the seconds reported, every end once, and nothing half taken in."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from attrs import evolve

from alignedsched.cluster import HOST, Cluster, Device, KVLayout, Lane, Link, Role
from alignedsched.costs import AffineCosts, lane_finishing_times, lane_seconds
from alignedsched.errors import PolicyError
from alignedsched.events import Arrived, StepsDone
from alignedsched.policies import density_first, fcfs
from alignedsched.policies.protocols import Policy
from alignedsched.request import Request
from alignedsched.scheduler import Scheduler
from alignedsched.sim.run import RunResult, run
from alignedsched.workloads import workload
from tests.notes import Notes

COSTS = AffineCosts(0.004, 1e-5, 4e-8, 7e-7, "unsplit", per_pair=1e-9)


def cluster(ranks: int = 1, run_ahead: int = 0, blocks: int = 1500) -> Cluster:
    devices = tuple(Device(f"d{i}", Role.BOTH, blocks) for i in range(ranks))
    links = tuple(link for d in devices for link in (Link(d.id, HOST, 50e9, 1e-5), Link(HOST, d.id, 50e9, 1e-5)))
    lane = Lane("lane", tuple(d.id for d in devices), run_ahead, 24, 2048)
    return Cluster(devices, (lane,), 100_000, links, KVLayout(16, 131_072))


def watched(policy: Policy, made: Cluster, n: int = 150) -> tuple[Notes, RunResult]:
    notes = Notes()
    traffic = workload("azure-conv", seed=2, n=n).scaled(8.0)
    return notes, run(traffic, made, COSTS, evolve(policy, watches=(notes,)))


def errors(notes: Notes) -> Iterator[float]:
    """By how much the seconds reported differ from what the loads reported cost."""
    for facts in notes.steps:
        if facts.prefill:
            assert facts.steps == 1
            told = lane_seconds(COSTS, facts.loads)
        else:
            told = float(lane_finishing_times(COSTS, facts.loads, facts.steps)[-1])
        yield abs(told / facts.seconds - 1)


@pytest.mark.parametrize("ranks", [1, 4])
@pytest.mark.parametrize("policy", [fcfs(), fcfs(swap=True), density_first()])
def test_loads_explain_the_seconds(policy: Policy, ranks: int) -> None:
    """In lockstep with the executor they do so exactly."""
    notes, result = watched(policy, cluster(ranks))
    assert len(notes.steps) > 200
    assert max(errors(notes)) < 1e-6
    assert sum(facts.steps for facts in notes.steps) == result.figures["steps"]


def test_with_steps_launched_ahead_only_rows_beyond_an_end_are_missing() -> None:
    notes, result = watched(fcfs(), cluster(run_ahead=1))
    wrong = sorted(errors(notes))
    assert wrong[len(wrong) // 2] < 1e-6
    assert wrong[int(0.9 * len(wrong))] < 0.05
    assert sum(facts.steps for facts in notes.steps) == result.figures["steps"]


def test_every_end_is_heard_once_with_what_was_made() -> None:
    notes, result = watched(fcfs(), cluster(blocks=400))
    assert result.figures["preemptions"] > 0, "the case is meant to preempt"
    assert len({request for request, _, _ in notes.ends}) == len(notes.ends) == result.figures["requests"]["finished"]
    assert all(finished for _, _, finished in notes.ends)
    assert sum(produced for _, produced, _ in notes.ends) == result.figures["output_tokens"]


def test_steps_are_told_of_also_where_the_executor_does_not_say_how_long_they_took() -> None:
    made, notes = cluster(), Notes()
    scheduler = Scheduler(made, evolve(fcfs(), watches=(notes,)), COSTS)
    scheduler.handle(0.0, Arrived(Request("a", 10, 9)))
    scheduler.handle(1.0, StepsDone("lane", 0, 0, 0, (), ("a",)))
    (told,) = notes.steps
    assert (told.steps, told.seconds, told.prefill) == (1, 0.0, True)


def test_watches_change_nothing() -> None:
    plain = run(workload("azure-conv", seed=2, n=150).scaled(8.0), cluster(2), COSTS, fcfs()).figures
    _, result = watched(fcfs(), cluster(2))
    assert {**plain, "wall_s": 0} == {**result.figures, "wall_s": 0}


def test_a_watch_that_raises_is_blamed_and_the_next_call_goes_on() -> None:
    class Deaf(Notes):
        def ended(self, request: Request, produced: int, finished: bool) -> None:
            raise RuntimeError("no ears")

    made = cluster()
    scheduler = Scheduler(made, evolve(fcfs(), watches=(Deaf(),)), COSTS)
    scheduler.handle(0.0, Arrived(Request("a", 10, 1)))
    with pytest.raises(PolicyError, match="no ears"):
        scheduler.handle(1.0, StepsDone("lane", 0, 0, 0, (("a", 0),), ("a",), 0.01))
    scheduler.check()
    scheduler.handle(1.1)
    assert scheduler.idle()
