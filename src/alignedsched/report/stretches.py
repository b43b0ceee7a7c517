"""What lanes did and when, out of events and plans: stretches of uniform steps, and the pauses between them.

An order's joins and leaves take effect at the step that its report names, so who decoded in which step, and how long
they were, is known without the executor's help: of a simulation, of a real engine, of a recorded log alike. Steps that
were reported together share the reported time equally.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter

from attrs import frozen

from ..batch import RunningBatch
from ..cluster import Lane
from ..costs import Costs, Load, lane_balanced_seconds
from ..events import StepsDone, StepsFailed
from ..metrics.bubbles import Idle
from ..plan import Chunk, Step


@frozen
class Stretch:
    """Consecutive steps of one lane under one membership; lengths are before the first of them, over all ranks."""

    lane: str
    begin: float  # seconds
    end: float
    steps: int
    order: int  # the one that was in force
    members: int
    total: int  # tokens: the sum of the members' context lengths
    longest: int
    shortest: int
    chunks: tuple[Chunk, ...]
    balanced_s: float | None  # all its steps at zero imbalance; None where no costs are known
    membership: int  # equal for two stretches of a lane if nobody joined or left between them

    @property
    def tokens(self) -> int:
        """Tokens that clients got: one a step and member, one a last chunk."""
        return self.steps * self.members + sum(chunk.last for chunk in self.chunks)

    @property
    def served(self) -> int:
        """Members, and requests with a chunk."""
        return self.members + len(self.chunks)


@frozen
class Pause:
    """Time in which a lane ran no step, and why."""

    lane: str
    begin: float
    end: float
    reason: Idle


class LaneTrack:
    """Follows one lane. A report costs O(log n) for each join, leave and finish, O(ranks) for each stretch."""

    def __init__(self, lane: Lane, block_size: int, costs: Costs | None) -> None:
        self._lane = lane
        self._costs = costs
        self._batches = [RunningBatch(block_size) for _ in lane.ranks]
        self._ranks: dict[str, int] = {}  # members
        self._pending: deque[Step] = deque()  # orders not in effect yet
        self._ended: set[str] = set()  # finished while an order that lets them join was pending
        self._chunks: tuple[Chunk, ...] = ()  # of the next step
        self._order = -1
        self._membership = 0
        self._reported: int | None = None
        self.end = 0.0  # of the last step reported

    def ordered(self, step: Step) -> None:
        """An order is on its way to the lane."""
        self._pending.append(step)

    def join(self, request: str, rank: int, base: int) -> None:
        """A request decodes from the next step on."""
        self._leave(request)
        self._batches[rank].add(request, base)
        self._ranks[request] = rank
        self._membership += 1

    def _leave(self, request: str) -> None:
        rank = self._ranks.pop(request, None)
        if rank is not None:
            self._batches[rank].remove(request)
            self._membership += 1

    def stopped(self, next_step: int | None = None) -> None:
        """Nobody decodes here any more, no order is on its way; steps count on from ``next_step`` if it is given."""
        for request in tuple(self._ranks):
            self._leave(request)
        self._pending.clear()
        self._ended.clear()
        self._chunks = ()
        if next_step is not None:
            self._reported = next_step - 1

    def reported(self, event: StepsDone | StepsFailed, end: float) -> list[Stretch]:
        """What a report adds, the last of its steps having ended at ``end``, in order of time."""
        before = event.first - 1 if self._reported is None else self._reported
        new = max(0, event.through - before)
        begin = max(self.end, end - event.seconds) if isinstance(event, StepsDone) else self.end
        clock = _Clock(before, min(begin, end), (end - min(begin, end)) / new if new else 0.0)
        finished = deque(sorted(event.finished, key=itemgetter(1)))
        split = max(before, min(event.first - 1, event.through))
        stretches = list(self._run(before + 1, split, clock, finished))
        while self._pending and self._pending[0].order <= event.order:
            self._effect(self._pending.popleft(), event.first)
        stretches += self._run(split + 1, event.through, clock, finished)
        for request, _ in finished:  # late: of steps reported before
            self._finish(request)
        self._reported = max(before, event.through)
        if new:
            self.end = end
        return stretches

    def _effect(self, step: Step, first: int) -> None:
        self._order, self._chunks = step.order, step.chunks
        for request in step.leaves:
            self._leave(request)
        for join in step.joins:
            if join.request in self._ended:
                self._ended.remove(join.request)
            else:
                self.join(join.request, join.rank, join.context_length - first)

    def _run(self, start: int, stop: int, clock: _Clock, finished: deque[tuple[str, int]]) -> Iterator[Stretch]:
        """Steps ``start`` to ``stop``, cut where somebody finishes."""
        while start <= stop:
            last = 1 if self._chunks else stop - start + 1
            through = start + last - 1
            if finished and finished[0][1] < through:
                through = max(start, finished[0][1])
            yield self._stretch(start, through, clock)
            self._chunks = ()
            while finished and finished[0][1] <= through:
                self._finish(finished.popleft()[0])
            start = through + 1

    def _finish(self, request: str) -> None:
        self._leave(request)
        if any(join.request == request for step in self._pending for join in step.joins):
            self._ended.add(request)

    def _stretch(self, start: int, through: int, clock: _Clock) -> Stretch:
        steps, batches = through - start + 1, self._batches
        return Stretch(
            self._lane.id,
            clock.end_of(start - 1),
            clock.end_of(through),
            steps,
            self._order,
            len(self._ranks),
            sum(batch.total(start) for batch in batches),
            max(batch.longest(start) for batch in batches),
            min((batch.shortest(start) for batch in batches if len(batch)), default=0),
            self._chunks,
            None if self._costs is None else steps * self._balanced(self._costs, start + steps // 2),
            self._membership,
        )

    def _balanced(self, costs: Costs, step: int) -> float:
        """One step's seconds at zero imbalance."""
        chunks: dict[int, list[tuple[int, int]]] = {
            rank: [(chunk.start, chunk.end) for chunk in group]
            for rank, group in groupby(sorted(self._chunks, key=lambda chunk: chunk.rank), key=lambda chunk: chunk.rank)
        }
        return lane_balanced_seconds(
            costs,
            [
                Load(len(batch), batch.total(step), batch.longest(step), tuple(chunks.get(rank, ())))
                for rank, batch in enumerate(self._batches)
            ],
        )


@frozen
class _Clock:
    """Steps from ``before`` + 1 on, each as long as ``seconds``."""

    before: int
    begin: float
    seconds: float

    def end_of(self, step: int) -> float:
        return self.begin + (step - self.before) * self.seconds
