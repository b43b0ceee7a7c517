"""Every family of faults over the simulated executor: nobody is lost, nothing leaks; and leases for lost reports."""

from __future__ import annotations

import math
from collections import Counter
from random import Random

import pytest
from attrs import evolve

from alignedsched import registry
from alignedsched.cluster import HOST, Cluster, Device, KVLayout, Lane, Role
from alignedsched.costs import AffineCosts
from alignedsched.driver import drive
from alignedsched.errors import ConfigError, ExecutorError
from alignedsched.events import (
    Arrived,
    CallerEvent,
    CapacityChanged,
    CopyDone,
    CopyFailed,
    Event,
    LaneBack,
    LinkChanged,
    StepsDone,
)
from alignedsched.plan import Outcome, Plan
from alignedsched.policies.admission import ArrivalOrder
from alignedsched.policies.protocols import Composition, Policy, Sacrifice, Transfer
from alignedsched.request import Request
from alignedsched.scheduler import Scheduler
from alignedsched.sim.executor import SimulatedExecutor
from alignedsched.testing.clusters import both_ways
from alignedsched.testing.faults import FAMILIES, Fault, FaultPlan, cancel_storm
from alignedsched.testing.faulty_executor import FaultyExecutor
from alignedsched.views import LaneView

COSTS = AffineCosts(0.01, 1e-4, 1e-6, 3e-5, "gated", 4.0, 1e-9)
LAYOUT = KVLayout(8, 100_000)
ONE = Cluster((Device("g0", Role.BOTH, 60),), (Lane("l0", ("g0",), 1, 8, 64),), 80, both_ways("g0", HOST), LAYOUT, 400)
TWO = Cluster(
    (Device("g0", Role.BOTH, 60), Device("g1", Role.BOTH, 60)),
    (Lane("l0", ("g0",), 0, 8, 64), Lane("l1", ("g1",), 1, 8, 64)),
    0,
    both_ways("g0", "g1"),
    LAYOUT,
    400,
)
RANKS = Cluster(
    (Device("g0", Role.BOTH, 60), Device("g1", Role.BOTH, 60)),
    (Lane("l0", ("g0", "g1"), 1, 8, 64),),
    40,
    (*both_ways("g0", HOST), *both_ways("g1", HOST)),
    LAYOUT,
    400,
)
APART = Cluster(
    (Device("p0", Role.PREFILL, 60, 40), Device("g0", Role.DECODE, 60)),
    (Lane("p", ("p0",), 0, 8, 64), Lane("l0", ("g0",), 1, 8, 64)),
    80,
    (*both_ways("p0", "g0"), *both_ways("p0", HOST), *both_ways("g0", HOST)),
    LAYOUT,
    400,
)
CLUSTERS = (ONE, TWO, RANKS, APART)


class Ran:
    """One run under faults: what was struck and how everybody ended. Everything is checked at every call."""

    def __init__(self, cluster: Cluster, plan: FaultPlan, *, requests: int = 40, storm: bool = False) -> None:
        rng = Random(plan.seed)
        policy = registry.policy(rng.choice(registry.policy_names()))
        self.scheduler = Scheduler(cluster, policy, COSTS, copy_lease_s=2.0, max_horizon=rng.choice((1, 8, 64)))
        inner = SimulatedExecutor(cluster, COSTS)
        self.executor = FaultyExecutor(inner, cluster, plan)
        self.cluster = cluster
        self.ended: Counter[str] = Counter()
        self.outcomes: Counter[Outcome] = Counter()
        self.calls = 0
        arrivals: list[tuple[float, CallerEvent]] = []
        time = 0.0
        for number in range(requests):
            time += rng.random() * 0.05
            request = Request(f"r{number}", rng.randint(1, 120), rng.choice((None, 40)), time)
            inner.expect(request.id, rng.randint(1, 40))
            arrivals.append((time, Arrived(request)))
        self.requests = requests
        drive(
            self.scheduler,
            self.executor,
            cancel_storm(arrivals, time / 2, share=0.5, seed=plan.seed) if storm else arrivals,
            observe=self._observe,
        )

    def _observe(self, now: float, events: tuple[Event, ...], plan: Plan) -> None:
        self.scheduler.check()
        self.ended.update(release.request for release in plan.releases)
        self.outcomes.update(release.outcome for release in plan.releases)
        self.calls += 1
        assert self.calls < 20_000, "it goes on for ever"

    def assert_all_over(self) -> None:
        """Every request ended exactly once, and all that is not free is quarantine that names its copy."""
        assert len(self.ended) == self.requests
        assert set(self.ended.values()) == {1}
        books = self.scheduler._books
        quarantined: Counter[str] = Counter()
        for flight in books.quarantine.values():
            quarantined[flight.target] += flight.quarantined
        for tier in self.cluster.tiers:
            assert books.ledger.free(tier) + quarantined[tier] == books.ledger.capacity(tier), tier


