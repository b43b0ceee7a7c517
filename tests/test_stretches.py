"""Stretches and pauses: what is reconstructed from events and plans is what the executor did."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignedsched import Cluster, Device, Lane, Role, Scheduler, policy
from alignedsched.costs import AffineCosts
from alignedsched.events import DeviceBack, DeviceLost, Event, LaneBack, LaneLost, StepsDone, StepsFailed
from alignedsched.metrics import LatencyCollector
from alignedsched.plan import Chunk, Join, Plan, Step
from alignedsched.report.lookout import Lookout, Views
from alignedsched.report.stretches import LaneTrack, Pause, Stretch
from alignedsched.sim import run as sim_run
from alignedsched.sim.build import build
from alignedsched.sim.executor import SimulatedExecutor
from alignedsched.sim.run import RunResult
from alignedsched.sim.segment import Span
from alignedsched.testing.world import World
from alignedsched.workloads import workload


class Kept:
    """A sink that keeps all it hears."""

    def __init__(self) -> None:
        self.stretches: dict[str, list[Stretch]] = defaultdict(list)
        self.lanes: dict[str, list[Stretch | Pause]] = defaultdict(list)
        self.calls = 0
        self.now = 0.0

    def begin(self, policy: str, views: Views) -> None:
        self.policy = policy

    def ran(self, stretch: Stretch, missing: int) -> None:
        self.stretches[stretch.lane].append(stretch)
        self.lanes[stretch.lane].append(stretch)

    def paused(self, pause: Pause) -> None:
        self.lanes[pause.lane].append(pause)

    def called(self, now: float, events: Sequence[Event], plan: Plan) -> None:
        self.calls += 1

    def end(self, now: float, latency: LatencyCollector | None) -> None:
        self.now = now


class Spying(SimulatedExecutor):
    """Keeps every span it ever made."""

    kept: list[Span]

    def wait(self, until: float | None) -> list[object]:  # type: ignore[override]
        told = super().wait(until)
        Spying.kept += self.spans
        return told  # type: ignore[return-value]


def looked_on(
    cluster: Cluster, rule: str, name: str = "mooncake", seed: int = 0, n: int = 60
) -> tuple[Kept, RunResult]:
    kept = Kept()
    lookout = Lookout([kept])
    costs = AffineCosts(0.004, 1e-5, 1e-7, 4e-6, surface="unsplit")
    traffic = workload(name, seed=seed, n=n).scaled(8.0)
    result = sim_run.run(
        traffic,
        cluster,
        costs,
        policy(rule),
        begin=lambda scheduler: lookout.begin(rule, scheduler),
        observe=lookout.after,
    )
    lookout.end(result.latency)
    return kept, result


def cluster_of(topology: str, lanes: int = 1, ranks: int = 1) -> Cluster:
    return build(
        "h100", "llama-3.1-8b", topology=topology, lanes=lanes, surface="gated", staging=True, ranks=ranks
    ).cluster  # fmt: skip


@pytest.mark.parametrize("rule", ["fcfs", "cost_aligned", "density_first"])
@pytest.mark.parametrize(
    ("topology", "lanes", "ranks"), [("colocated", 1, 1), ("disaggregated", 2, 1), ("colocated", 1, 2)]
)
def test_stretches_are_what_the_executor_ran(
    topology: str, lanes: int, ranks: int, rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sim_run, "SimulatedExecutor", Spying)
    Spying.kept = []
    kept, result = looked_on(cluster_of(topology, lanes, ranks), rule)
    assert sum(s.tokens for each in kept.stretches.values() for s in each) == result.figures["output_tokens"]
    assert sum(s.steps for each in kept.stretches.values() for s in each) == result.figures["steps"]
    ran: dict[str, float] = defaultdict(float)
    for span in Spying.kept:
        ran[span.lane] += span.end - span.begin
    for lane, stretches in kept.stretches.items():
        assert sum(s.end - s.begin for s in stretches) == pytest.approx(ran[lane], rel=1e-9)
    for each in kept.lanes.values():  # pauses and stretches fill the time of a lane
        assert each[-1].end == pytest.approx(kept.now)
        for one, two in itertools.pairwise(each):
            assert two.begin == pytest.approx(one.end, abs=1e-9)


def test_shares_of_the_time_are_those_of_the_result() -> None:
    """But for rows that run on past a request's end, which the executor pays for and nobody is told of."""
    from alignedsched.report.curves import SHARES, Gathering

    gathering = Gathering()
    built = build("h100", "llama-3.1-8b", topology="disaggregated", lanes=1, surface="gated", staging=True)
    lookout = Lookout([gathering])
    result = sim_run.run(
        workload("mooncake", seed=1, n=300).scaled(1.5), built.cluster, built.costs, policy("fcfs"),
        begin=lambda scheduler: lookout.begin("fcfs", scheduler), observe=lookout.after,
    )  # fmt: skip
    lookout.end(result.latency)
    (curves,) = gathering.runs
    seconds = {name: float(curves.lanes.sums(name).sum()) for name in SHARES}
    for name in ("iteration", "batch", "copy_stall"):
        share = seconds[name] / sum(seconds.values())
        assert share == pytest.approx(result.figures["bubbles"][name], abs=0.005)
    assert float(curves.lanes.sums("tokens").sum()) == pytest.approx(result.figures["output_tokens"])


