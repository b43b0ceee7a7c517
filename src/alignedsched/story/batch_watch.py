"""The life of one batch, told while its calls are replayed: who made it up, who came and went, what it ran."""

from __future__ import annotations

from collections.abc import Sequence

from ..books import Books
from ..errors import CallerError
from ..events import DeviceLost, Event, LaneLost, StepsDone, StepsFailed
from ..lane_book import LaneBook
from ..narrator import Rule
from ..plan import Plan, Step
from ..scheduler import Scheduler
from .batch_numbers import BatchNumbers
from .sentences import Sentence, listed, name, seconds, several, span


class BatchWatch:
    """A narrator that writes the story of the batch that one order of a lane stands for."""

    _books: Books
    _lane: LaneBook
    _policy: str

    def __init__(self, lane: str, order: int) -> None:
        self._name = lane
        self._order = order
        self._numbers = BatchNumbers()
        self._last_order = -1
        self.made_by: int | None = None  # the order that made the batch the order stands for, once that was seen
        self._begun = False
        self.ended = False
        self._replaced: int | None = None  # by which order
        self._story: list[Sentence] = []
        self._causes: dict[str, str] = {}  # of this call, by request
        self._first: float | None = None
        self._now = 0.0
        self._steps = 0
        self._through = -1  # steps known before the event that is looked at
        self._ran_s = 0.0

    def begin(self, scheduler: Scheduler) -> None:
        """A scheduler is about to make the calls. Raises CallerError when it has no such lane."""
        self._books, self._policy = scheduler._books, scheduler.policy.name
        if self._name not in self._books.lanes:
            raise CallerError(f"no lane {name(self._name)}; known: {', '.join(map(name, self._books.lanes))}")
        self._lane = self._books.lanes[self._name]

    def wants(self, now: float) -> bool:
        """Whether the next call, made at ``now``, matters."""
        return not self.ended

    def note(self, rule: Rule, lane: str, request: str, figure: int) -> None:
        """See Narrator."""
        if request and lane == self._lane.id:
            who = f"{name(self._policy)}'s choice" if rule is Rule.VICTIM else "the newest"
            self._causes[request] = f"made room, {several(figure, 'block')} short, {who}"

    def before(self, now: float, events: Sequence[Event]) -> None:
        """A call is about to be made."""
        self._now, self._causes, self._through = now, {}, self._lane.state.reported
        for event in events if self._begun and not self.ended else ():
            if isinstance(event, StepsDone | StepsFailed) and event.lane == self._lane.id:
                self._reported(now, event)
            elif (isinstance(event, LaneLost) and event.lane == self._lane.id) or (
                isinstance(event, DeviceLost) and event.device in self._lane.tiers
            ):
                self._end(now, "its lane was lost")

    def _reported(self, now: float, event: StepsDone | StepsFailed) -> None:
        if event.order < self._order:
            return
        if self._replaced is not None and event.order >= self._replaced:
            self._end(now, "")
            return
        steps = event.through - max(event.first - 1, self._through)
        if steps > 0:
            self._through = event.through
            self._steps += steps
            self._ran_s += event.seconds if isinstance(event, StepsDone) else 0.0
        if event.finished:
            left = self._lane.state.members() - len(event.finished)
            who = listed(name(request) for request, _ in event.finished)
            left_over = f"; {several(left, 'member')} left" if left > 0 else ""
            self._say(now, f"{who} finished{left_over}")
        if isinstance(event, StepsFailed):
            self._end(now, f"a step failed ({event.reason or 'no reason given'}), and the lane is empty")

    def _say(self, at: float, text: str) -> None:
        self._story.append(Sentence(at, text))

    def after(self, now: float, events: Sequence[Event], plan: Plan) -> None:
        """The call has been made."""
        self._numbers.take(plan)
        for step in plan.steps:
            if step.lane != self._lane.id:
                continue
            self._last_order = step.order
            if step.order == self._order:
                self._begin(now, step)
            elif self._begun and not self.ended and self._replaced is None and (step.joins or step.leaves):
                self._replaced = step.order
                self._changed(now, step, f"order {step.order} made it batch {name(step.lane)}/{step.order}")
        if self._begun and not self.ended and self._replaced is None and not self._lane.state.members():
            self._end(now, "nobody is left in it")

    def _begin(self, now: float, step: Step) -> None:
        self.made_by = self._numbers.order(self._lane.id)
        self._begun, self._first = True, now
        why = f" ({self._lane.why})" if self._lane.why else ""
        self._changed(now, step, f"order {step.order}, {step.why or 'no reason given'}{why}, made the batch")
        for rank, batch in enumerate(self._lane.state.batches):
            first = next((join for join in step.joins if join.request in batch), None)
            at = self._lane.state.reported + 1 if first is None else first.context_length - batch.base(first.request)
            self._members(now, rank, at)
        if step.chunks:
            who = listed(name(chunk.request) for chunk in step.chunks)
            self._say(now, f"beside it {who} got {sum(c.end - c.start for c in step.chunks):,} prefill tokens")

    def _members(self, now: float, rank: int, step: int) -> None:
        """Who decodes on a rank, as long as they are before a step."""
        batch, tier = self._lane.state.batches[rank], name(self._lane.tiers[rank])
        members = len(batch)
        if not members:
            self._say(now, f"nobody decoded on {tier}")
            return
        low, high = batch.shortest(step), batch.longest(step)
        who = listed(f"{name(member)} ({batch.base(member) + step:,})" for member in batch.longest_first())
        if members == 1:
            self._say(now, f"on {tier} alone: {who}")
            return
        more = members * high / batch.total(step) - 1
        self._say(now, f"on {tier} {members:,} members, {span(low, high)} tokens long (spread {high - low:,}): {who}")
        self._say(now, f"if all on {tier} were as long as the longest, a step would read {more:.0%} more tokens")

    def _changed(self, now: float, step: Step, what: str) -> None:
        came = [f"{name(join.request)} ({join.context_length:,})" for join in step.joins]
        went = [
            f"{name(request)} ({self._causes[request]})" if request in self._causes else name(request)
            for request in step.leaves
        ]
        parts = [f"{listed(came)} joined"] if came else []
        parts += [f"{listed(went)} left"] if went else []
        self._say(now, f"{what}{': ' if parts else ''}{', '.join(parts)}")

    def _end(self, now: float, why: str) -> None:
        self.ended = True
        each = f", {seconds(self._ran_s / self._steps)} each" if self._steps and self._ran_s else ""
        ran = f"it ran {several(self._steps, 'step')}{each}"
        self._say(now, f"{why}; {ran}" if why else ran)

    def told(self) -> list[Sentence]:
        """The story. Raises CallerError where the lane has no such order."""
        if not self._begun:
            orders = f"its orders here are 0 to {self._last_order:,}" if self._last_order >= 0 else "it got no order"
            raise CallerError(f"lane {name(self._lane.id)} has no order {self._order}; {orders}")
        if not self.ended:
            self._end(self._now, "here the log ends")
        return self._story
