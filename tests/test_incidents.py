"""What went wrong in other engines, as scenarios of ours; the table in docs/faults.md says where each comes from."""

from __future__ import annotations

from random import Random

import pytest
from attrs import evolve

from alignedsched import registry
from alignedsched.cluster import HOST, Cluster, Device, KVLayout, Lane, Role
from alignedsched.costs import AffineCosts
from alignedsched.driver import drive
from alignedsched.events import Arrived, Cancelled, CapacityChanged, CopyDone, CopyFailed, Event, StepsDone
from alignedsched.plan import Chunk, Outcome, Plan, Release
from alignedsched.request import Request
from alignedsched.scheduler import Scheduler
from alignedsched.sim.executor import SimulatedExecutor
from alignedsched.testing.clusters import both_ways

COSTS = AffineCosts(0.01, 1e-4, 1e-6, 3e-5, "balanced", 4.0, 1e-9)


def one_device(blocks: int, host: int = 0, *, members: int = 8, run_ahead: int = 0, tokens: int = 64) -> Cluster:
    links = both_ways("g0", HOST) if host else ()
    lane = Lane("l0", ("g0",), run_ahead, members, tokens)
    return Cluster((Device("g0", Role.BOTH, blocks),), (lane,), host, links, KVLayout(4, 100_000), 400)


def apart(prefill: int, decode: int, host: int = 0) -> Cluster:
    devices = (Device("p0", Role.PREFILL, prefill), Device("g0", Role.DECODE, decode))
    lanes = (Lane("p", ("p0",), 0, 8, 64), Lane("l0", ("g0",), 0, 8, 64))
    links = [*both_ways("p0", "g0"), *((*both_ways("p0", HOST), *both_ways("g0", HOST)) if host else ())]
    return Cluster(devices, lanes, host, tuple(links), KVLayout(4, 100_000), 400)


def serve(cluster: Cluster, policy: str, requests: list[tuple[Request, int]], **options: object) -> list[Release]:
    """Serve (request, tokens to make) over the simulated executor, everything checked at every call."""
    scheduler = Scheduler(cluster, registry.policy(policy, **options), COSTS)
    executor = SimulatedExecutor(cluster, COSTS)
    for request, tokens in requests:
        executor.expect(request.id, tokens)
    releases: list[Release] = []
    calls = [0]

    def observe(now: float, events: tuple[Event, ...], plan: Plan) -> None:
        scheduler.check()
        releases.extend(plan.releases)
        calls[0] += 1
        assert calls[0] < 20_000, "it goes on for ever"

    drive(scheduler, executor, [(request.arrival, Arrived(request)) for request, _ in requests], observe=observe)
    return releases


def chunks(plan: Plan) -> list[Chunk]:
    return [chunk for step in plan.steps for chunk in step.chunks]


def finish_prefill(scheduler: Scheduler, plan: Plan, now: float, *, lane: str = "l0", first: int = 0) -> Plan:
    """Report the one chunk order of a plan done."""
    (step,) = (step for step in plan.steps if step.lane == lane)
    names = tuple(chunk.request for chunk in step.chunks)
    return scheduler.handle(now, StepsDone(lane, step.order, first, first, prefilled=names))


@pytest.mark.parametrize("policy", registry.policy_names())
@pytest.mark.parametrize("host", [0, 8, 40])
def test_offload_pressure_deadlock(policy: str, host: int) -> None:
    """Far more KV than the device and the host hold: somebody always goes on, until all have finished."""
    rng = Random(host)
    requests = [(Request(f"r{n}", rng.randint(1, 40), None, n * 0.01), rng.randint(5, 60)) for n in range(24)]
    releases = serve(one_device(26, host), policy, requests)
    assert {release.outcome for release in releases} == {Outcome.FINISHED}
    assert len(releases) == len(requests)


