"""One lane's steps in time: who decodes in which step, and so when each request got its tokens.

A member's first step fixes ``entered``; its tokens since then are counted only when it goes. Pool wait runs from a
request's last token outside a batch, or its last step in one, to the start of its next first step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import accumulate

from ..plan import Step
from ..request import RequestId
from .histogram import LogHistogram


class Live:
    """A request with at least one token that has not ended."""

    __slots__ = (
        "arrival", "entered", "finished", "first", "lane", "last", "pool_wait", "pooled_since", "prompt_tokens",
        "tokens",
    )  # fmt: skip

    def __init__(self, arrival: float, prompt_tokens: int, first: float) -> None:
        self.arrival = arrival
        self.prompt_tokens = prompt_tokens
        self.first = first  # time of the first token
        self.last = first  # time of the last token counted in ``tokens``
        self.pooled_since = first
        self.pool_wait = 0.0
        self.tokens = 1
        self.lane: LaneClock | None = None  # where it decodes or will from that lane's next step on
        self.entered: int | None = None  # its first step there
        self.finished = False


class StepTimes:
    """When the ``steps`` newly reported steps ended; the last ended at ``end``. ``each`` has their seconds, or None."""

    __slots__ = ("_each", "_ends", "_share", "end", "steps")

    def __init__(self, end: float, steps: int, seconds: float, each: list[float] | None) -> None:
        self.end = end
        self.steps = steps
        self._share = seconds / steps if steps else 0.0
        self._each = each
        self._ends: list[float] | None = None  # element j is the start of new step j, element j + 1 its end

    def end_of(self, index: int) -> float:
        """When new step ``index`` (from 0; -1: the step before them, if it ended as the first began) ended. O(1)."""
        if index == self.steps - 1:
            return self.end
        if self._each is None:
            return self.end - (self.steps - 1 - index) * self._share
        if self._ends is None:  # few reports need it
            ends = list(accumulate(self._each, initial=0.0))
            shift = self.end - ends[-1]
            self._ends = [end + shift for end in ends]
        return self._ends[index + 1]

    def record(self, gaps: LogHistogram, start: int, stop: int, weight: int) -> None:
        """Count the durations of new steps ``start`` to ``stop`` (exclusive) ``weight`` times each."""
        if stop <= start or not weight:
            return
        if self._each is None:
            gaps.add(max(0.0, self._share), weight * (stop - start))
        elif stop - start == 1:
            gaps.add(max(0.0, self._each[start]), weight)
        else:
            gaps.add_many(self._each[start:stop], weight)


class LaneClock:
    """The lane's members, its orders on the way, and the last step reported."""

    __slots__ = ("_chunk_order", "_gaps", "_joining", "_lasts", "_live", "_members", "_pending", "end", "reported")

    def __init__(self, gaps: LogHistogram, live: dict[RequestId, Live]) -> None:
        self._gaps = gaps
        self._live = live
        self._members: dict[RequestId, None] = {}  # took part in the step reported last
        self._joining: dict[RequestId, None] = {}  # will take part in the next one
        self._pending: deque[Step] = deque()  # orders that change membership or end a prefill, not in effect yet
        self._lasts: set[RequestId] = set()  # last chunks of order _chunk_order, not reported yet
        self._chunk_order = -1
        self.reported: int | None = None
        self.end = 0.0  # when step ``reported`` ended

    def ordered(self, step: Step) -> None:
        """Remember an order until a report says that it, or a later one, took effect. O(chunks)."""
        if step.joins or step.leaves or any(chunk.last for chunk in step.chunks):
            self._pending.append(step)

    def newly_reported(self, first: int, through: int) -> int:
        """How many steps a report adds."""
        return max(0, through - (first - 1 if self.reported is None else self.reported))

    def wrote_last_chunk(self, order: int, request: RequestId) -> bool:
        """Whether this report is the first to say that the order's last chunk of the request is written."""
        if order != self._chunk_order or request not in self._lasts:
            return False
        self._lasts.remove(request)
        return True

    def advance(
        self, order: int, first: int, through: int, times: StepTimes, finished: Sequence[tuple[RequestId, int]]
    ) -> None:
        """Run the new steps up to ``through``, the order's membership holding from ``first`` on; finishes by step."""
        reported = first - 1 if self.reported is None else self.reported
        origin = reported + 1  # the step of new index 0
        split = max(reported, min(first - 1, through))
        if split > reported or (finished and finished[0][1] <= split):
            early = sum(step <= split for _, step in finished)
            self._run(reported + 1, split, origin, times, finished[:early])
            finished = finished[early:]
        while self._pending and self._pending[0].order <= order:
            self._effect(self._pending.popleft())
        self._run(split + 1, through, origin, times, finished)
        self.reported = max(reported, through)
        if times.steps:
            self.end = times.end

    def _effect(self, step: Step) -> None:
        for request in step.leaves:
            live = self._live.get(request)
            if live is not None and live.lane is self:
                self.expel(request)
        for join in step.joins:
            live = self._live.get(join.request)
            if live is not None and not live.finished:  # it may have ended with the chunk it was to join behind
                if live.lane is not None:  # its former lane was lost: it left there with that lane's last step
                    live.lane.expel(join.request)
                live.lane = self
                self._joining[join.request] = None
        if step.chunks:
            self._chunk_order = step.order
            self._lasts = {chunk.request for chunk in step.chunks if chunk.last}

    def _run(
        self, start: int, stop: int, origin: int, times: StepTimes, finished: Sequence[tuple[RequestId, int]]
    ) -> None:
        """Steps ``start`` to ``stop`` (inclusive) under the present membership, less who finishes on the way."""
        if stop < start:
            for request, step in finished:  # among steps reported before: late, the count of tokens is right still
                self._finish(request, step)
            return
        first_end = times.end_of(start - origin)
        if self._members:  # the gap before their next token includes the time the lane stood still
            self._gaps.add(max(0.0, first_end - self.end), len(self._members))
        if self._joining:
            self._enter(start, times.end_of(start - origin - 1), first_end)
        position, at = start, 0
        while at < len(finished):
            step = min(max(finished[at][1], start), stop)
            times.record(self._gaps, position + 1 - origin, step + 1 - origin, len(self._members))
            position, self.reported, self.end = step, step, times.end_of(step - origin)
            while at < len(finished) and finished[at][1] <= step:
                self._finish(*finished[at])
                at += 1
            if step == stop:
                at = len(finished)
        if position < stop:
            times.record(self._gaps, position + 1 - origin, stop + 1 - origin, len(self._members))
        self.reported, self.end = stop, first_end if stop == start else times.end_of(stop - origin)

    def _enter(self, step: int, begin: float, end: float) -> None:
        for request in self._joining:
            live = self._live[request]
            live.entered = step
            live.pool_wait += max(0.0, begin - live.pooled_since)
            self._gaps.add(max(0.0, end - live.last))
            self._members[request] = None
        self._joining.clear()

    def _finish(self, request: RequestId, step: int) -> None:
        live = self._live.get(request)
        if live is not None and live.lane is self and live.entered is not None:
            del self._members[request]
            self._count(live, step)

    def expel(self, request: RequestId) -> None:
        """Take a request out that decodes here, or would from the next step on; its last token is the last reported."""
        live = self._live[request]
        if live.entered is None:
            self._joining.pop(request, None)
            live.lane = None
            return
        self._members.pop(request, None)
        assert self.reported is not None  # it took part in a reported step
        self._count(live, self.reported)

    def _count(self, live: Live, last: int) -> None:
        """The member's steps here ended with step ``last``, at the lane's present end."""
        assert live.entered is not None
        live.tokens += max(0, last - live.entered + 1)
        live.last = live.pooled_since = self.end
        live.entered = live.lane = None

    def lost(self) -> None:
        """The lane runs no more steps: everybody left with its last one, orders on the way are void."""
        for request in (*self._members, *self._joining):
            self.expel(request)
        self._pending.clear()
        self._lasts.clear()

    def back(self, next_step: int) -> None:
        """The lane counts on from ``next_step``."""
        self.reported = next_step - 1
