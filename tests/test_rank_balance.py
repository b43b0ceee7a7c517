"""Ranks of a lane: equal loads, nobody forgotten, and what that is worth against round-robin placement."""

from __future__ import annotations

import json

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from alignedsched.cluster import Cluster, Device, KVLayout, Lane, Role
from alignedsched.costs import AffineCosts, Load
from alignedsched.driver import drive
from alignedsched.errors import CallerError, ConfigError
from alignedsched.events import Arrived, ExecutorEvent, StepsDone
from alignedsched.plan import Plan
from alignedsched.policies.fcfs import fcfs
from alignedsched.policies.protocols import Stepped
from alignedsched.policies.rank_balance import RankLoad, RankOrder
from alignedsched.queue import Waiting
from alignedsched.request import Request
from alignedsched.scheduler import Scheduler
from alignedsched.sim.build import build
from alignedsched.sim.executor import SimulatedExecutor
from alignedsched.sim.run import run
from alignedsched.workloads import workload

COSTS = AffineCosts(0.004, 1e-5, 4e-8, per_pair=1e-10)
STEEP = AffineCosts(0.0, 0.0, 1e-6)  # nothing but the lengths counts


def cluster(ranks: int = 4, blocks: int = 400, members: int = 6) -> Cluster:
    devices = tuple(Device(f"d{i}", Role.BOTH, blocks) for i in range(ranks))
    return Cluster(devices, (Lane("lane", tuple(d.id for d in devices), 0, members, 2048),), layout=KVLayout(16, 1000))


def served(
    order: RankOrder, made: Cluster, jobs: list[tuple[int, int]], costs: AffineCosts = COSTS
) -> list[tuple[str, int]]:
    """Serve jobs (prompt, output) that are all there at once; (request, rank) in the order in which they began."""
    scheduler = Scheduler(made, evolve(fcfs(), admission=order, watches=(order,)), costs)
    executor = SimulatedExecutor(made, costs)
    began: list[tuple[str, int]] = []

    def arrivals() -> object:
        for number, (prompt, output) in enumerate(jobs):
            executor.expect(f"r{number}", output)
            yield 0.0, Arrived(Request(f"r{number}", prompt, output))

    def watch(now: float, events: object, plan: Plan) -> None:
        began.extend((c.request, c.rank) for step in plan.steps for c in step.chunks if c.start == 0)

    drive(scheduler, executor, arrivals(), observe=watch)  # type: ignore[arg-type]
    assert scheduler.idle()
    scheduler.check()
    assert scheduler.counts["finished"] == len(jobs)
    return began


JOBS = st.lists(st.tuples(st.integers(1, 4000), st.integers(1, 60)), min_size=1, max_size=40)


@given(JOBS, st.integers(1, 5), st.sampled_from([1, 3, 8]))
def test_everybody_is_served_and_passed_over_only_so_often(
    jobs: list[tuple[int, int]], ranks: int, window: int
) -> None:
    began = served(RankOrder(window=window), cluster(ranks), jobs)
    first: dict[str, int] = {}
    for position, (request, _) in enumerate(began):
        first.setdefault(request, position)
    assert len(first) == len(jobs)
    preempted = len(began) > len(jobs)
    turns = sorted(first, key=lambda request: first[request])
    for number in range(len(jobs)):
        name = f"r{number}"
        earlier = turns[: turns.index(name)]
        overtook = [other for other in earlier if int(other[1:]) > number]
        assert preempted or len(overtook) < window


@given(JOBS)
def test_round_robin_binds_requests_to_ranks_as_they_arrive(jobs: list[tuple[int, int]]) -> None:
    began = served(RankOrder(place="round_robin"), cluster(4), jobs)
    assert all(rank == int(request[1:]) % 4 for request, rank in began)


@given(JOBS)
def test_one_rank_is_plain_continuous_batching(jobs: list[tuple[int, int]]) -> None:
    made = cluster(1)
    plain: list[tuple[str, int]] = []
    for order in (RankOrder(), RankOrder(place="round_robin")):
        began = served(order, made, jobs)
        assert began == (plain or began)
        plain = began


def test_long_ones_spread_over_the_ranks() -> None:
    """Eight long and eight short, in turn: taking turns would put all the long ones on the same two ranks."""
    jobs = [(1500, 40) if number % 4 == 0 else (30, 40) for number in range(32)]
    began = dict(served(RankOrder(), cluster(4, blocks=2000, members=8), jobs, STEEP))
    long = [began[f"r{number}"] for number in range(0, 32, 4)]
    assert sorted(long) == [0, 0, 1, 1, 2, 2, 3, 3]


def test_an_opening_on_a_light_rank_goes_to_a_long_one_and_the_other_way_round() -> None:
    def pair(light: int) -> int:
        order = RankOrder(ahead=0)
        ranks = [RankLoad(0, 5, light, 500, 2048, 400, 1), RankLoad(1, 5, 3000, 900, 2048, 400, 0)]
        made = cluster(2)
        scheduler = Scheduler(made, fcfs(), STEEP)
        for number, prompt in enumerate([500, 20, 2000]):
            scheduler._books.queue.add(_waiting(number, prompt))
        (chosen, rank), *_ = order._chosen(scheduler.view("lane"), ranks)
        assert rank.rank == 0
        return chosen.request.prompt_tokens

    assert pair(1000) == 2000
    assert pair(6000) == 20
    assert pair(3000) == 500, "ranks that are even go on in order of arrival"


