"""One lane's reports, held against the orders it was given: who is a member follows from both, and so who must end.

The lane's future is never guessed: a report says at which step an order took effect, and from there on membership,
tokens made and tokens stored are plain counting. Whatever does not fit is noted by the name of the check.
"""

from __future__ import annotations

from collections.abc import Callable

from attrs import define, field

from ..cluster import Lane
from ..events import StepsDone, StepsFailed
from ..plan import Chunk, Join, Step
from .capabilities import Capabilities
from .ground import Ground

Report = StepsDone | StepsFailed
Note = Callable[[str, str], None]


@define(eq=False)
class Member:
    """A decoding member: its first step here, tokens stored before it, and the step of its last token."""

    join: Join
    first: int
    due: int | None  # None: nobody knows
    limit: int | None


@define(eq=False)
class LaneAudit:
    """Reads one lane's reports in the order of its steps."""

    lane: Lane
    flags: Capabilities
    ground: Ground
    note: Note
    orders: dict[int, Step] = field(factory=dict)
    ahead: dict[int, Step] = field(factory=dict)  # those that no report has named or passed over
    void: set[int] = field(factory=set)
    through: dict[int, int] = field(factory=dict)  # by order named so far
    seen: set[Report] = field(factory=set)
    standing: int = -1
    first: int = 0
    reported: int = -1
    ended: float = 0.0
    members: dict[str, Member] = field(factory=dict)
    early: list[Report] = field(factory=list)
    lost: bool = False

    # -- orders

    def order(self, step: Step) -> None:
        self.orders[step.order] = self.ahead[step.order] = step

    def pending(self) -> list[int]:
        """Orders no report has named or passed over."""
        return list(self.ahead)

    def told(self) -> int:
        """The last step told of, also by reports that wait for earlier ones."""
        return max(self.reported, max((event.through for event in self.early), default=-1))

    def resting(self) -> bool:
        """Whether nothing runs and nothing is to be told."""
        return not (self.members or self.ahead or self.early)

    # -- reports

    def read(self, event: Report, now: float) -> None:
        """Take a report in, or note what is wrong with it."""
        name = f"lane {self.lane.id!r}, order {event.order}"
        if event in self.seen:
            if not self.flags.repeats:
                self.note("reports_come_once", f"{name} is reported again: {event}")
        elif event.order in self.void:
            self.note("orders_void_after_failure", f"{name} was void, yet it is reported: {event}")
        elif event.order not in self.orders:
            self.note("names_what_exists", f"{name} was never given: {event}")
        elif event.through <= self.through.get(event.order, -2) and isinstance(event, StepsDone):
            if not self.flags.repeats:
                self.note("reports_come_once", f"{name} tells of steps it has told of: {event}")
        elif event.order < self.standing:
            self._late(name, event)
        elif event.order != self.standing and event.first > self.reported + 1:
            if not self.flags.overtakes:
                missing = f"steps {self.reported + 1} to {event.first - 1} are not told yet"
                self.note("reports_in_order", f"{name} is reported while {missing}")
            self.early.append(event)
        else:
            self._accept(name, event, now)
            self._catch_up(now)

    def _late(self, name: str, event: Report) -> None:
        self.seen.add(event)
        self.through[event.order] = event.through
        if event.through >= event.first:
            self.note("steps_numbered_right", f"{name} tells of steps that order {self.standing} has told of: {event}")
        elif not self.flags.overtakes:
            self.note("reports_in_order", f"{name} is reported after order {self.standing}")

    def _catch_up(self, now: float) -> None:
        for event in sorted(self.early, key=lambda e: (e.order, e.through)):
            if event.first <= self.reported + 1 and event in self.early:
                self.early.remove(event)
                self.read(event, now)

    def _accept(self, name: str, event: Report, now: float) -> None:
        step, begin = self.orders[event.order], self.reported + 1
        if event.order == self.standing:
            if event.first != self.first:
                self.note("steps_numbered_right", f"{name} took effect at step {self.first}, and now at {event.first}")
        else:
            if event.first != begin:
                self.note("steps_numbered_right", f"{name} takes effect at step {event.first}, not {begin}")
            self._take_effect(name, step, begin)
            self.first = begin
        self.seen.add(event)
        self.through[event.order] = event.through
        done = isinstance(event, StepsDone)
        if event.through < begin - 1 or (step.chunks and done and event.through != event.first):
            self.note(
                "steps_numbered_right", f"{name}: steps up to {event.through} are no steps it can have run: {event}"
            )
        if event.through > self.first + step.horizon - 1 and event.through >= begin:
            self.note("within_horizon", f"{name} ran to step {event.through} from {self.first}, horizon {step.horizon}")
        chunks = step.chunks if event.through >= self.first and begin <= self.first else ()
        self._rows(name, event, begin, bool(chunks))
        self._chunks(name, event, chunks)
        self._ends(name, event, begin)
        self.reported = max(self.reported, event.through)
        if isinstance(event, StepsDone):
            self._times(name, event, now)
        else:
            self.halt()

    def _take_effect(self, name: str, step: Step, at: int) -> None:
        """An order takes effect, and with it those before it that ran no step."""
        for number in self.pending():
            if number > step.order:
                break
            passed = self.ahead.pop(number)
            if number < step.order and passed.chunks:
                self.note(
                    "orders_applied_whole", f"{name} took effect, but order {number} before it has not run its chunks"
                )
            for request in passed.leaves:
                self._leave(request, at)
            for join in passed.joins:
                self._join(join, at)
            self.standing = number

    def _join(self, join: Join, at: int) -> None:
        if join.request in self.ground.finished:
            return  # it has ended behind the scheduler's back
        left, allowed = self.ground.left(join.request, self.flags.exact_lengths)
        due = None if left is None else at + left - 1
        self.members[join.request] = Member(join, at, due, None if allowed is None else at + allowed - 1)
        self.ground.decoding(join.request, self.lane.ranks[join.rank])

    def _leave(self, request: str, at: int) -> None:
        member = self.members.pop(request, None)
        if member is not None:
            self.ground.decoded(
                request, self.lane.ranks[member.join.rank], member.join.context_length, at - member.first
            )

    def halt(self) -> None:
        """Nothing runs any more, and nothing that was ordered until now will."""
        for request in tuple(self.members):
            self._leave(request, self.reported + 1)
        self.void |= {number for number in self.orders if number >= self.standing}
        self.orders = {number: step for number, step in self.orders.items() if number not in self.void}
        self.ahead.clear()
        self.early.clear()

    # -- what a report must say

    def _rows(self, name: str, event: Report, begin: int, chunks: bool) -> None:
        """A step needs a row: a member, up to run-ahead beyond its last token, or a chunk."""
        if event.through < begin or any(member.due is None for member in self.members.values()):
            return
        last = max(
            (member.due + self.lane.run_ahead for member in self.members.values() if member.due is not None), default=-1
        )
        if event.through > max(last, self.first if chunks else -1, self.ground.last_row.get(self.lane.id, -1)):
            self.note(
                "empty_lane_rests", f"{name} ran step {event.through}, in which the lane has neither member nor chunk"
            )

    def _chunks(self, name: str, event: Report, chunks: tuple[Chunk, ...]) -> None:
        told = set(event.prefilled) if isinstance(event, StepsDone) else set()
        given = {chunk.request: chunk for chunk in chunks}
        if told - set(given):
            self.note(
                "orders_applied_whole", f"{name}: prefilled {sorted(told - set(given))}, of which it has no chunk"
            )
        missing = [request for request in given if request not in told and request not in self.ground.cancelled]
        if missing and isinstance(event, StepsDone):
            self.note("orders_applied_whole", f"{name}: its chunks of {missing} are not reported as prefilled")
        for chunk in chunks:
            self.ground.prefilled(chunk, self.lane.ranks[chunk.rank])

    def _ends(self, name: str, event: Report, begin: int) -> None:
        step = self.orders[event.order]
        lasts = {chunk.request for chunk in step.chunks if chunk.last}
        for request, at in event.finished:
            if request in self.ground.finished:
                self.note("finishes_once", f"{name}: {request!r} finished before, and now in step {at} again")
                continue
            if not self.ground.knows(request):
                self.note("names_what_exists", f"{name}: unknown request {request!r} finished")
                continue
            if not begin <= at <= event.through:
                self.note("steps_numbered_right", f"{name}: {request!r} finished in step {at}, which is not newly done")
            self._end(name, request, at, lasts)
        for request, member in tuple(self.members.items()):
            if member.due is not None and member.due <= event.through:
                self.note(
                    "orders_applied_whole",
                    f"{name}: {request!r} joined at step {member.first} and makes its last token in step {member.due}, "
                    f"but steps up to {event.through} are told and it has not finished",
                )
            if member.limit is not None and member.limit <= event.through:
                self.note(
                    "finishes_at_limits", f"{name}: {request!r} reached its limit in step {member.limit} and goes on"
                )

    def _end(self, name: str, request: str, at: int, lasts: set[str]) -> None:
        member = self.members.pop(request, None)
        if member is None and request not in lasts:
            self.note("orders_applied_whole", f"{name}: {request!r} finished, but by the orders it is no member")
        elif member is not None and self.flags.exact_lengths and member.due is not None and at != member.due:
            self.note(
                "finishes_at_limits", f"{name}: {request!r} finished in step {at}, its last token is {member.due}'s"
            )
        elif member is None and self.flags.exact_lengths and self.ground.left(request, True)[0] not in (0, None):
            self.note("finishes_at_limits", f"{name}: {request!r} finished with its prefill, but makes more tokens")
        last = self.ground.last_row.get(self.lane.id, -1)
        self.ground.last_row[self.lane.id] = max(last, at + self.lane.run_ahead)
        self.ground.finished.add(request)

    def _times(self, name: str, event: StepsDone, now: float) -> None:
        ended = now if event.ended is None else event.ended
        slack = 1e-9 * max(1.0, abs(now))
        if not 0.0 <= event.seconds < float("inf"):
            self.note("durations_add_up", f"{name}: steps took {event.seconds!r} seconds")
        elif not self.ended - slack <= ended <= now + slack:
            self.note("durations_add_up", f"{name}: ended at {ended!r}, which is not from {self.ended!r} to {now!r}")
        elif event.seconds > ended - self.ended + slack:
            since = f"only {ended - self.ended!r} have passed since the lane's last step"
            self.note("durations_add_up", f"{name}: its steps took {event.seconds!r} seconds, but {since}")
        self.ended = max(self.ended, ended)
