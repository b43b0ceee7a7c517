"""What is too large for now, of another kind, or for another lane only blocks nobody, and is blocked by nobody."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

import pytest
from attrs import evolve

from alignedsched import registry
from alignedsched.cluster import HOST, Cluster, Device, Lane, Link, Role
from alignedsched.costs import AffineCosts
from alignedsched.driver import drive
from alignedsched.events import Arrived, CapacityChanged, CopyDone, Event, StepsDone
from alignedsched.plan import Plan, Step
from alignedsched.policies.admission import ArrivalOrder
from alignedsched.policies.lane_share import EvenShare, pooled_share
from alignedsched.policies.pooled_admission import PooledOrder
from alignedsched.policies.prefill_lead import PrefillLead
from alignedsched.policies.protocols import Admission
from alignedsched.policies.sorted_waves import Wave
from alignedsched.pool import Pool
from alignedsched.request import Request
from alignedsched.scheduler import Scheduler
from alignedsched.sim.executor import SimulatedExecutor
from alignedsched.views import PoolReader, from_columns
from alignedsched.views.columns import ColumnView

COSTS = AffineCosts(0.01, 1e-5, 1e-7)
POLICIES = ["fcfs", "cost_aligned", "density_first", "sjf", "waves", "buckets"]


def apart(prefill: int = 2000, seats: int = 256, **decode: int) -> Cluster:
    """One device that prefills, and others that decode, by their blocks."""
    devices = [Device("p", Role.PREFILL, prefill), *(Device(d, Role.DECODE, n) for d, n in decode.items())]
    lanes = [Lane("prefill", ("p",), max_tokens=20_000), *(Lane(f"on {d}", (d,), max_members=seats) for d in decode)]
    links = [Link(a, b, 300e9) for d in decode for a, b in (("p", d), (d, "p"))]
    return Cluster(tuple(devices), tuple(lanes), links=tuple(links))


def together(seats: int = 256, **blocks: int) -> Cluster:
    """Devices that do both, by their blocks, each its own lane."""
    devices = tuple(Device(d, Role.BOTH, n) for d, n in blocks.items())
    return Cluster(devices, tuple(Lane(f"on {d}", (d,), max_members=seats) for d in blocks))


def served(
    made: Cluster, policy: str, jobs: Sequence[tuple[float, str, int, int, str | None]], max_kinds: int | None = None
) -> dict[str, tuple[float, str]]:
    """When and on which lane each of (arrival, id, prompt, output, kind) joined a running batch; all have to end."""
    scheduler = Scheduler(made, registry.policy(policy), COSTS, max_kinds=max_kinds)
    executor = SimulatedExecutor(made, COSTS)
    joined: dict[str, tuple[float, str]] = {}
    arrivals = []
    for at, name, prompt, output, kind in jobs:
        executor.expect(name, output)
        arrivals.append((at, Arrived(Request(name, prompt, output, at, kind=kind))))

    def watch(now: float, events: object, plan: Plan) -> None:
        for step in plan.steps:
            for join in step.joins:
                joined.setdefault(join.request, (now, step.lane))

    drive(scheduler, executor, arrivals, observe=watch)
    assert scheduler.counts["finished"] == len(jobs)
    return joined


# -- too large for now


def by_hand(scheduler: Scheduler, plan: Plan, calls: int = 20) -> set[str]:
    """Who joins a decoding lane if every prefill order and copy is done at once."""
    joined: set[str] = set()
    numbers = count()
    for tick in range(calls):
        events: list[Event] = [CopyDone(copy.copy) for copy in plan.copies]
        for step in plan.steps:
            joined.update(join.request for join in step.joins)
            if step.chunks:
                events.append(_prefilled(step, next(numbers)))
        plan = scheduler.handle(1.0 + tick, *events)
        scheduler.check()
    return joined


def _prefilled(step: Step, number: int) -> StepsDone:
    return StepsDone(step.lane, step.order, number, number, prefilled=tuple(chunk.request for chunk in step.chunks))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("lanes", [1, 2])
def test_a_pooled_request_that_is_too_large_for_now_waits_and_blocks_nobody(policy: str, lanes: int) -> None:
    devices = [f"d{number}" for number in range(lanes)]
    scheduler = Scheduler(apart(**dict.fromkeys(devices, 1000)), registry.policy(policy))
    arrivals = [Arrived(Request("large", 8000, 10)), *(Arrived(Request(f"small{i}", 100, 10)) for i in range(3))]
    plan = scheduler.handle(0.0, *(CapacityChanged(device, 100) for device in devices), *arrivals)
    assert by_hand(scheduler, plan) == {"small0", "small1", "small2"}
    assert scheduler.pooled == 1
    plan = scheduler.handle(50.0, *(CapacityChanged(device, 1000) for device in devices))
    assert "large" in by_hand(scheduler, plan), "the capacity is back, and so is its turn"


@pytest.mark.parametrize("admission", [ArrivalOrder(), PooledOrder()])
def test_nobody_waits_to_begin_for_who_is_pooled_and_too_large(admission: Admission) -> None:
    columns = {"pooled": ["large"], "pooled_on": [HOST], "free_blocks": 100, "host_free_blocks": 999}
    view = from_columns(
        pooled_lengths=[8000], queued=["new"], queued_prompts=[64], capacity_blocks=100, **columns  # type: ignore[arg-type]
    )  # fmt: skip
    assert [take.request for take in admission.admit(view)] == ["new"]
    fits = from_columns(
        pooled_lengths=[800], queued=["new"], queued_prompts=[64], capacity_blocks=100, **columns  # type: ignore[arg-type]
    )  # fmt: skip
    assert bool([*ArrivalOrder().admit(fits)]) is False, "one that fits goes on before anybody new begins"


def test_prefill_is_not_ahead_with_who_is_too_large() -> None:
    view = from_columns(pooled=["a"], pooled_lengths=[8000], free_blocks=1, capacity_blocks=100, role=Role.PREFILL)
    none = from_columns(free_blocks=1, capacity_blocks=100, role=Role.PREFILL)
    assert PrefillLead(bounded=True).blocks(view) == PrefillLead(bounded=True).blocks(none) != 0


def test_a_wave_of_the_pool_is_not_held_up_by_who_is_too_large() -> None:
    pool = Pool()
    for order, length in enumerate((8000, 300, 200)):
        pool.add(f"r{length}", length, order, length)
    wave = Wave().of_pool(PoolReader(pool), 1000)
    assert list(wave.pooled(PoolReader(pool))) == ["r200", "r300"]
    old = Wave(["r8000", "r300"])
    assert list(old.left_of_pool(PoolReader(pool), 1000).pooled(PoolReader(pool))) == ["r300"]
    assert list(Wave(["gone", "r8000"]).of_pool(PoolReader(pool), 1000).pooled(PoolReader(pool))) == ["r200", "r300"]
    assert list(wave.of_pool(PoolReader(pool), 9000).ids) == ["r200", "r300"], "who is in a wave goes first"


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("prompt", [159, 160, 161])
def test_a_prompt_that_just_fits_no_more_blocks_no_prefill_queue(policy: str, prompt: int) -> None:
    """Admission keeps room for one token more than the prompt, also where the lane only prefills."""
    scheduler = Scheduler(apart(20, d=1000), registry.policy(policy))
    scheduler.handle(0.0, CapacityChanged("p", 10))
    plan = scheduler.handle(0.1, Arrived(Request("large", prompt, 10)), Arrived(Request("small", 20, 10)))
    assert any(step.chunks for step in plan.steps)


# -- for another lane only


@pytest.mark.parametrize("policy", POLICIES)
def test_lanes_too_small_for_a_request_have_no_share_of_it(policy: str) -> None:
    """Nobody waits beside free room for a lane that could never take it."""
    long = [(0.0, "r0", 1000, 400, None), (0.0, "r1", 1000, 400, None), (1.0, "big", 1000, 10, None)]
    joined = served(together(a=1000, b=20), policy, long)
    assert joined["r1"][0] < 0.5
    assert joined["big"][0] < 1.5
    small = [(2.0 + i / 2, f"s{i}", 20, 10, None) for i in range(4)]
    joined = served(apart(a=1000, b=20), policy, [*long, *small])
    assert joined["r1"][0] < 0.5
    assert joined["big"][0] < 1.5
    assert all(joined[name][0] < at + 0.5 for at, name, *_ in small)


def _among(loads: dict[str, int], rooms: dict[str, int], lane: str, pooled: Sequence[int] = ()) -> ColumnView:
    names = [f"r{number}" for number in range(len(pooled))]
    view = from_columns(pooled=names, pooled_lengths=pooled, free_blocks=9, capacity_blocks=9)
    assert isinstance(view, ColumnView)
    return evolve(view, lane=evolve(view.lane, id=lane), loads=loads, rooms=rooms)


def test_lanes_that_could_hold_it_share_evenly() -> None:
    loads, rooms = {"a": 3, "b": 0, "c": 4}, {"a": 1000, "b": 20, "c": 1000}
    shares = {lane: EvenShare.of(_among(loads, rooms, lane), 3) for lane in loads}
    assert [shares[lane].need(10) for lane in loads] == [1, 4, 0], "all end with four"
    assert [shares[lane].need(900) for lane in "ac"] == [2, 1], "the small lane takes none of these"
    alike = EvenShare.of(_among(loads, dict.fromkeys(loads, 50), "a"), 3)
    assert (alike.need(10), alike.need(50), alike.most) == (1, 1, 1)
    assert [pooled_share(_among(loads, rooms, lane, [9, 9, 900])) for lane in loads] == [1, 4, 0]
    assert [pooled_share(_among({"a": 9, "b": 0}, rooms, lane, [900])) for lane in "ab"] == [1, 5]


# -- of another kind


KINDS = [
    *((policy, together(4, a=4000)) for policy in POLICIES),
    # `density_first` chooses among the pooled by length, whatever their kind, until its guard is due.
    *((policy, apart(4000, 4, a=1000)) for policy in POLICIES if policy != "density_first"),
]


@pytest.mark.parametrize(("policy", "made"), KINDS, ids=[f"{name}-{len(made.lanes)}" for name, made in KINDS])
def test_a_kind_is_not_kept_out_for_as_long_as_others_come(policy: str, made: Cluster) -> None:
    """It is passed by fewer later requests than the lane has seats, then those that run end."""
    jobs: list[tuple[float, str, int, int, str | None]] = [(i / 4, f"a{i}", 100, 100, "A") for i in range(60)]
    jobs.insert(10, (2.3, "b", 100, 100, "B"))
    joined = served(made, policy, jobs, max_kinds=1)
    passed = [name for at, name, *_ in jobs if at > 2.3 and joined[name] < joined["b"]]
    assert len(passed) < 4