def _waiting(number: int, prompt: int) -> Waiting:
    return Waiting(Request(f"r{number}", prompt), number)


def test_prefill_waits_for_more_ranks_but_not_for_ever() -> None:
    """One opening at a time: prefill is begun on several ranks at once, and in the end everybody is served."""
    jobs = [(1000 + 37 * number, 20 + 11 * number % 50) for number in range(40)]
    steps: dict[int, int] = {}

    def prefills(order: RankOrder) -> float:
        made = cluster(4, blocks=500, members=8)
        scheduler = Scheduler(made, evolve(fcfs(), admission=order, watches=(order,)), COSTS)
        executor = SimulatedExecutor(made, COSTS)
        alone = total = 0

        def arrivals() -> object:
            for number, (prompt, output) in enumerate(jobs):
                executor.expect(f"r{number}", output)
                yield 0.0, Arrived(Request(f"r{number}", prompt, output))

        def watch(now: float, events: object, plan: Plan) -> None:
            nonlocal alone, total
            for step in plan.steps:
                if step.chunks:
                    total += 1
                    alone += len({chunk.rank for chunk in step.chunks}) == 1

        drive(scheduler, executor, arrivals(), observe=watch)  # type: ignore[arg-type]
        steps[len(steps)] = total
        return executor.now()

    assert prefills(RankOrder()) < 0.95 * prefills(RankOrder(place="round_robin"))
    assert steps[0] < steps[1]


@pytest.mark.parametrize("name", ["mooncake", "azure-conv"])
def test_it_beats_round_robin_on_eight_ranks(name: str) -> None:
    """Throughput at least 1.25 times that of round-robin placement, offline, where ranks are full."""
    built = build("h100", "llama-3.1-8b", topology="colocated", lanes=1, surface="gated", staging=False, ranks=8)
    traffic = workload(name, seed=1, n=5000 if name == "azure-conv" else 700).offline()

    def throughput(place: str) -> float:
        made = run(traffic, built.cluster, built.costs, fcfs(place=place)).figures
        return float(made["throughput_tok_s"])

    assert throughput("least") > 1.25 * throughput("round_robin")


def test_what_the_callers_hook_holds_back_stops_nobody() -> None:
    made = cluster(2)
    scheduler = Scheduler(made, fcfs(place="least"), COSTS, eligible=lambda request: request.id > "r5")
    plan = scheduler.handle(0.0, *(Arrived(Request(f"r{number}", 100)) for number in range(8)))
    assert {chunk.request for step in plan.steps for chunk in step.chunks} == {"r6", "r7"}


def test_by_priority_nobody_passes_anybody() -> None:
    order = RankOrder(by_priority=True)
    assert order.rank(Request("a", 1, priority=5)) < order.rank(Request("b", 1))
    began = served(order, cluster(3), [(3000, 10), (20, 10), (2500, 30), (3900, 5), (10, 10)] * 4)
    first = list(dict.fromkeys(request for request, _ in began))
    assert first == sorted(first, key=lambda request: int(request[1:]))


class Untimed(SimulatedExecutor):
    """Does not tell how long steps took."""

    def wait(self, until: float | None) -> list[ExecutorEvent]:
        return [evolve(e, seconds=0.0) if isinstance(e, StepsDone) else e for e in super().wait(until)]


def test_prefill_does_not_wait_for_seconds_that_nobody_tells() -> None:
    """Nothing would say that it has waited long enough: the last request to come would begin when all have ended."""
    made, jobs = cluster(2, blocks=2000), [("long", 100, 2000, 0.0), *((f"r{i}", 500, 50, 1.0 + i) for i in range(5))]
    scheduler, executor = Scheduler(made, fcfs(place="least"), COSTS), Untimed(made, COSTS)
    for name, _, output, _ in jobs:
        executor.expect(name, output)
    began: dict[str, float] = {}

    def watch(now: float, events: object, plan: Plan) -> None:
        began.update((chunk.request, now) for step in plan.steps for chunk in step.chunks)

    arrivals = [(at, Arrived(Request(name, prompt, output, at))) for name, prompt, output, at in jobs]
    drive(scheduler, executor, arrivals, observe=watch)
    assert all(began[name] < at + 0.5 for name, _, _, at in jobs)


def test_a_snapshot_is_plain_and_comes_back() -> None:
    order, other = RankOrder(), RankOrder()
    order.stepped(Stepped("lane", (Load(1, 5, 5),), 3, 1.5))
    order.stepped(Stepped("lane", (Load(1, 5, 5),), 3, 1.5))
    assert order.state() == {"lane": 3.0}
    other.load(json.loads(json.dumps(order.state())))
    assert other.state() == order.state()
    with pytest.raises(CallerError, match="RankOrder"):
        other.load({"lane": -1.0})
    assert other.state() == order.state()
    order.stepped(Stepped("lane", (Load(1, 5, 5, ((0, 9),)),), 1, 1.5))
    assert order.state() == {"lane": 0.0}
    with pytest.raises(ConfigError, match=r"RankOrder\.place must be one of least, round_robin"):
        RankOrder(place="best")