def test_hold_and_wait_loads() -> None:
    """Three requests whose KV is loaded at once into a device that holds two: none holds a part and waits."""
    scheduler = Scheduler(apart(60, 10), registry.policy("fcfs"))
    plan = scheduler.handle(0.0, *(Arrived(Request(name, 15, 10)) for name in "abc"))
    plan = finish_prefill(scheduler, plan, 1.0, lane="p")
    assert len(plan.copies) == 2, "room for the whole of each is taken before it is sent, and there is none for a third"
    assert {copy.end - copy.start for copy in plan.copies} == {15}
    held = scheduler._books.ledger.extents("c")
    assert set(held) == {"p0"}, "the third holds nothing where it waits to go"
    joined = scheduler.handle(2.0, *(CopyDone(copy.copy) for copy in plan.copies))
    assert sorted(join.request for step in joined.steps for join in step.joins) == ["a", "b"]
    scheduler.check()


def test_deferred_free_cascade() -> None:
    """A victim's blocks come free only later; until then nobody else is sacrificed for the same blocks."""
    scheduler = Scheduler(one_device(16, run_ahead=2), registry.policy("fcfs"), max_horizon=1)
    plan = scheduler.handle(0.0, *(Arrived(Request(name, 11, 40)) for name in "abcd"))
    plan = finish_prefill(scheduler, plan, 1.0)
    leaves: list[str] = []
    step = 1
    for number in range(8):  # until the others need one block more each, and a second one has to go
        leaves += [request for order in plan.steps for request in order.leaves]
        orders = [order for order in plan.steps if order.horizon]
        if not orders:
            break
        # the order takes effect and runs; two more steps may be launched before anything is freed
        event = StepsDone("l0", orders[-1].order, step, step, launched=step)
        plan = scheduler.handle(2.0 + number, event)
        scheduler.check()
        step += 1
    assert len(leaves) == 1, f"one victim makes room for one block, yet {leaves} had to go"


def test_cancel_in_flight_lost_completion() -> None:
    """Cancelled while its KV is on its way, and the completion never comes: it ends, and the space is set aside."""
    scheduler = Scheduler(apart(20, 20), registry.policy("fcfs"), copy_lease_s=5.0)
    plan = scheduler.handle(0.0, Arrived(Request("a", 9, 20)))
    (copy,) = finish_prefill(scheduler, plan, 1.0, lane="p").copies
    assert not scheduler.handle(2.0, Cancelled("a")).releases, "its space may still be written"
    plan = scheduler.handle(6.0)
    assert [(release.request, release.outcome) for release in plan.releases] == [("a", Outcome.CANCELLED)]
    view = scheduler.view("l0")
    assert (view.free("g0"), view.free("p0")) == (17, 20)
    assert scheduler.idle()
    scheduler.handle(99.0, CopyFailed(copy.copy))
    assert view.free("g0") == 20


def test_never_fits_request() -> None:
    """What no device could hold is refused at once, and what none holds now blocks nobody behind it."""
    scheduler = Scheduler(one_device(10), registry.policy("fcfs"))
    plan = scheduler.handle(0.0, Arrived(Request("huge", 100, 5)), Arrived(Request("small", 8, 5)))
    assert [(release.request, release.outcome) for release in plan.releases] == [("huge", Outcome.REJECTED)]
    assert [chunk.request for chunk in chunks(plan)] == ["small"]
    other = Scheduler(one_device(40), registry.policy("fcfs"))
    other.handle(0.0, CapacityChanged("g0", 5))
    plan = other.handle(1.0, Arrived(Request("large", 100, 5)), Arrived(Request("small", 8, 5)))
    assert [chunk.request for chunk in chunks(plan)] == ["small"]


def test_preempted_overtaken() -> None:
    """Who lost its place for want of blocks begins again before anybody who came later."""
    scheduler = Scheduler(one_device(8), registry.policy("fcfs"), max_horizon=1)
    plan = scheduler.handle(0.0, Arrived(Request("a", 15)), Arrived(Request("b", 15)))
    plan = finish_prefill(scheduler, plan, 1.0)
    began: list[str] = []
    newcomers = step = 0
    for number in range(60):
        began += [chunk.request for chunk in chunks(plan)]
        orders = [order for order in plan.steps if order.horizon]
        events: list[Event] = []
        if orders:
            step += 1
            names = tuple(chunk.request for chunk in orders[-1].chunks)
            done = tuple((m, step) for m in ("a",) if number == 30)
            events.append(StepsDone("l0", orders[-1].order, step, step, done, names))
        elif plan.steps:
            events.append(StepsDone("l0", plan.steps[-1].order, step + 1, step))
        if number % 3 == 0:
            newcomers += 1
            events.append(Arrived(Request(f"n{newcomers}", 3, 5, float(number))))
        plan = scheduler.handle(2.0 + number, *events)
        scheduler.check()
        if "b" in began:
            break
    assert scheduler.counts["preemptions"] == 1
    assert newcomers > 5
    assert began[0] == "b", f"{newcomers} came meanwhile, and {began} began"