@pytest.mark.parametrize("family", FAMILIES)
def test_nobody_is_lost_under_each_family_of_faults(family: str) -> None:
    struck = 0
    for seed, cluster in enumerate(CLUSTERS):
        ran = Ran(cluster, FaultPlan(seed, (Fault(family, 0.2, seconds=0.5),)))
        ran.assert_all_over()
        struck += ran.executor.struck.get(family, 0)
        if family in ("copy_delayed", "duplicate", "stall", "clock_stands", "clock_turns_back"):
            assert set(ran.outcomes) == {Outcome.FINISHED}, "what only costs time fails nobody"
    assert struck, "the fault never struck"


@pytest.mark.parametrize("seed", range(12))
def test_nobody_is_lost_under_many_faults_at_once(seed: int) -> None:
    plan = FaultPlan.drawn(seed, seconds=(0.05, 0.5, 5.0)[seed % 3])
    Ran(CLUSTERS[seed % len(CLUSTERS)], plan, storm=seed % 2 == 0).assert_all_over()


def test_a_lost_lane_or_device_that_never_comes_back_leaves_its_work_to_the_others() -> None:
    for seed, family in enumerate(("lane_lost", "device_lost")):
        fault = Fault(family, 0.3, target="l0" if family == "lane_lost" else "g0", seconds=math.inf)
        ran = Ran(TWO, FaultPlan(seed, (fault,)))
        ran.assert_all_over()
        assert ran.executor.struck == {family: 1}
        assert ran.outcomes[Outcome.FINISHED] == ran.requests


def test_completions_that_never_come_leave_quarantine_and_nothing_else() -> None:
    ran = Ran(APART, FaultPlan(3, (Fault("copy_lost", 0.1, seconds=math.inf),)))
    ran.assert_all_over()
    assert ran.executor.struck["copy_lost"] == len(ran.scheduler._books.quarantine) > 0
    assert ran.outcomes[Outcome.FINISHED] + ran.outcomes[Outcome.FAILED] == ran.requests


def test_the_same_plan_does_the_same() -> None:
    one, two = (Ran(APART, FaultPlan.drawn(8, seconds=0.5)) for _ in range(2))
    assert (one.calls, one.executor.struck, one.outcomes) == (two.calls, two.executor.struck, two.outcomes)


def test_nonsense_in_a_fault_plan_is_refused_by_field() -> None:
    for bad, field in (
        ({"family": "gremlins"}, "family"),
        ({"family": "stall", "probability": 1.5}, "probability"),
        ({"family": "stall", "seconds": -1.0}, "seconds"),
        ({"family": "stall", "start": math.nan}, "start"),
    ):
        with pytest.raises(ConfigError, match=field):
            Fault(**bad)


def test_time_faults_need_virtual_time() -> None:
    class Real:
        def now(self) -> float:
            return 0.0

        def submit(self, plan: Plan) -> None: ...

        def wait(self, until: float | None) -> list[StepsDone]:
            return []

    with pytest.raises(ConfigError, match="virtual time"):
        FaultyExecutor(Real(), ONE, FaultPlan(0, (Fault("stall"),)))  # type: ignore[arg-type]


# -- leases


def prefilled(scheduler: Scheduler, name: str = "a", tokens: int = 9) -> Plan:
    """A request whose prefill on lane p is done; the plan that answers it."""
    plan = scheduler.handle(0.0, Arrived(Request(name, tokens, 20)))
    (step,) = plan.steps
    return scheduler.handle(1.0, StepsDone("p", step.order, 0, 0, prefilled=(name,)))