class Watched(World):
    """A world with somebody who looks on."""

    lookout: Lookout | None = None

    def call(self, *events: Event) -> Plan:
        plan = super().call(*events)
        if self.lookout is not None:
            self.lookout.after(self.scheduler.now, events, plan)
        return plan


@settings(max_examples=60)
@given(st.integers(0, 1 << 20), st.booleans())
def test_whatever_happens_members_are_those_of_the_scheduler(seed: int, trouble: bool) -> None:
    """Reports late and in part, losses, cancels, failures: nothing upsets who looks on."""
    world, kept = Watched(seed, trouble), Kept()
    world.lookout = Lookout([kept])
    world.lookout.begin("any", world.scheduler)
    rng = Random(seed)
    compared = 0
    for _ in range(60):
        world.act(rng)
        for lane in world.cluster.lanes:
            track = world.lookout._tracks[lane.id]
            if not track._pending and not world.scheduler.view(lane.id).leaving:
                members = {request for rank in world.scheduler.view(lane.id).ranks for request in rank.batch}
                assert set(track._ranks) == members
                compared += 1
    assert compared
    for each in kept.lanes.values():
        for one, two in itertools.pairwise(each):
            assert one.begin <= one.end
            assert two.begin >= one.end - 1e-9


def test_who_looks_on_a_restored_scheduler_sees_its_members() -> None:
    world, rng = World(5, trouble=False, policy=policy("fcfs")), Random(5)
    members: dict[str, set[str]] = {}
    views = [world.scheduler.view(lane.id) for lane in world.cluster.lanes]
    while sum(map(len, members.values())) < 3:
        world.act(rng)
        members = {view.lane.id: {r for rank in view.ranks for r in rank.batch} for view in views}
    lookout = Lookout([Kept()])
    lookout.begin("any", world.scheduler)
    assert {lane: set(track._ranks) for lane, track in lookout._tracks.items()} == members
    for view in views:
        for rank in view.ranks:
            batch = lookout._tracks[view.lane.id]._batches[rank.rank]
            assert [batch.base(r) + view.step for r in batch] == [rank.batch.context_length(r) for r in rank.batch]


def test_the_scheduler_is_not_told_that_somebody_looks_on() -> None:
    """A run under a watch makes the same calls, and gets the same plans."""
    cluster = cluster_of("disaggregated")

    def calls(lookout: Lookout | None) -> list[tuple[float, tuple[Event, ...], Plan]]:
        seen = []

        def observe(now: float, events: tuple[Event, ...], plan: Plan) -> None:
            seen.append((now, events, plan))
            if lookout is not None:
                lookout.after(now, events, plan)

        begin = None if lookout is None else partial(lookout.begin, "density_first")
        sim_run.run(
            workload("mooncake", seed=3, n=80).scaled(8.0), cluster, AffineCosts(0.004, 1e-5, 1e-7),
            policy("density_first"), begin=begin, observe=observe,
        )  # fmt: skip
        return seen

    kept = Kept()
    unseen, seen = calls(None), calls(Lookout([kept]))
    assert unseen == seen
    assert kept.calls == len(seen)


# -- one lane, told by hand


def a_track() -> LaneTrack:
    return LaneTrack(Lane("lane", ("d",), run_ahead=1), 16, AffineCosts(0.5, 0.0, 0.25))


def order(number: int, *joins: tuple[str, int], leaves: tuple[str, ...] = ()) -> Step:
    return Step("lane", number, 10, tuple(Join(request, length) for request, length in joins), leaves)


