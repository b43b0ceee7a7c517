"""Replay: make the calls of a log again and hold each plan against the recorded one, byte by byte."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator

from attrs import evolve, fields, frozen

from ..errors import LogError
from ..events import Event
from ..load import Costs
from ..plan import Plan
from ..policies.protocols import Policy
from ..request import Request
from ..scheduler import Scheduler
from .codec import MisfitError, plan_bytes
from .log import Call, LogReader, NoEvent
from .origin import make_policy
from .snapshot import build

Observer = Callable[[float, tuple[Event, ...], Plan], None]
MOST_LINES = 24  # of what differs
_WIDTH = 400  # of a line


@frozen
class Again:
    """A call made again: the scheduler after it, and what came out of it now."""

    scheduler: Scheduler
    call: Call
    plan: Plan | None
    error: str

    @property
    def same(self) -> bool:
        """Whether the same came out, to the last byte."""
        then, now = self.call.plan, self.plan
        if self.error and any(isinstance(event, NoEvent) for event in self.call.events):
            return bool(self.call.error)  # what was none then is another none now
        if self.error != self.call.error or (then is None) != (now is None):
            return False
        return then is None or now is None or (then == now and plan_bytes(then) == plan_bytes(now))


@frozen
class Difference:
    """The first call that came out differently."""

    call: Call
    plan: Plan | None
    error: str

    def lines(self) -> list[str]:
        """What a person wants to see of it: when, after which events, what was decided then and what now."""
        call = self.call
        lines = [f"call {call.number} at {call.now!r} s, with {len(call.events)} events:"]
        lines += _listed("event", call.events)
        if call.error or self.error:
            lines += [f"  then: {call.error or 'a plan'}", f"  now:  {self.error or 'a plan'}"]
        then, now = call.plan or Plan(), self.plan or Plan()
        for part in fields(Plan):
            before, after = getattr(then, part.name), getattr(now, part.name)
            if part.name == "wake_at" or before == after:
                if before != after or type(before) is not type(after):
                    lines += [f"  then: {part.name} {before!r}", f"  now:  {part.name} {after!r}"]
                continue
            lines += _listed("then", [one for one in before if one not in after])
            lines += _listed("now ", [one for one in after if one not in before])
            if sorted(map(repr, before)) == sorted(map(repr, after)):
                lines.append(f"  the same {part.name} in another order")
        return lines


def _listed(word: str, records: tuple[object, ...] | list[object]) -> list[str]:
    lines = []
    for record in records[:MOST_LINES]:
        shown = repr(record)
        lines.append(f"  {word}: {shown if len(shown) <= _WIDTH else shown[: _WIDTH - 1] + '…'}")
    if len(records) > MOST_LINES:
        lines.append(f"  {word}: … and {len(records) - MOST_LINES} more")
    return lines


@frozen
class Replayed:
    """What came of a replay: ``difference`` is None where every plan was the same, byte by byte."""

    path: str
    policy: str
    library: str  # version that wrote it
    calls: int
    events: int
    starts: int  # processes that wrote it
    torn: bool  # the file was cut off inside a frame or a call; what stands before was replayed
    difference: Difference | None


def replay(
    path: str | os.PathLike[str],
    *,
    policy: Callable[[], Policy] | None = None,
    costs: Costs | None = None,
    begin: Callable[[Scheduler], None] | None = None,
    observe: Observer | None = None,
) -> Replayed:
    """Replay a log up to the first difference.

    ``policy`` makes the policy, where no registered name does; ``costs`` are those of a kind of your own. ``begin``
    gets each new scheduler before its first call, ``observe`` each call that came out the same. Raises
    LogError for a log that is not as it was written, and where something is missing to replay it. O(the run itself).
    """
    with LogReader(path) as log:
        result = Replayed(log.name, "", "", 0, 0, 0, False, None)
        scheduler: Scheduler | None = None
        for again in rerun(log, policy=policy, costs=costs, begin=begin):
            if again.scheduler is not scheduler:
                scheduler = again.scheduler
                result = evolve(result, starts=result.starts + 1)
            result = evolve(result, calls=result.calls + 1, events=result.events + len(again.call.events))
            if not again.same:
                result = evolve(result, difference=Difference(again.call, again.plan, again.error))
                break
            if observe is not None:
                observe(again.scheduler.now, again.call.events, again.plan or Plan())
        assert log.origin is not None  # a log begins with a start
        return evolve(result, torn=log.torn, policy=log.origin.policy, library=log.origin.library)


def rerun(
    log: LogReader,
    *,
    policy: Callable[[], Policy] | None = None,
    costs: Costs | None = None,
    begin: Callable[[Scheduler], None] | None = None,
) -> Iterator[Again]:
    """Make the calls of a log again, one at a time. ``begin`` gets each new scheduler before its first call."""
    scheduler: Scheduler | None = None
    hook = _Hook()
    for item in log:
        if not isinstance(item, Call):
            try:
                made = policy() if policy is not None else make_policy(item.origin)
                eligible = hook if item.origin.eligible else None
                if made.name != item.origin.policy:
                    raise LogError(f"was written under the policy {item.origin.policy!r:.80}, not {made.name!r}")
                scheduler = build(item.origin, item.state, made, costs, eligible=eligible)
            except (LogError, MisfitError) as error:
                if isinstance(error, LogError) and error.file:
                    raise
                raise LogError(str(error), file=log.name) from error
            if begin is not None:
                begin(scheduler)
            continue
        assert scheduler is not None
        hook.answers = deque(item.answers)
        plan, error_name = None, ""
        try:
            plan = scheduler.handle(item.now, *item.events)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is held against what was raised then
            error_name = type(error).__name__
        yield Again(scheduler, item, plan, error_name)


class _Hook:
    """Answers as the recorded ``eligible`` hook did."""

    def __init__(self) -> None:
        self.answers: deque[str] = deque()

    def __call__(self, request: Request) -> bool:
        answer = self.answers.popleft() if self.answers else "0"
        if answer == "!":
            raise RuntimeError("the recorded hook raised here")
        return answer == "1"
