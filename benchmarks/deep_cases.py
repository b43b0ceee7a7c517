"""Single events beside a deep pool and a long queue: what each costs, and what the queue weighs, ours and the naive."""

from __future__ import annotations

import gc
import resource
from collections.abc import Callable
from itertools import count
from pathlib import Path
from random import Random
from time import perf_counter

from attrs import define, field

from alignedsched import Policy, Request, Scheduler
from alignedsched.events import Arrived, Cancelled, Event

from .decision_cases import BLOCK, CHURN, lengths, naive_decoding, naive_step, timed
from .step_by_step import StepByStep, two_lanes
from .taking_turns import Figure, Spent, Taker, spent, take_turns

MANY = 16  # arrivals or cancels that one call brings


@define
class Depth:
    """What 10^6 queued requests weigh, and how long collecting garbage over them takes."""

    scheduler: str
    queued: int
    pooled: int
    bytes_per_queued: float
    collect_s: float


def deep(policy: Policy, pooled: int, queued: int, repetitions: int) -> tuple[list[Figure], Depth]:
    """Single events with so many pooled and queued requests, garbage collection on."""
    random = Random(5)
    some = lengths(random)
    mean_blocks = 1 + (64 + 2048) // 2 // BLOCK
    rig = StepByStep(Scheduler(two_lanes(1024, pooled * mean_blocks), policy))
    rig.fill((Request(f"r{i}", next(some)) for i in range(pooled + 3000)), "d-lane", 1024, at_once=2048)
    while rig.round() and (rig.copies or any(lane.pending for lane in rig.lanes.values())):
        pass
    before = resident_bytes()
    for start in range(0, queued, 1000):
        rig.call(*(Arrived(Request(f"q{i}", next(some))) for i in range(start, start + 1000)))
    held = (resident_bytes() - before) / queued
    begin = perf_counter()
    gc.collect()
    depth = Depth("alignedsched", rig.scheduler.queued, rig.scheduler.pooled, held, perf_counter() - begin)
    numbers = count(queued)
    order = list(range(queued))
    random.shuffle(order)
    victims = iter(order)
    beside = f"{pooled:,} pooled, {queued:,} queued"
    single = SingleEvents(rig, random)

    def arrivals(many: int) -> Spent:
        return timed(rig, [Arrived(Request(f"q{next(numbers)}", next(some))) for _ in range(many)])

    def cancels(many: int) -> Spent:
        return timed(rig, [Cancelled(f"q{next(victims)}") for _ in range(many)])

    cases: list[tuple[str, int, Callable[[], Spent]]] = [
        ("arrival", 1, lambda: arrivals(1)),
        (f"{MANY} arrivals", MANY, lambda: arrivals(MANY)),
        ("cancel of a queued request", 1, lambda: cancels(1)),
        ("cancel of a pooled request, and a prefill begins", 1, lambda: single.cancel_pooled(1)),
        (f"{MANY} cancels of pooled requests, and prefills begin", MANY, lambda: single.cancel_pooled(MANY)),
        ("prefills are done", 1, single.prefilled),
        ("finish, and a refill is chosen and sent for", 1, lambda: single.finish(1)),
        (f"{CHURN} finishes, and refills are chosen and sent for", CHURN, lambda: single.finish(CHURN)),
        ("a copy arrives, and its request joins", 1, lambda: single.copied(1)),
        (f"{CHURN} copies arrive, and their requests join", CHURN, lambda: single.copied(CHURN)),
    ]
    takers = [
        Taker(f"{case}; {beside}", "alignedsched", repetitions if many == 1 else repetitions // 4, once, 100.0, many)
        for case, many, once in cases
    ]
    takers.append(Taker(f"plain step; {beside}", "alignedsched", repetitions, single.plain, 20.0))
    return list(take_turns(takers)), depth


@define(eq=False)
class SingleEvents:
    """Times one kind of event alone; what has to happen before it happens untimed."""

    rig: StepByStep
    random: Random
    victims: list[str] = field(factory=list)

    def rest(self) -> None:
        """Run until nothing is under way but decoding."""
        rig = self.rig
        while rig.copies or any(lane.pending for lane in rig.lanes.values()):
            rig.round()

    def cancel_pooled(self, many: int = 1) -> Spent:
        self.rest()
        pool = self.rig.scheduler.view("d-lane").pool
        chosen: list[Event] = []
        while len(chosen) < many:
            if not self.victims:
                self.victims = list(pool.by_order())
                self.random.shuffle(self.victims)
            victim = self.victims.pop()
            if victim in pool:
                chosen.append(Cancelled(victim))
        return timed(self.rig, chosen)

    def prefilled(self) -> Spent:
        self.cancel_pooled()
        while not (events := self.rig.lanes["p-lane"].run()):
            self.cancel_pooled()  # the first that queues needed more room than came free
        return timed(self.rig, events)

    def finish(self, many: int = 1) -> Spent:
        self.rest()
        lane = self.rig.lanes["d-lane"]
        return timed(self.rig, lane.run(tuple(self.random.sample(list(lane.members), many))))

    def copied(self, many: int = 1) -> Spent:
        self.finish(many)
        return timed(self.rig, self.rig.arrived_copies())

    def plain(self) -> Spent:
        self.rest()
        return timed(self.rig, self.rig.lanes["d-lane"].run())


def deep_naive(pooled: int, queued: int, repetitions: int) -> tuple[list[Figure], Depth]:
    """The same for the naive scheduler; its cancels are fewer, for they walk over the queue."""
    random = Random(5)
    naive = naive_decoding(1024, pooled, random)
    some = lengths(random)
    before = resident_bytes()
    for i in range(queued):
        naive.add(f"q{i}", next(some))
    held = (resident_bytes() - before) / queued
    begin = perf_counter()
    gc.collect()
    depth = Depth("naive", len(naive.waiting), len(naive.paused), held, perf_counter() - begin)
    numbers = count(queued)
    victims = iter(random.sample(range(queued), min(queued, repetitions)))
    paused = iter(random.sample([row.id for row in naive.paused][repetitions:], min(100, repetitions)))

    few = max(20, repetitions // 100)
    takers = [
        Taker("arrival", "naive", repetitions, lambda: spent(lambda: naive.add(f"q{next(numbers)}", next(some)))),
        Taker("cancel of a queued request", "naive", few, lambda: spent(lambda: naive.cancel(f"q{next(victims)}"))),
        Taker(
            "cancel of a pooled request, and a prefill begins",
            "naive",
            few,
            lambda: spent(lambda: naive.cancel(next(paused))),
        ),
        Taker(
            "finish, and a refill is chosen and sent for", "naive", min(500, repetitions), naive_step(naive, 1, random)
        ),
        Taker("plain step", "naive", min(500, repetitions), naive_step(naive)),
    ]
    for taker in takers:
        taker.case = f"{taker.case}; {pooled:,} pooled, {queued:,} queued"
    return list(take_turns(takers)), depth


def resident_bytes() -> int:
    """Memory the process holds now; where only the peak is known, the peak."""
    status = Path("/proc/self/statm")
    if status.exists():
        return int(status.read_text(encoding="ascii").split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
