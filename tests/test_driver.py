"""The blocking and the asyncio loop finish the same work, and hand over everything in the order of time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from random import Random

import pytest

from alignedsched import policies
from alignedsched.cluster import Cluster, Device, KVLayout, Lane, Link, Role
from alignedsched.driver import as_arrivals, drive, drive_async
from alignedsched.errors import ExecutorError
from alignedsched.events import Arrived, CallerEvent, Cancelled, Draining, Event, ExecutorEvent, Resumed
from alignedsched.load import Costs
from alignedsched.plan import Plan
from alignedsched.policies.protocols import Policy
from alignedsched.request import Request
from alignedsched.scheduler import Scheduler
from alignedsched.sim.build import build
from alignedsched.sim.executor import SimulatedExecutor

COUNTS = ("arrived", "finished", "cancelled", "rejected", "failed")


def costs() -> Costs:
    return build("h100", "llama-3.1-8b", topology="colocated", lanes=1, surface="balanced", staging=False).costs


def cluster(split: bool) -> Cluster:
    """Small enough that requests have to make room for each other."""
    first, second = (Role.PREFILL, Role.DECODE) if split else (Role.BOTH, Role.BOTH)
    devices = (Device("g0", first, 60), Device("g1", second, 60))
    links = (Link("g0", "g1", 1e11), Link("g1", "g0", 1e11))
    return Cluster(devices, (Lane("l0", ("g0",), 1, 8), Lane("l1", ("g1",), 1, 8)), 0, links, KVLayout(16, 131_072))


def workload(count: int = 60) -> tuple[list[Request], dict[str, int]]:
    rng = Random(5)
    requests = [
        Request(f"r{i:02}", rng.randint(1, 300), 80, arrival=i * 0.002) if i % 20 else Request(f"r{i:02}", 9000, 80)
        for i in range(1, count + 1)
    ]
    requests.sort(key=lambda request: request.arrival)
    return requests, {request.id: rng.randint(1, 80) for request in requests}


def prepared(split: bool, policy: Policy) -> tuple[Scheduler, SimulatedExecutor, list[Request]]:
    requests, lengths = workload()
    whole = cluster(split)
    executor = SimulatedExecutor(whole, costs())
    for request, tokens in lengths.items():
        executor.expect(request, tokens)
    return Scheduler(whole, policy), executor, requests


class Asynchronous:
    """The simulator as an asyncio executor: waiting gives way, and nothing waits beyond the next arrival."""

    def __init__(self, executor: SimulatedExecutor, requests: list[Request]) -> None:
        self.executor = executor
        self.arrivals = [request.arrival for request in requests]
        self.changed = asyncio.Event()
        self.given = 0

    def now(self) -> float:
        return self.executor.now()

    def submit(self, plan: Plan) -> None:
        self.executor.submit(plan)
        self.changed.set()

    async def wait(self, until: float | None) -> list[ExecutorEvent]:
        while True:
            await asyncio.sleep(0)
            due = self.arrivals[self.given] if self.given < len(self.arrivals) else None
            times = [time for time in (due, until) if time is not None]
            try:
                events = self.executor.wait(min(times) if times else None)
            except ExecutorError:  # nothing is under way: wait for the next plan
                self.changed.clear()
                await self.changed.wait()
                continue
            if events or (until is not None and self.now() >= until):
                return events
            if due is not None and self.now() >= due:
                await asyncio.sleep(0)
                if self.given < len(self.arrivals) and self.arrivals[self.given] <= self.now():
                    self.changed.clear()
                    await self.changed.wait()

    async def clients(self, requests: list[Request]) -> AsyncIterator[CallerEvent]:
        for request in requests:
            while self.now() < request.arrival:  # noqa: ASYNC110 - time is virtual: nobody signals it
                await asyncio.sleep(0)
            self.given += 1
            yield Arrived(request)


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("name", ["fcfs", "density_first"])
def test_both_loops_finish_the_same_work(split: bool, name: str) -> None:
    make = policies.fcfs if name == "fcfs" else policies.density_first
    blocking, executor, requests = prepared(split, make())
    seen: list[float] = []
    calls = drive(blocking, executor, as_arrivals(requests), observe=lambda now, events, plan: seen.append(now))
    assert calls == len(seen)
    assert seen == sorted(seen)
    assert blocking.idle()
    blocking.check()

    waiting, executor, requests = prepared(split, make())
    wrapped = Asynchronous(executor, requests)
    told: list[Event] = []

    async def main() -> None:
        await asyncio.wait_for(
            drive_async(
                waiting, wrapped, wrapped.clients(requests), observe=lambda now, events, plan: told.extend(events)
            ),
            timeout=60,
        )

    asyncio.run(main())
    assert waiting.idle()
    waiting.check()
    assert sum(isinstance(event, Arrived) for event in told) == len(requests)
    assert [waiting.counts[name] for name in COUNTS] == [blocking.counts[name] for name in COUNTS]
    assert blocking.counts["finished"] > 50
    assert blocking.counts["rejected"] == 3


def test_timed_events_of_any_kind_are_handed_over_when_they_are_due() -> None:
    scheduler, executor, requests = prepared(False, policies.fcfs())
    events: list[tuple[float, CallerEvent]] = [(r.arrival, Arrived(r)) for r in requests[:5]]
    events.append((events[-1][0] + 1e-6, Cancelled(requests[4].id)))
    seen: list[tuple[float, Event]] = []
    drive(scheduler, executor, iter(events), observe=lambda now, told, plan: seen.extend((now, e) for e in told))
    for due, event in events:
        assert next(now for now, told in seen if told is event) >= due
    assert scheduler.counts["cancelled"] == 1


def test_the_loop_ends_when_what_had_begun_is_done_while_draining() -> None:
    """Those that still queue stay where they are, and begin when the caller resumes."""
    whole = Cluster((Device("g", Role.BOTH, 40),), (Lane("lane", ("g",), max_members=1),))
    executor = SimulatedExecutor(whole, costs())
    scheduler = Scheduler(whole, policies.fcfs(), costs())
    for name in "abc":
        executor.expect(name, 50)
    events: list[tuple[float, CallerEvent]] = [(0.0, Arrived(Request(name, 100, 50))) for name in "abc"]
    drive(scheduler, executor, [*events, (0.05, Draining())])
    assert (scheduler.counts["finished"], scheduler.queued, scheduler.idle()) == (1, 2, True)
    drive(scheduler, executor, [(executor.now(), Resumed())])
    assert (scheduler.counts["finished"], scheduler.queued) == (3, 0)


def test_the_executor_says_so_when_nothing_can_happen_any_more() -> None:
    """A policy that never admits anybody leaves the loop nothing to wait for."""
    whole = cluster(False)
    executor = SimulatedExecutor(whole, costs())
    executor.expect("a", 3)
    scheduler = Scheduler(whole, policies.fcfs(), eligible=lambda request: False)
    with pytest.raises(ExecutorError, match="stuck"):
        drive(scheduler, executor, [(0.0, Arrived(Request("a", 5, 9)))])


def test_what_the_arrivals_raise_ends_the_asyncio_loop_and_is_raised() -> None:
    scheduler, executor, requests = prepared(False, policies.fcfs())
    wrapped = Asynchronous(executor, requests[:3])

    async def failing() -> AsyncIterator[CallerEvent]:
        async for event in wrapped.clients(requests[:3]):
            yield event
        raise ConnectionError("the socket died")

    async def main() -> None:
        await asyncio.wait_for(drive_async(scheduler, wrapped, failing()), timeout=20)

    with pytest.raises(ConnectionError, match="the socket died"):
        asyncio.run(main())
    assert scheduler.counts["arrived"] == 3
