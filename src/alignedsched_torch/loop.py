"""The thread between callers and devices: hands in what callers want, drives scheduler and executor, tells what ended.

The thread sleeps while there is nothing to do, and an arrival or a cancel ends its waiting at once. Whatever goes
wrong in it ends every open request with an error that names it; nobody waits for an answer that cannot come.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from attrs import define

from alignedsched.cluster import Cluster
from alignedsched.errors import AlignedSchedError, ExecutorError
from alignedsched.events import Arrived, CallerEvent, Cancelled, Event, ExecutorEvent
from alignedsched.plan import Outcome, Plan, Release
from alignedsched.request import RequestId
from alignedsched.scheduler import Scheduler

from .job import Job

Observe = Callable[[float, tuple[Event, ...], Plan], None]


class Serving(Protocol):
    """An executor that serves: in this process, or over workers."""

    cluster: Cluster
    jobs: dict[RequestId, Job]

    @property
    def copied_bytes(self) -> Mapping[tuple[str, str], int]: ...
    @property
    def staged_bytes(self) -> int: ...
    def expect(self, job: Job) -> None: ...
    def now(self) -> float: ...
    def submit(self, plan: Plan) -> None: ...
    def wait(self, until: float | None) -> list[ExecutorEvent]: ...
    def wake(self) -> None: ...
    def close(self) -> None: ...


@define(eq=False)
class Ticket:
    """One request of a caller. ``ended`` is called once, on the loop's thread; it must not block."""

    job: Job
    ended: Callable[[Outcome, AlignedSchedError | None], None]


class Loop:
    """Scheduler and executor on a thread of their own. ``submit``, ``cancel`` and ``close`` may be called anywhere."""

    def __init__(self, scheduler: Scheduler, executor: Serving, observe: Observe) -> None:
        self._scheduler = scheduler
        self._executor = executor
        self._observe = observe
        self._tickets: dict[str, Ticket] = {}
        self._inbox: list[Ticket | str] = []  # requests, and ids of those to cancel
        self._lock = threading.Condition()
        self._closing = self._swept = False
        self._error: AlignedSchedError | None = None
        self._thread: threading.Thread | None = None
        self._wake_at: float | None = None

    # -- for callers

    def submit(self, tickets: Sequence[Ticket]) -> None:
        """Hand requests in; they arrive together. Raises ExecutorError when the loop has stopped."""
        with self._lock:
            if self._error is not None:
                raise ExecutorError(str(self._error)) from self._error
            if self._closing:
                raise ExecutorError("the engine is closed")
            self._inbox += tickets
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="alignedsched-loop", daemon=True)
                self._thread.start()
            self._notify()

    def cancel(self, *requests: str) -> None:
        """Nobody wants these any more. Unknown and ended ones are ignored."""
        with self._lock:
            self._inbox += requests
            self._notify()

    def close(self) -> None:
        """Cancel what is open, wait for the thread to end."""
        with self._lock:
            self._closing = True
            self._notify()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _notify(self) -> None:
        self._lock.notify()
        self._executor.wake()

    # -- the thread

    def _run(self) -> None:
        try:
            while self._turn():
                pass
        except BaseException as error:  # noqa: BLE001 - told to everybody who waits
            self._broken(error)

    def _turn(self) -> bool:
        """One call of the scheduler. False when the loop is closed and nothing is left."""
        with self._lock:
            while not self._inbox and self._scheduler.idle() and not self._closing:
                self._lock.wait()
            inbox, self._inbox = self._inbox, []
        asked = self._take(inbox)
        if self._closing and not self._swept:
            self._swept = True
            asked += [Cancelled(request) for request in self._tickets]
        if self._closing and not asked and self._scheduler.idle():
            return False
        until = self._executor.now() if asked or self._scheduler.idle() else self._wake_at
        events = (*self._executor.wait(until), *asked)
        now = self._executor.now()
        plan = self._scheduler.handle(now, *events)
        self._wake_at = plan.wake_at
        self._executor.submit(plan)
        self._observe(now, events, plan)
        for release in plan.releases:
            self._released(release)
        return True

    def _take(self, inbox: list[Ticket | str]) -> list[CallerEvent]:
        events: list[CallerEvent] = []
        for item in inbox:
            if isinstance(item, str):
                if item in self._tickets:
                    events.append(Cancelled(item))
                continue
            self._executor.expect(item.job)
            self._tickets[item.job.id] = item
            events.append(Arrived(item.job.request))
        return events

    def _released(self, release: Release) -> None:
        ticket = self._tickets.pop(release.request, None)
        if ticket is None:
            return
        bad = release.outcome in (Outcome.REJECTED, Outcome.FAILED)
        error = ExecutorError(f"the request was {release.outcome.value}: {release.why}") if bad else None
        ticket.ended(release.outcome, error)

    def _broken(self, error: BaseException) -> None:
        """The loop has stopped."""
        with self._lock:
            self._error = ExecutorError(f"the engine stopped: {type(error).__name__}: {error}")
            self._error.__cause__ = error
            waiting = [*self._tickets.values(), *(item for item in self._inbox if isinstance(item, Ticket))]
            self._tickets.clear()
            self._inbox.clear()
        for ticket in waiting:
            ticket.ended(Outcome.FAILED, self._error)
