"""A simulated lane: runs standing orders in virtual time, jumping over steps in which nothing changes.

Between two changes of membership steps are uniform, so the times at which they end are computed at once from the cost
surface (a *segment*). A change takes effect at a step: an order at the first step not launched yet, a finished
request's row at the step after those already launched. With run-ahead r, r further steps are launched while one runs.
"""

from __future__ import annotations

import heapq
from collections import deque

import numpy as np
import numpy.typing as npt
from attrs import define, evolve, field

from ..batch import RunningBatch
from ..cluster import Lane
from ..costs import Costs, Load, lane_balanced_seconds, lane_finishing_times, lane_seconds
from ..errors import ExecutorError
from ..events import StepsDone
from ..plan import Chunk, Step

FloatArray = npt.NDArray[np.float64]
LONGEST_SEGMENT = 512  # steps computed at once


@define(eq=False)
class Work:
    """What only the executor knows of requests: tokens each will still make, and who has made all of them."""

    to_make: dict[str, int] = field(factory=dict)
    finished: set[str] = field(factory=set)


@define(eq=False)
class InForce:
    """The order in force and the step at which it took effect."""

    step: Step
    first: int
    reported: bool = False

    @property
    def last(self) -> int:
        return self.first + self.step.horizon - 1


@define(eq=False)
class Segment:
    """Uniform steps from ``start`` on; ``ends`` are absolute seconds; ``begin`` is when the first began."""

    start: int
    begin: float
    ends: FloatArray
    balanced: float  # seconds per step at zero imbalance
    members: int
    chunks: tuple[Chunk, ...]

    @property
    def last(self) -> int:
        return self.start + len(self.ends) - 1

    def end_of(self, step: int) -> float:
        """When a step of it ends (the step before its first: when it began)."""
        return float(self.ends[step - self.start]) if step >= self.start else self.begin


@define
class Span:
    """What a lane did for a while, for whoever measures: ``durations`` of consecutive steps, seconds."""

    lane: str
    begin: float
    durations: FloatArray
    balanced: float
    served: int  # members, and requests with a chunk