@pytest.mark.parametrize("policy", ["fcfs", "sjf", "buckets"])
def test_timing_jitter_same_plan(policy: str) -> None:
    """The same events a little earlier or later, and reports with other times in them, give the same batches."""
    rng = Random(4)
    cluster = one_device(40, 20, run_ahead=1)
    requests = [Request(f"r{n}", rng.randint(1, 40), 40, n * 0.01) for n in range(30)]
    told: list[tuple[float, tuple[Event, ...]]] = []
    executor = SimulatedExecutor(cluster, COSTS)
    for request in requests:
        executor.expect(request.id, rng.randint(1, 40))
    scheduler = Scheduler(cluster, registry.policy(policy), COSTS)
    plans: list[Plan] = []

    def observe(now: float, events: tuple[Event, ...], plan: Plan) -> None:
        told.append((now, events))
        plans.append(plan)

    drive(scheduler, executor, [(request.arrival, Arrived(request)) for request in requests], observe=observe)
    for seed in range(3):
        jitter = Random(seed)
        again = Scheduler(cluster, registry.policy(policy), COSTS)
        before = 0.0
        for (now, events), plan in zip(told, plans, strict=True):
            before = max(before, now + jitter.random() * 0.01)
            other = (evolve(e, seconds=jitter.random(), ended=None) if isinstance(e, StepsDone) else e for e in events)
            assert evolve(again.handle(before, *other), wake_at=None) == evolve(plan, wake_at=None)


def test_double_free_two_paths() -> None:
    """Cancel and finish in one call, then a late duplicate of everything: blocks come free once, one last word."""
    scheduler = Scheduler(one_device(20), registry.policy("fcfs"), max_horizon=4)
    plan = scheduler.handle(0.0, Arrived(Request("a", 9, 20)))
    plan = finish_prefill(scheduler, plan, 1.0)
    (order,) = plan.steps
    report = StepsDone("l0", order.order, 1, 1, (("a", 1),), launched=1)
    plan = scheduler.handle(2.0, Cancelled("a"), report, Cancelled("a"))
    releases = list(plan.releases)
    for now in (3.0, 4.0):
        releases += scheduler.handle(now, report, Cancelled("a"), *_took_effect(plan)).releases
        scheduler.check()
        plan = Plan()
    assert [release.request for release in releases] == ["a"]
    assert scheduler.view("l0").free("g0") == 20


def _took_effect(plan: Plan) -> list[Event]:
    return [StepsDone(order.lane, order.order, 2, 1) for order in plan.steps]


def test_rollback_on_half_admission() -> None:
    """Half of what a policy asks to admit does not fit or is nonsense: what was not admitted holds nothing."""
    from alignedsched.policies.fcfs import ContinuousBatching
    from alignedsched.policies.protocols import Policy, Take
    from alignedsched.policies.residency import DirectResidency

    class Greedy:
        def rank(self, request: Request) -> float:
            return 0.0

        def admit(self, view: object) -> list[Take]:
            return [Take("a", 9, 0), Take("b", 30, 0), Take("b", 30, 7), Take("nobody", 3, 0), Take("c", 999, 0)]

    policy = Policy("greedy", Greedy(), ContinuousBatching(), DirectResidency())
    scheduler = Scheduler(one_device(8), policy)
    plan = scheduler.handle(
        0.0, *(Arrived(Request(name, tokens, 1)) for name, tokens in (("a", 9), ("b", 30), ("c", 5)))
    )
    assert [chunk.request for chunk in chunks(plan)] == ["a"]
    ledger = scheduler._books.ledger
    assert [segment for segment, _ in ledger.segments()] == ["a"]
    assert ledger.free("g0") == 8 - 3
    assert scheduler.queued == 2
    scheduler.check()