def seen(stretches: list[Stretch]) -> list[tuple[float, float, int, int, int, int, int]]:
    return [(s.begin, s.end, s.steps, s.members, s.total, s.longest, s.shortest) for s in stretches]


def test_a_report_is_cut_where_members_join_and_finish() -> None:
    """Steps 0 to 9 of one second each: b joins at step 4 by the order the report names, a finishes with step 6."""
    track = a_track()
    track.ordered(order(0, ("a", 10)))
    assert seen(track.reported(StepsDone("lane", 0, 0, 1, seconds=2.0), 2.0)) == [(0.0, 2.0, 2, 1, 10, 10, 10)]
    track.ordered(order(1, ("b", 100)))
    told = track.reported(StepsDone("lane", 1, 4, 9, (("a", 6),), seconds=8.0), 10.0)
    assert seen(told) == [
        (2.0, 4.0, 2, 1, 12, 12, 12),
        (4.0, 7.0, 3, 2, 114, 100, 14),
        (7.0, 10.0, 3, 1, 103, 103, 103),
    ]
    assert [s.tokens for s in told] == [2, 6, 3]
    assert [s.order for s in told] == [0, 1, 1]
    assert told[1].balanced_s == pytest.approx(3 * (0.5 + 0.25 * 116)), "as long as in their middle"
    assert len({s.membership for s in told}) == 3


def test_an_order_replaced_before_it_ran_is_in_the_one_that_replaced_it() -> None:
    track = a_track()
    for step in (order(0, ("a", 10), ("b", 20)), order(1, ("c", 30), leaves=("a",)), order(2, leaves=("b",))):
        track.ordered(step)
    assert seen(track.reported(StepsDone("lane", 2, 0, 0, seconds=1.0), 1.0)) == [(0.0, 1.0, 1, 1, 30, 30, 30)]
    assert track.reported(StepsDone("lane", 2, 0, 0, seconds=1.0), 1.0) == [], "a report that comes twice"


def test_a_chunk_is_one_step_and_who_ends_with_it_never_joins() -> None:
    track = a_track()
    track.ordered(Step("lane", 0, 1, chunks=(Chunk("a", 0, 64, last=True), Chunk("b", 0, 16))))
    track.ordered(order(1, ("a", 65), ("c", 5)))
    (prefill,) = track.reported(StepsDone("lane", 0, 0, 0, (("a", 0),), ("a", "b"), 2.0), 2.0)
    assert (prefill.members, prefill.tokens, prefill.served) == (0, 1, 2)
    (decode,) = track.reported(StepsDone("lane", 1, 1, 2, seconds=1.0), 3.0)
    assert (decode.members, decode.total, decode.chunks) == (1, 5, ())


@pytest.mark.parametrize("end", ["failure", "loss of the lane", "loss of the device", "given up"])
def test_whatever_ends_a_lane_empties_it(end: str) -> None:
    cluster = Cluster((Device("d", Role.BOTH, 1000),), (Lane("lane", ("d",)),))
    kept = Kept()
    lookout = Lookout([kept])
    lookout.begin("any", Scheduler(cluster, policy("fcfs")))
    lookout.after(0.0, (), Plan(steps=(order(0, ("a", 10), ("b", 20)),)))
    lookout.after(1.0, (StepsDone("lane", 0, 0, 0, seconds=1.0),), Plan(steps=(order(1, ("c", 30)),)))
    told: dict[str, tuple[Event, ...]] = {
        "failure": (StepsFailed("lane", 0, 0, 0, "bad luck"),),
        "loss of the lane": (LaneLost("lane"), LaneBack("lane", 7)),
        "loss of the device": (DeviceLost("d"), DeviceBack("d", 7)),
        "given up": (),
    }
    lookout.after(2.0, told[end], Plan(given_up=("lane",) if end == "given up" else ()))
    lookout.after(2.0, (), Plan(steps=(order(2, ("b", 21)),)))
    lookout.after(4.0, (StepsDone("lane", 2, 7, 7, seconds=1.0),), Plan())
    lookout.end()
    first, last = kept.stretches["lane"][0], kept.stretches["lane"][-1]
    assert (first.members, first.total) == (2, 30)
    assert (last.members, last.total, last.begin, last.end) == (1, 21, 3.0 if "loss" in end else last.begin, 4.0)