@define(eq=False)
class SimLane:
    """One lane in virtual time."""

    lane: Lane
    costs: Costs
    work: Work
    batches: tuple[RunningBatch, ...]
    done: int = -1  # last step ended
    ended: float = 0.0  # when
    order: InForce | None = None
    segment: Segment | None = None
    pending: deque[tuple[int, Step]] = field(factory=deque)  # (step it takes effect at, order)
    last_tokens: list[tuple[int, str]] = field(factory=list)  # heap of (step of the last token, member)
    removals: deque[tuple[int, str]] = field(factory=deque)  # (step from which a finished row is gone, member)
    ranks: dict[str, int] = field(factory=dict)  # members
    entered: list[tuple[str, int]] = field(factory=list)  # (member, rank) since the executor last looked
    left: list[tuple[str, int, int]] = field(factory=list)  # (former member, rank, tokens stored), likewise
    reported: int = -1
    finished: list[tuple[str, int]] = field(factory=list)  # not reported yet
    prefilled: list[str] = field(factory=list)
    seconds: float = 0.0
    replaced: list[StepsDone] = field(factory=list)  # reports of orders replaced since the last report

    # -- looking

    def launched(self, now: float) -> int:
        """The last step launched by now."""
        if self.segment is None or self.order is None:
            return self.done
        in_progress = 1 if now > self.segment.end_of(self.done) else 0
        return max(self.done, min(self.done + self.lane.run_ahead + in_progress, self._last_allowed()))

    def _last_allowed(self) -> int:
        """The last step the orders held allow."""
        if self.pending:
            at, step = self.pending[-1]
            return at + step.horizon - 1
        return self.order.last if self.order is not None else self.done

    def next_event(self) -> float | None:
        """When something changes or has to be reported; None while the lane has nothing to run."""
        segment, order = self.segment, self.order
        if segment is None or order is None:
            return None
        step = segment.last
        if self.last_tokens:
            step = min(step, self.last_tokens[0][0])
        dry = order.last - self.lane.run_ahead
        if dry > self.done:
            step = min(step, dry)
        return segment.end_of(max(step, self.done + 1)) if self.done < segment.last else segment.end_of(self.done)

    def due(self) -> bool:
        """Whether there is something the scheduler has to hear now."""
        order = self.order
        if self.finished or self.prefilled:
            return True
        if order is None:
            return False
        if not order.reported and (order.step.leaves or not order.step.horizon):
            return True
        dry = order.last - self.lane.run_ahead
        return self.reported < dry <= self.done or self.reported < order.last <= self.done

    # -- orders

    def take(self, step: Step, now: float) -> None:
        """A new order: it takes effect at the first step not launched yet, and after every order with chunks."""
        at = self.launched(now) + 1
        if self.pending:
            previous_at, previous = self.pending[-1]
            at = max(at, previous_at + (1 if previous.chunks else 0))
        elif self.order is not None and self.order.step.chunks:
            at = max(at, self.order.first + 1)
        self.pending.append((at, step))
        segment = self.segment
        if segment is not None and at <= segment.last:
            if at > segment.start:
                segment.ends = segment.ends[: at - segment.start]
            else:
                self.segment = None

    def depart(self, requests: tuple[str, ...], now: float) -> None:
        """Members leave at once if the lane is at rest: no step under way touches their KV."""
        if self.launched(now) == self.done:
            for request in requests:
                if request in self.ranks:
                    self._remove(request)

    def _apply(self, step: Step, at: int) -> None:
        """An order takes effect before step ``at``; what the one before it did is reported under its own number."""
        if self.order is not None and self.done > self.reported:
            self.replaced.append(self._event(self.order, at - 1))
        for request in step.leaves:
            if request in self.ranks:
                self._remove(request)
        for join in step.joins:
            if join.request in self.work.finished:
                continue
            if join.request in self.ranks:
                raise ExecutorError(f"lane {self.lane.id!r}, order {step.order}: {join.request!r} joins twice")
            self.ranks[join.request] = join.rank
            self.entered.append((join.request, join.rank))
            self.batches[join.rank].add(join.request, join.context_length - at)
            heapq.heappush(self.last_tokens, (at + self.work.to_make[join.request] - 1, join.request))
        self.order = InForce(step, at)

    def _remove(self, request: str) -> None:
        """A member leaves before its next step; what it still has to make is remembered."""
        rank = self.ranks.pop(request)
        self.left.append((request, rank, self.batches[rank].remove(request) + self.done))
        for index, (last, member) in enumerate(self.last_tokens):
            if member == request:
                self.work.to_make[request] = last - self.done
                self.last_tokens[index] = self.last_tokens[-1]
                self.last_tokens.pop()
                heapq.heapify(self.last_tokens)
                return

    # -- time

    def advance(self, now: float) -> list[Span]:
        """Run until ``now``. Stops at the end of a step that has to be reported. Returns what was done."""
        spans = []
        while self.segment is not None:
            span = self._end_steps(now)
            if span is not None:
                spans.append(span)
            if self.done < self.segment.last:
                break
            self._change()
            if self.due():
                break
            self.begin(self.segment.end_of(self.done))
        return spans

    def _end_steps(self, now: float) -> Span | None:
        segment = self.segment
        assert segment is not None
        count = int(segment.ends.searchsorted(now, side="right"))
        before = self.done - segment.start + 1
        if count <= before:
            return None
        begin = segment.end_of(self.done)
        self.done = segment.start + count - 1
        self.ended = segment.end_of(self.done)
        for chunk in segment.chunks:
            self.prefilled.append(chunk.request)
            if chunk.last:
                self.work.to_make[chunk.request] -= 1
                if not self.work.to_make[chunk.request]:
                    self._finish(chunk.request, self.done)
        while self.last_tokens and self.last_tokens[0][0] <= self.done:
            step, request = heapq.heappop(self.last_tokens)
            self._finish(request, step)
            self.removals.append((self.launched(self.ended) + 1, request))
        self.seconds += self.ended - begin
        durations = segment.ends[before:count].copy()
        durations[1:] -= segment.ends[before : count - 1]
        durations[0] -= begin
        return Span(self.lane.id, begin, durations, segment.balanced, segment.members + len(segment.chunks))

    def _finish(self, request: str, step: int) -> None:
        self.finished.append((request, step))
        self.work.finished.add(request)

    def begin(self, at: float) -> None:
        """Begin the next segment at time ``at``, if there is something to run."""
        self._change()
        step, in_force = self.done + 1, self.order
        self.segment = None
        if in_force is not None and step <= in_force.last and (self.ranks or in_force.step.chunks):
            self.segment = self._segment(step, at, in_force)

    def _change(self) -> None:
        """What changes before the next step: finished rows go, orders take effect."""
        step = self.done + 1
        while self.removals and self.removals[0][0] <= step:
            _, request = self.removals.popleft()
            if request in self.ranks:
                self.batches[self.ranks.pop(request)].remove(request)
        while self.pending and self.pending[0][0] <= step:
            took, order = self.pending.popleft()
            self._apply(order, took)

    def _segment(self, step: int, at: float, order: InForce) -> Segment:
        chunks = order.step.chunks
        loads = [
            Load(len(b), b.total(step), b.longest(step), tuple((c.start, c.end) for c in chunks if c.rank == rank))
            for rank, b in enumerate(self.batches)
        ]
        members = len(self.ranks)
        if chunks:
            ends = np.array([at + lane_seconds(self.costs, loads)])
            return Segment(step, at, ends, lane_balanced_seconds(self.costs, loads), members, chunks)
        changes = [order.last + 1, step + LONGEST_SEGMENT]
        changes += [self.pending[0][0]] if self.pending else []
        changes += [self.removals[0][0]] if self.removals else []
        changes += [self.last_tokens[0][0] + self.lane.run_ahead + 1] if self.last_tokens else []
        steps = max(min(changes) - step, 1)
        middle = [Load(ld.n, ld.total + ld.n * (steps // 2), ld.longest + steps // 2) for ld in loads]
        ends = at + lane_finishing_times(self.costs, loads, steps)
        return Segment(step, at, ends, lane_balanced_seconds(self.costs, middle), members, ())

    # -- reports

    def reports(self, now: float) -> list[StepsDone]:
        """What is done and not reported yet: first of orders replaced since, then of the order in force."""
        launched = self.launched(now)
        events, self.replaced = [evolve(event, launched=launched) for event in self.replaced], []
        order = self.order
        if order is not None and (self.done > self.reported or self.due()):
            events.append(self._event(order, launched))
        return events

    def _event(self, order: InForce, launched: int) -> StepsDone:
        event = StepsDone(
            self.lane.id,
            order.step.order,
            order.first,
            max(self.done, order.first - 1),
            tuple(self.finished),
            tuple(self.prefilled),
            self.seconds,
            launched,
            self.ended,
        )
        order.reported = True
        self.reported = self.done
        self.seconds = 0.0
        self.finished.clear()
        self.prefilled.clear()
        return event
