"""What a policy has learned of costs goes on from a snapshot, whenever it is taken."""

from __future__ import annotations

from random import Random

import pytest

from alignedsched import Cluster, Device, KVLayout, Lane, Plan, Request, Role, Scheduler
from alignedsched.costs import AffineCosts
from alignedsched.driver import drive
from alignedsched.events import Arrived, Event, StepsDone
from alignedsched.policies import cost_aligned
from alignedsched.sim.executor import SimulatedExecutor
from alignedsched.story import restore, snapshot

CLUSTER = Cluster((Device("d", Role.BOTH, 1500),), (Lane("l", ("d",), 1, 64, 2048),), layout=KVLayout(16, 1000))
PAIRS = {
    "padded, told balanced": (AffineCosts(0.001, 1e-5, 2e-7), AffineCosts(0.001, 1e-5, 4e-7, surface="padded")),
    "balanced, told padded": (
        AffineCosts(0.001, 1e-5, 1e-6, surface="padded"),
        AffineCosts(0.002, 1e-5, 5e-7, surface="balanced"),
    ),
}
Call = tuple[float, tuple[Event, ...], Plan]


def recorded(published: AffineCosts, true: AffineCosts, seed: int) -> list[Call]:
    """The calls of a run in which lengths are mixed and chunks come with decode steps."""
    rng, calls = Random(seed), list[Call]()
    executor, arrivals = SimulatedExecutor(CLUSTER, true), list[tuple[float, Arrived]]()
    for number in range(80):
        prompt = rng.choice((rng.randint(50, 300), rng.randint(50, 8000)))
        request = Request(f"r{number}", prompt, 300, 0.06 * number)
        executor.expect(request.id, rng.randint(20, 300))
        arrivals.append((request.arrival, Arrived(request)))
    drive(
        Scheduler(CLUSTER, cost_aligned(), published), executor, arrivals,
        observe=lambda now, events, plan: calls.append((now, tuple(events), plan)),
    )  # fmt: skip
    return calls


@pytest.mark.parametrize("pair", PAIRS)
def test_decisions_after_a_snapshot_are_those_of_an_uninterrupted_run(pair: str) -> None:
    """Steps with chunks that were reported before anybody asked for costs again were once forgotten."""
    published, true = PAIRS[pair]
    calls = recorded(published, true, seed=0)
    chunks = [
        at for at, (_, events, _) in enumerate(calls) if any(isinstance(e, StepsDone) and e.prefilled for e in events)
    ]
    scheduler, kept = Scheduler(CLUSTER, cost_aligned(), published), dict[int, bytes]()
    for at, (now, events, plan) in enumerate(calls):
        if at in chunks[4:60:10]:
            kept[at] = snapshot(scheduler)
        assert scheduler.handle(now, *events) == plan
    assert len(kept) == 6
    for at, data in kept.items():
        again = restore(data, CLUSTER, cost_aligned(), published)
        for now, events, plan in calls[at:]:
            assert again.handle(now, *events) == plan
        assert [watch.state() for watch in again.policy.watches] == [
            watch.state() for watch in scheduler.policy.watches
        ]
