"""A simulated lane: runs standing orders in virtual time, jumping over steps in which nothing changes.

Between two changes of membership steps are uniform, so the times at which they end are computed at once from the cost
surface (a *segment*). A change takes effect at a step: an order at the first step not launched yet, a finished
request's row at the step after those already launched. With run-ahead r, r further steps are launched while one runs.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections import deque
from operator import sub

from attrs import define, field

from ..batch import RunningBatch
from ..cluster import Lane
from ..costs import Costs, Load, lane_balanced_seconds, lane_finishing_times, lane_seconds
from ..errors import ExecutorError
from ..events import StepsDone
from ..plan import Chunk, Step
from .segment import InForce, Ran, Segment, Span, Work

LONGEST_SEGMENT = 512  # steps computed at once


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
    replaced: list[Ran] = field(factory=list)  # orders replaced since the last report

    # -- looking

    def launched(self, now: float) -> int:
        """The last step launched by now."""
        if self.segment is None or self.order is None:
            return self.done
        ahead = self.done + self.lane.run_ahead
        if now > self.segment.end_of(self.done):
            ahead += 1
        return max(self.done, min(ahead, self._last_allowed()))

    def _last_allowed(self) -> int:
        """The last step the orders held allow."""
        if self.pending:
            at, step = self.pending[-1]
            return at + step.horizon - 1
        return self.order.last if self.order is not None else self.done

    def next_event(self) -> float | None:
        """When something changes or has to be reported; None while the lane has nothing to run."""
        segment, order, done = self.segment, self.order, self.done
        if segment is None or order is None:
            return None
        step = segment.last
        if done >= step:
            return segment.end_of(done)
        if self.last_tokens and self.last_tokens[0][0] < step:
            step = self.last_tokens[0][0]
        dry = order.last - self.lane.run_ahead
        if done < dry < step:
            step = dry
        return segment.end_of(step if step > done else done + 1)

    def due(self) -> bool:
        """Whether there is something the scheduler has to hear now."""
        if self.finished or self.prefilled:
            return True
        if self.replaced and any(ran.finished or ran.prefilled for ran in self.replaced):
            return True
        order = self.order
        if order is None:
            return False
        if not order.reported and (order.step.leaves or not order.step.horizon) and not order.step.chunks:
            return True  # that it took effect is news by itself; one with chunks runs its step first
        last = order.last
        return self.reported < last - self.lane.run_ahead <= self.done or self.reported < last <= self.done

    @property
    def at_rest(self) -> bool:
        """Whether it needs to be told to begin: nothing runs, or what ran is done."""
        return self.segment is None or self.done >= self.segment.last

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
                segment.cut(at)
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
            self.replaced.append(self._ran(self.order))
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
        self.order = InForce(step, at, at + step.horizon - 1)

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
        ends = segment.ends
        before = self.done - segment.start + 1
        count = len(ends) if ends[-1] <= now else bisect_right(ends, now, before)
        if count <= before:
            return None
        begin = ends[before - 1] if before else segment.begin
        ended = ends[before:count]
        durations = list(map(sub, ended, (begin, *ended)))
        self.ended = ended[-1]
        self.done = segment.start + count - 1
        if segment.chunks:
            self._end_chunks(segment.chunks)
        while self.last_tokens and self.last_tokens[0][0] <= self.done:
            step, request = heapq.heappop(self.last_tokens)
            self._finish(request, step)
            self.removals.append((self.launched(self.ended) + 1, request))
        self.seconds += self.ended - begin
        served = segment.members + len(segment.chunks)
        return Span(self.lane.id, begin, self.ended, durations, segment.balanced, served)

    def _end_chunks(self, chunks: tuple[Chunk, ...]) -> None:
        """The step with these chunks, ``done``, has ended; a last chunk gives a token."""
        to_make = self.work.to_make
        for chunk in chunks:
            self.prefilled.append(chunk.request)
            if chunk.last:
                to_make[chunk.request] -= 1
                if not to_make[chunk.request]:
                    self._finish(chunk.request, self.done)

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
        while self.pending and (self.pending[0][0] <= step or self._empty(step)):
            took, order = self.pending.popleft()
            self._apply(order, min(took, step))

    def _empty(self, step: int) -> bool:
        """Whether the order in force has no row for a step: none is launched then, and what is pending may begin."""
        return not self.ranks and (self.order is None or not self.order.step.chunks or self.order.first < step)

    def _segment(self, step: int, at: float, order: InForce) -> Segment:
        chunks = order.step.chunks
        members = len(self.ranks)
        if chunks:
            loads = [
                Load(len(b), b.total(step), b.longest(step), tuple((c.start, c.end) for c in chunks if c.rank == rank))
                for rank, b in enumerate(self.batches)
            ]
            end = at + lane_seconds(self.costs, loads)
            return Segment(step, step, at, [end], lane_balanced_seconds(self.costs, loads), members, chunks)
        steps = self._uniform_steps(step, order.last)
        loads = [Load(len(b), b.total(step), b.longest(step)) for b in self.batches]
        half = steps // 2
        middle = [Load(load.n, load.total + load.n * half, load.longest + half) for load in loads]
        ends = (at + lane_finishing_times(self.costs, loads, steps)).tolist()
        return Segment(step, step + steps - 1, at, ends, lane_balanced_seconds(self.costs, middle), members, ())

    def _uniform_steps(self, step: int, last: int) -> int:
        """How many steps from ``step`` on nothing changes, as far as is known now; at least one."""
        change = min(last + 1, step + LONGEST_SEGMENT)
        if self.pending:
            change = min(change, self.pending[0][0])
        if self.removals:
            change = min(change, self.removals[0][0])
        if self.last_tokens:
            change = min(change, self.last_tokens[0][0] + self.lane.run_ahead + 1)
        return max(change - step, 1)

    # -- reports

    def reports(self, now: float) -> list[StepsDone]:
        """What is done and not reported yet: first of orders replaced since, then of the order in force."""
        order, told = self.order, self.replaced
        self.replaced = []
        if order is not None and (self.done > self.reported or self.due()):
            told.append(self._ran(order))
        if not told:
            return []
        launched = self.launched(now)
        return [ran.event(self.lane.id, launched) for ran in told]

    def _ran(self, order: InForce) -> Ran:
        """What was not reported yet, under an order's number."""
        through = max(self.done, order.first - 1)
        finished, prefilled = tuple(self.finished), tuple(self.prefilled)
        ran = Ran(order.step.order, order.first, through, finished, prefilled, self.seconds, self.ended)
        order.reported = True
        self.reported = self.done
        self.seconds = 0.0
        self.finished.clear()
        self.prefilled.clear()
        return ran
