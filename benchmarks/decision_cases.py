"""The situations in which a decision's cost is measured, each beside the naive scheduler in the same situation.

Only calls into a scheduler are timed; what an executor does between them is not. Sizes and schedulers that are compared
take turns. Beside them runs a control: a loop of plain arithmetic, which shows what the machine itself does to 20 us.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random

from alignedsched import Policy, Request, Scheduler, policy
from alignedsched.costs import AffineCosts
from alignedsched.events import Event
from alignedsched.plan import Plan
from alignedsched.policies.aligned_batching import CostAligned

from .naive import NaiveScheduler
from .step_by_step import StepByStep, decoding, one_lane, two_lanes
from .taking_turns import Figure, Spent, Taker, spent, take_turns

BLOCK = 16
CHURN = 5  # finishes and joins of a step
ASKED = 1000  # steps in which the gate of the default policy is asked often enough
# Surfaces on which the default policy goes in waves, and in rounds: the longest binds, from 8 members on if gated.
UNSPLIT = AffineCosts(0.006, 1e-5, 1e-8, 1e-6, "unsplit")
GATED = AffineCosts(0.006, 1e-5, 1e-8, 1e-6, "gated", 8.0)


def timed(rig: StepByStep, events: list[Event]) -> Spent:
    """Hand events over; what the call alone took."""
    rig.now += 0.01
    plans: list[Plan] = []
    handle, now = rig.scheduler.handle, rig.now
    took = spent(lambda: plans.append(handle(now, *events)))
    rig.hold(plans[0])
    return took


def control() -> Spent:
    """A loop that always does the same."""

    def loop() -> None:
        total = 0
        for number in range(500):
            total += number

    return spent(loop)


def lengths(random: Random) -> Iterator[int]:
    """Prompt lengths with every block phase."""
    while True:
        yield random.randint(64, 2048)


def plain_steps(policy: Callable[[], Policy], sizes: tuple[int, ...], repetitions: int) -> Iterator[Figure]:
    """A decode step in which nobody joins or finishes, block boundaries and renewed horizons included."""
    takers = [Taker("control: a loop of 500 additions", "none", repetitions, control)]
    for size in sizes:
        rig = decoding(size, policy(), lengths(Random(size)))
        takers.append(Taker(f"plain step, {size:,} members", "alignedsched", repetitions, _step(rig), 20.0))
        naive = naive_decoding(size, 1, Random(size))
        takers.append(Taker(f"plain step, {size:,} members", "naive", max(50, repetitions // 20), naive_step(naive)))
    yield from take_turns(takers)


def _step(rig: StepByStep) -> Callable[[], Spent]:
    lane = rig.lanes["gpu-lane"]
    return lambda: timed(rig, lane.run())


def naive_decoding(members: int, paused: int, random: Random, waiting: int = 0) -> NaiveScheduler:
    """The naive scheduler in the middle of decoding, with prefilled requests behind."""
    some = lengths(random)
    total = members + paused
    naive = NaiveScheduler(total * 300, BLOCK, members, 1 << 30)
    for i, length in zip(range(total), some, strict=False):
        naive.add_prefilled(f"r{i}", length)
    for i, length in zip(range(waiting), some, strict=False):
        naive.add(f"w{i}", length)
    naive.update(naive.schedule(), ())
    return naive


def naive_step(naive: NaiveScheduler, finish: int = 0, random: Random | None = None) -> Callable[[], Spent]:
    def once() -> Spent:
        chosen = [row.id for row in random.sample(naive.running, finish)] if random is not None else []
        return spent(lambda: naive.update(naive.schedule(), chosen))

    return once


def churn(name: str, policy: Callable[[], Policy], members: int, deep: int, repetitions: int) -> Iterator[Figure]:
    """A step with five finishes and five joins; the policy chooses who joins out of a deep pool."""
    random = Random(7)
    rig = pooling(policy(), members, deep + CHURN * (repetitions + 100), host=name != "fcfs")
    some = lengths(random)
    case = f"5 finishes and 5 joins, {members:,} members, {deep:,} pooled"
    takers = [Taker(f"{case} ({name})", "alignedsched", repetitions, _churn(rig, CHURN, random), 1000.0)]
    if name == "fcfs":
        mixed = colocated(policy(), members, deep, some)
        case_mixed = f"5 finishes, 5 prefills and joins, {members:,} members, {deep:,} queued ({name}, one device)"
        takers.append(Taker(case_mixed, "alignedsched", repetitions, _churn(mixed, CHURN, random), 1000.0))
        naive = naive_decoding(members, deep + CHURN * (repetitions + 10), Random(7))
        takers.append(Taker(f"{case} ({name})", "naive", repetitions, naive_step(naive, CHURN, random)))
        naive = naive_decoding(members, 0, Random(7), waiting=deep)
        takers.append(Taker(case_mixed, "naive", repetitions, naive_step(naive, CHURN, random)))
    for taker in takers:
        for _ in range(5):
            taker.once()  # the stream of copies and joins is running
    yield from take_turns(takers)
    plain = Taker(
        f"plain step beside {deep:,} pooled ({name})", "alignedsched", 5 * repetitions, _churn(rig, 0, random), 20.0
    )
    for _ in range(3):
        plain.once()
    yield from take_turns([plain])


def pooling(policy: Policy, members: int, pooled: int, host: bool) -> StepByStep:
    """A full decode lane and so many pooled requests, on the prefill device or, with ``host``, in host memory."""
    random = Random(3)
    some = lengths(random)
    room = 1 << 40
    rig = StepByStep(Scheduler(two_lanes(members, room, room if host else 0), policy))
    rig.fill((Request(f"r{i}", next(some)) for i in range(members + pooled)), "d-lane", members, at_once=2048)
    while rig.copies or rig.scheduler.pooled < pooled - members:
        rig.round()
    return rig


def colocated(policy: Policy, members: int, queued: int, some: Iterator[int]) -> StepByStep:
    """A full lane that prefills and decodes, and so many queued requests."""
    rig = StepByStep(Scheduler(one_lane(members), policy))
    rig.fill((Request(f"r{i}", next(some)) for i in range(members + queued)), "gpu-lane", members)
    return rig


def _churn(rig: StepByStep, finish: int, random: Random) -> Callable[[], Spent]:
    lane = next(lane for lane in rig.lanes.values() if lane.members)

    def once() -> Spent:
        leaving = {request for order in lane.pending for request in order.leaves}
        staying = [request for request in lane.members if request not in leaving]
        chosen = tuple(random.sample(staying, min(finish, len(staying))))
        events = rig.arrived_copies()
        for other in rig.lanes.values():
            events += other.run(chosen if other is lane else ())
        return timed(rig, events)

    return once


def aligned(members: int, queued: int, repetitions: int) -> Iterator[Figure]:
    """The default policy, where it aligns: a finish and a refill from a wave, and rounds of two groups or more."""
    waves, rounds = _long_tailed(members, queued, UNSPLIT), _long_tailed(members, queued, GATED)
    random, case = Random(7), f"a finish and a refill, {members:,} members, {queued:,} queued"
    yield from take_turns(
        [
            Taker(f"{case}, in a wave (cost_aligned)", "alignedsched", repetitions, _churn(waves, 1, random), 300.0),
            Taker(f"{case}, in a wave and rounds", "alignedsched", repetitions, _churn(rounds, 1, random)),
        ]
    )
    yield from take_turns(
        [Taker("plain step in a wave (cost_aligned)", "alignedsched", 5 * repetitions, _churn(waves, 0, random), 20.0)]
    )


def _long_tailed(members: int, queued: int, costs: AffineCosts) -> StepByStep:
    """A full lane that prefills and decodes, one request of a hundred far longer than the others, waves on."""
    aligning, random = policy("cost_aligned"), Random(3)
    rig = StepByStep(Scheduler(one_lane(members), aligning, costs))
    some = (random.randint(20_000, 60_000) if random.random() < 0.01 else length for length in lengths(random))
    rig.fill((Request(f"r{i}", next(some)) for i in range(members + queued + ASKED)), "gpu-lane", members)
    assert isinstance(aligning.batching, CostAligned)
    once = _churn(rig, 1, random)
    for _ in range(ASKED):
        once()
    assert aligning.batching.memory.waves, "the gate has been asked, and waves are on"
    return rig