def test_a_copy_without_completion_frees_its_request_and_quarantines_its_target() -> None:
    scheduler = Scheduler(APART, registry.policy("fcfs"), copy_lease_s=2.0)
    first = prefilled(scheduler)
    (copy,) = first.copies
    assert first.wake_at == 3.0, "the lease ends even if nothing else happens"
    again = scheduler.handle(3.0)
    assert [abort.copy for abort in again.aborts] == [copy.copy]
    assert [(drop.request, drop.tier) for drop in again.drops] == [("a", "g0")]
    (second,) = again.copies
    assert (second.request, second.target) == ("a", "g0"), "its KV is sent once more"
    view = scheduler.view("l0")
    assert view.free("g0") == 60 - 2 - 2, "both targets are charged"
    joined = scheduler.handle(3.5, CopyDone(second.copy))
    assert [join.request for step in joined.steps for join in step.joins] == ["a"]
    free = view.free("g0")
    scheduler.handle(3.6, CopyDone(copy.copy))
    assert view.free("g0") == free + 2, "the late completion gives the quarantine back, and nothing more"
    before = dict(scheduler.counts)
    scheduler.handle(3.7, CopyDone(copy.copy))
    assert scheduler.counts["ignored"] == before["ignored"] + 1
    scheduler.check()


def test_a_silent_lane_is_given_up_and_its_requests_are_computed_again() -> None:
    scheduler = Scheduler(TWO, registry.policy("fcfs"), step_lease_s=5.0)
    plan = scheduler.handle(0.0, Arrived(Request("a", 9, 20)))
    (step,) = plan.steps
    assert plan.wake_at == 5.0
    given_up = scheduler.handle(5.0)
    assert given_up.given_up == (step.lane,)
    (elsewhere,) = given_up.steps
    assert elsewhere.lane != step.lane
    assert [chunk.request for chunk in elsewhere.chunks] == ["a"]
    late = scheduler.handle(6.0, StepsDone(step.lane, step.order, 0, 0, prefilled=("a",)))
    assert scheduler.counts["ignored"] == 1, "what the lane says now has not happened"
    assert not late.steps
    scheduler.handle(7.0, LaneBack(step.lane, 1))
    scheduler.check()


def test_a_report_in_time_renews_the_lease() -> None:
    scheduler = Scheduler(ONE, registry.policy("fcfs"), step_lease_s=5.0, max_horizon=4)
    (step,) = scheduler.handle(0.0, Arrived(Request("a", 9, 20))).steps
    plan = scheduler.handle(4.0, StepsDone("l0", step.order, 0, 0, prefilled=("a",)))
    assert plan.wake_at == 9.0
    assert not scheduler.handle(8.9).given_up
    assert scheduler.handle(9.0).given_up == ("l0",)


def test_a_lease_too_short_is_said_by_the_simulated_executor() -> None:
    scheduler = Scheduler(ONE, registry.policy("fcfs"), COSTS, step_lease_s=0.001)
    executor = SimulatedExecutor(ONE, COSTS)
    executor.expect("a", 5)
    with pytest.raises(ExecutorError, match="step_lease_s is too short"):
        drive(scheduler, executor, [(0.0, Arrived(Request("a", 9, 20)))])


# -- capacity


def test_a_smaller_host_tier_is_cleared_and_its_requests_go_on() -> None:
    scheduler = Scheduler(APART, registry.policy("density_first"), copy_lease_s=2.0)
    plan = prefilled(scheduler)
    ids = {copy.target: copy for copy in plan.copies}
    plan = scheduler.handle(2.0, *(CopyDone(copy.copy) for copy in ids.values()))
    scheduler.handle(2.5, CapacityChanged(HOST, 0))
    scheduler.check()
    assert scheduler.view("l0").free(HOST) >= 0


def test_a_request_that_does_not_fit_now_waits_and_blocks_nobody() -> None:
    scheduler = Scheduler(ONE, registry.policy("fcfs"))
    scheduler.handle(0.0, CapacityChanged("g0", 5))
    plan = scheduler.handle(0.1, Arrived(Request("large", 100, 5)), Arrived(Request("small", 8, 5)))
    assert [chunk.request for step in plan.steps for chunk in step.chunks] == ["small"]
    assert scheduler.queued == 1
    plan = scheduler.handle(0.2, CapacityChanged("g0", 60))
    chunks = [chunk.request for step in plan.steps for chunk in step.chunks]
    assert chunks == ["large"], "the capacity is back, and so is its turn"


