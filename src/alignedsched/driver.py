"""The loop between a scheduler and an executor: blocking, or in asyncio; the same few lines either way.

The driver owns nothing but the loop. It hands arrivals and the executor's reports to the scheduler in the order of
time, and the plans to the executor. Whoever wants to watch passes an observer.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Iterable, Iterator
from typing import Protocol

from .events import Arrived, CallerEvent, Event, ExecutorEvent
from .plan import Plan
from .request import Request
from .scheduler import Scheduler

Observer = Callable[[float, tuple[Event, ...], Plan], None]


class Executor(Protocol):
    """What carries plans out. Time is the executor's: seconds on a clock that never falls."""

    def now(self) -> float:
        """The present time."""
        ...

    def submit(self, plan: Plan) -> None:
        """Start carrying a plan out; does not wait for anything. Raises ExecutorError if it cannot be carried out."""
        ...

    def wait(self, until: float | None) -> list[ExecutorEvent]:
        """Wait until something can be reported or the time is ``until`` (None: as long as it takes)."""
        ...


class AsyncExecutor(Protocol):
    """An executor whose ``wait`` is a coroutine."""

    def now(self) -> float: ...
    def submit(self, plan: Plan) -> None: ...
    async def wait(self, until: float | None) -> list[ExecutorEvent]: ...


def drive(
    scheduler: Scheduler,
    executor: Executor,
    arrivals: Iterable[tuple[float, CallerEvent]] = (),
    *,
    observe: Observer | None = None,
) -> int:
    """Run until every arrival is in and nothing is left to do; returns how often the scheduler was asked.

    ``arrivals`` are (time, event) in order of time; they are read one ahead, so a generator of millions is fine.
    """
    source = iter(arrivals)
    upcoming = next(source, None)
    wake: float | None = None
    calls = 0
    while upcoming is not None or not scheduler.idle():
        due = upcoming[0] if upcoming is not None else None
        until = wake if due is None else due if wake is None else min(due, wake)
        events: list[Event] = list(executor.wait(until))
        now = executor.now()
        while upcoming is not None and upcoming[0] <= now:
            events.append(upcoming[1])
            upcoming = next(source, None)
        plan = scheduler.handle(now, *events)
        calls += 1
        wake = plan.wake_at
        executor.submit(plan)
        if observe is not None:
            observe(now, tuple(events), plan)
    return calls


async def drive_async(
    scheduler: Scheduler,
    executor: AsyncExecutor,
    arrivals: AsyncIterable[CallerEvent],
    *,
    observe: Observer | None = None,
) -> int:
    """The same loop in asyncio: arrivals are taken as they come, until ``arrivals`` ends and nothing is left to do.

    What ``arrivals`` raises ends the loop and is raised.
    """
    import asyncio

    inbox: asyncio.Queue[CallerEvent | None] = asyncio.Queue()

    async def collect() -> None:
        try:
            async for event in arrivals:
                inbox.put_nowait(event)
        finally:
            inbox.put_nowait(None)  # also where they raise: the loop waits for it

    collector = asyncio.create_task(collect())
    reports: asyncio.Task[list[ExecutorEvent]] | None = None
    arriving: asyncio.Task[CallerEvent | None] | None = None
    wake: float | None = None
    open_ = True
    calls = 0
    try:
        while open_ or not scheduler.idle():
            reports = reports or asyncio.create_task(executor.wait(wake))
            if open_ and arriving is None:
                arriving = asyncio.create_task(inbox.get())
            await asyncio.wait({t for t in (reports, arriving) if t is not None}, return_when=asyncio.FIRST_COMPLETED)
            events: list[Event] = []
            if reports.done():
                events += reports.result()
                reports = None
            if arriving is not None and arriving.done():
                event = arriving.result()
                if event is None:
                    await collector  # raises what the arrivals raised
                open_, arriving = event is not None, None
                events += [event] if event is not None else []
            plan = scheduler.handle(executor.now(), *events)
            calls += 1
            executor.submit(plan)
            if plan.wake_at != wake and reports is not None:
                reports.cancel()
                reports = None
            wake = plan.wake_at
            if observe is not None:
                observe(executor.now(), tuple(events), plan)
    finally:
        for task in (collector, reports, arriving):
            if task is not None:
                task.cancel()
    return calls


def as_arrivals(requests: Iterable[Request]) -> Iterator[tuple[float, CallerEvent]]:
    """Requests in order of arrival, as timed events."""
    return ((request.arrival, Arrived(request)) for request in requests)
