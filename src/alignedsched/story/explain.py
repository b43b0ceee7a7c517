"""Explain: why a request waited, what a batch was, what was where at a time; a replay with a narrator listening.

The core is deterministic, so the figures behind its decisions are not recorded while it runs: the recorded calls are
made again, on a fresh scheduler of the same settings, and this time somebody listens (see ``narrator``). So recording
costs what writing the events costs, and a story costs what the calls did.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Protocol

from attrs import frozen

from ..errors import AlignedSchedError, CallerError
from ..events import Arrived, Event
from ..load import Costs
from ..narrator import Narrator
from ..outside import is_number
from ..plan import Plan
from ..policies.protocols import Policy
from ..scheduler import Scheduler
from .batch_watch import BatchWatch
from .log import Call, LogReader, Start
from .moment_watch import MomentWatch
from .replay import rerun
from .request_watch import RequestWatch
from .sentences import Sentence, moment, name

Calls = Iterable[tuple[float, tuple[Event, ...]]]
MOST_IDS, LONGEST_ID = 5_000, 200  # looked through for ids like an unknown one


class Watch(Narrator, Protocol):
    """Watches calls being made again."""

    def begin(self, scheduler: Scheduler) -> None: ...
    def wants(self, now: float) -> bool: ...
    def before(self, now: float, events: Sequence[Event]) -> None: ...
    def after(self, now: float, events: Sequence[Event], plan: Plan) -> None: ...


class Source(Protocol):
    """What can be explained: recorded calls."""

    def calls(self) -> Calls:
        """The calls, from the first."""
        ...

    def tell(self, watch: Watch) -> list[Sentence]:
        """Make the calls again before a watch, as long as it wants more; returns what has to be said beside."""
        ...


@frozen
class Recording:
    """Calls in memory, in order, and what makes a fresh scheduler of the same cluster, policy and settings."""

    made: Sequence[tuple[float, tuple[Event, ...]]]
    scheduler: Callable[[], Scheduler]

    def calls(self) -> Calls:
        """See Source."""
        return self.made

    def tell(self, watch: Watch) -> list[Sentence]:
        """See Source."""
        scheduler = self.scheduler()
        scheduler.narrate(watch)
        watch.begin(scheduler)
        for now, events in self.made:
            if not watch.wants(now):
                break
            watch.before(max(now, scheduler.now), events)
            try:
                plan = scheduler.handle(now, *events)
            except AlignedSchedError:  # as when it was recorded; what it ordered comes with the next plan
                plan = Plan()
            watch.after(scheduler.now, events, plan)
        return []


@frozen
class LogFile:
    """An event log; ``policy`` and ``costs`` as for ``replay``. Raises LogError as that does."""

    path: str | os.PathLike[str]
    policy: Callable[[], Policy] | None = None
    costs: Costs | None = None

    def calls(self) -> Calls:
        """See Source."""
        with LogReader(self.path) as log:
            for item in log:
                if isinstance(item, Call):
                    yield item.now, item.events

    def tell(self, watch: Watch) -> list[Sentence]:
        """See Source."""

        def begin(scheduler: Scheduler) -> None:
            scheduler.narrate(watch)
            watch.begin(scheduler)
            log.now = scheduler.now

        log = _Watched(self.path, watch)
        with log:
            for again in rerun(log, policy=self.policy, costs=self.costs, begin=begin):
                log.now = again.scheduler.now
                watch.after(log.now, again.call.events, again.plan or Plan())
                if (again.plan, again.error) != (again.call.plan, again.call.error):
                    other = f"call {again.call.number} is decided otherwise now than the log says"
                    return [Sentence(log.now, f"here this story ends: {other} (`alignedsched replay` tells how)")]
            return [Sentence(log.now, "here the log was cut off")] if log.torn else []


class _Watched(LogReader):
    """A log that shows each call to a watch before it is made again."""

    def __init__(self, path: str | os.PathLike[str], watch: Watch) -> None:
        super().__init__(path)
        self._watch = watch
        self.now = 0.0

    def __iter__(self) -> Iterator[Start | Call]:
        for item in super().__iter__():
            if isinstance(item, Call):
                if not self._watch.wants(item.now):
                    return
                now = item.now if is_number(item.now, self.now) else self.now  # what is no time was refused
                self._watch.before(now, item.events)
            yield item


def explain_request(source: Source, request: str) -> list[Sentence]:
    """The story of a request: every stay with its reasons, in order of time, from its arrival to its end.

    The sentences' ``seconds`` add up to the time from arrival to release. Raises CallerError for an id that never
    arrived, naming ids like it. O(calls).
    """
    watch = RequestWatch(request)
    beside = source.tell(watch)
    told = watch.told()
    if not told:
        raise CallerError(_unknown(source.calls(), request))
    return told + beside


def _unknown(calls: Calls, request: str) -> str:
    arrived = (event.request.id for _, events in calls for event in events if isinstance(event, Arrived))
    some = list(islice((one for one in dict.fromkeys(arrived) if len(one) <= LONGEST_ID), MOST_IDS))
    near = difflib.get_close_matches(request[:LONGEST_ID], some, n=3, cutoff=0.5) or some[:3]
    known = f"; ids here are like {', '.join(map(name, near))}" if near else "; no request ever did"
    return f"request {name(request)} never arrived{known}"


def explain_batch(source: Source, batch: str) -> list[Sentence]:
    """The story of a batch, ``LANE/ORDER``: who made it up, who came and went and why, what it ran.

    Any order of the lane will do; one that changed no membership stands for the batch it renewed (see
    ``batch_numbers``). Raises CallerError for no such lane or order, naming those there are. O(calls).
    """
    lane, slash, number = batch.rpartition("/")
    if not slash or not number.isascii() or not number.isdecimal() or len(number) > 18:
        raise CallerError(f"a batch is LANE/ORDER, as lane-d0/17; got {name(batch)}")
    order = int(number)
    watch = BatchWatch(lane, order)
    beside = source.tell(watch)
    if watch.made_by is None or watch.made_by == order:
        return watch.told() + beside
    renewed = Sentence(watch.told()[0].at, f"order {order} renewed batch {name(lane)}/{watch.made_by}")
    first = BatchWatch(lane, watch.made_by)
    beside = source.tell(first)
    return sorted([*first.told(), renewed], key=lambda sentence: sentence.at) + beside


def explain_time(source: Source, time: float) -> list[Sentence]:
    """What was where at a time: lanes, queue, pool, copies, and what each lane had decided last and why.

    Raises CallerError for a time outside of the log, naming its range. O(calls).
    """
    first = last = None
    for now, _ in source.calls():
        first = now if first is None else first
        last = now if last is None else max(last, now)
    if first is None or last is None:
        raise CallerError("the log has no calls")
    if not first <= time <= last:
        raise CallerError(f"time {time!r} is outside of the log, which goes from {moment(first)} to {moment(last)}")
    watch = MomentWatch(time)
    beside = source.tell(watch)
    return watch.told() + beside