# -- bugs that the swarm found


class Script:
    """Policies that do what they are told next."""

    def __init__(self) -> None:
        self.composition = Composition()
        self.transfers: list[Transfer] = []

    def compose(self, view: LaneView) -> Composition:
        composition, self.composition = self.composition, Composition()
        return composition

    def victims(self, view: LaneView, rank: int, blocks: int) -> list[tuple[str, Sacrifice]]:
        return []

    def place(self, view: LaneView) -> list[Transfer]:
        transfers, self.transfers = self.transfers, []
        return transfers

    def taken(self, view: LaneView, composition: Composition) -> None: ...

    def state(self) -> None: ...

    def load(self, state: object) -> None: ...


def test_a_copy_that_arrives_behind_its_request_drops_nothing_the_request_needs() -> None:
    """It was sent with nine tokens; meanwhile its request decoded where it was, and only there is the tenth."""
    script = Script()
    policy = Policy("script", ArrivalOrder(seats=False), script, script, may_idle_s=99.0)
    cluster = evolve(ONE, lanes=(Lane("l0", ("g0",), 0, 8, 64),))
    scheduler = Scheduler(cluster, policy, max_horizon=1)
    (prefill,) = scheduler.handle(0.0, Arrived(Request("a", 9, 20))).steps
    script.transfers = [Transfer("a", HOST)]
    (copy,) = scheduler.handle(1.0, StepsDone("l0", prefill.order, 0, 0, prefilled=("a",))).copies
    script.composition = Composition(joins=["a"])
    (order,) = scheduler.handle(2.0, CapacityChanged("g0", 59)).steps
    assert [join.request for join in order.joins] == ["a"]
    script.composition = Composition(parks=["a"])
    (stop, *_) = scheduler.handle(3.0, StepsDone("l0", order.order, 1, 1), Arrived(Request("b", 1, 2))).steps
    assert stop.leaves == ("a",)
    scheduler.handle(4.0, CopyDone(copy.copy))
    scheduler.check()
    assert scheduler.view("l0").entry("a").tiers == {"g0": 10, HOST: 9}


def test_nobody_is_called_again_at_once_for_what_only_a_link_can_mend() -> None:
    scheduler = Scheduler(APART, registry.policy("fcfs"))
    (copy,) = prefilled(scheduler).copies
    down = [LinkChanged(link.source, link.target, 0.0) for link in APART.links]
    plan = scheduler.handle(2.0, *down, CopyFailed(copy.copy), Arrived(Request("b", 5, 5)))
    for now in (2.0, 2.0):
        plan = scheduler.handle(now)
    assert plan.wake_at is None or plan.wake_at > 2.0
    (again,) = scheduler.handle(3.0, LinkChanged("p0", "g0", 1e9)).copies
    assert again.request == "a"


def test_a_full_device_whose_neighbours_copy_still_lets_go_what_has_outgrown_it() -> None:
    """A lone member fills its device while only copies of another lane are under way: it goes on elsewhere."""
    devices = (Device("p0", Role.PREFILL, 60), Device("g0", Role.DECODE, 60), Device("g1", Role.DECODE, 3))
    lanes = tuple(Lane(name, (device,), 0, 1, 64) for name, device in (("p", "p0"), ("l0", "g0"), ("l1", "g1")))
    links = (*both_ways("p0", "g0"), *both_ways("p0", "g1"))
    scheduler = Scheduler(Cluster(devices, lanes, 0, links, LAYOUT, 400), registry.policy("fcfs"), max_horizon=1)
    executor = SimulatedExecutor(scheduler.cluster, COSTS)
    outcomes: list[str] = []
    arrivals = [(0.001 * n, Arrived(Request(f"r{n}", 17, None, 0.001 * n))) for n in range(6)]
    for _, event in arrivals:
        executor.expect(event.request.id, 60)

    def observe(now: float, events: tuple[Event, ...], plan: Plan) -> None:
        scheduler.check()
        outcomes.extend(release.outcome.value for release in plan.releases)

    drive(scheduler, executor, arrivals, observe=observe)
    assert outcomes == ["finished"] * 6
