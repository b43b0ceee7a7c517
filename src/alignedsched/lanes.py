"""A lane's standing orders: which steps are done, which may be launched, and when an order took effect.

The core never waits for a lane. It issues an order and learns later, from a report, at which step the order took
effect. Between the two it only knows bounds:

    reported   the last step known to be done
    exposed    the last step the executor may have launched: at most ``run_ahead`` beyond the one in progress, and
               never beyond the end of the orders it holds. A report says which step that was when it was made, which
               holds until the plan that answers it.

A new order takes effect between ``reported + 1`` (plus one step for each chunk order still to run) and ``exposed +
1``. Whatever a departing member may still write until then stays charged: it is *fenced* by the step ``exposed`` and
by the order, and the fence falls when a report passes that step or names that order (or a later one).

Deliberately absent: blocks, requests, policies.
"""

from __future__ import annotations

from collections import deque

from attrs import define, field

from .batch import RunningBatch
from .cluster import Lane, Role
from .errors import ExecutorError
from .events import StepsDone, StepsFailed
from .plan import Step
from .states import OrderState


@define
class Issued:
    """An order the executor holds."""

    step: Step
    latest_first: int  # the executor broke its run-ahead promise if the order takes effect later
    state: OrderState = OrderState.ISSUED
    first: int = -1


@define
class Progress:
    """What a report says that was not known before."""

    taken: list[Issued]  # orders that took effect, in order; the last one is the report's own (if new)
    start: int  # first newly done step
    through: int  # last newly done step (start - 1: none)
    order: Issued


@define(eq=False)
class LaneState:
    """Orders and steps of one lane."""

    lane: Lane
    role: Role
    batches: tuple[RunningBatch, ...]
    reported: int = -1
    next_order: int = 0
    last_possible: int = -1  # no step beyond this one can be launched under the orders issued so far
    fresh: bool = False  # a report is being answered in this very call, and it said:
    launched: int = -1  # the last step launched when it was made
    lost: bool = False
    failures: int = 0  # failed steps in a row
    standing: Issued | None = None
    issued: deque[Issued] = field(factory=deque)  # not known to have taken effect, oldest first
    early: list[StepsDone | StepsFailed] = field(factory=list)  # reports whose predecessor is missing

    # -- what may be under way

    def exposed(self) -> int:
        """The last step the executor may have launched. O(1)."""
        ahead = self.launched if self.fresh else self.reported + self.lane.run_ahead + 1
        if self.early:  # the executor has reported more than can be taken in
            ahead = max(ahead, max(event.through for event in self.early) + self.lane.run_ahead + 1)
        return max(self.reported, min(ahead, self.last_possible))

    def chunk_orders(self) -> int:
        """Orders with prefill chunks that have not run yet."""
        return sum(1 for order in self.issued if order.step.chunks) if self.issued else 0

    def may_order(self) -> bool:
        """Whether a further order keeps chunk orders within run-ahead (they are never replaced, so they queue)."""
        return not self.lost and self.chunk_orders() <= self.lane.run_ahead

    def earliest_first(self) -> int:
        """The earliest step a new order can take effect at."""
        return self.reported + 1 + self.chunk_orders()

    def latest_first(self) -> int:
        """The latest step a new order can take effect at: after what may be launched and every chunk order."""
        latest = self.exposed() + 1
        for order in self.issued:
            if order.step.chunks:
                latest = max(latest, order.latest_first + 1)
        return latest

    def awaits_report(self) -> bool:
        """Whether all that may be launched may be under way already: nothing more runs before a report is answered."""
        return not self.fresh and self.reported < self.last_possible <= self.exposed()

    def owes_report(self) -> bool:
        """Whether the executor has to say something sooner or later: an order is not confirmed, or steps may run."""
        if self.lost or self.issued:
            return not self.lost
        waits = self.members() > 0 or (self.standing is not None and bool(self.standing.step.chunks))
        return waits and self.last_possible > self.reported

    def may_run(self) -> bool:
        """Whether the newest order lets the executor launch steps (it has not been told to stop)."""
        newest = self.issued[-1] if self.issued else self.standing
        return newest is not None and newest.step.horizon > 0 and self.last_possible > self.reported

    def members(self) -> int:
        batches = self.batches
        return len(batches[0]) if len(batches) == 1 else sum(map(len, batches))

    # -- orders out, reports in

    def issue(self, step: Step) -> Issued:
        latest = self.latest_first()
        issued = Issued(step, latest)
        self.issued.append(issued)
        self.next_order = step.order + 1
        self.last_possible = latest + step.horizon - 1
        self.fresh = False  # under this order more may be launched before a second one of the same plan is taken
        return issued

    def find(self, number: int) -> Issued | None:
        """The order of a number, if it stands or is still to take effect."""
        if self.standing is not None and self.standing.step.order == number:
            return self.standing
        for order in self.issued:
            if order.step.order == number:
                return order
        return None

    def check_report(self, event: StepsDone | StepsFailed) -> bool:
        """Whether a report says something new (False: late or duplicate). Raises ExecutorError if it cannot be true."""
        where = f"lane {self.lane.id!r}, order {event.order}"
        if event.order >= self.next_order or event.order < 0:
            raise ExecutorError(f"{where}: no such order was issued (the last is {self.next_order - 1})")
        order = self.find(event.order)
        if order is None:
            if event.through > self.reported:
                raise ExecutorError(f"{where} was replaced, yet reports step {event.through} (done: {self.reported})")
            return False
        if event.through < event.first - 1 or event.first < 0:
            raise ExecutorError(f"{where}: steps {event.first} to {event.through} are no range")
        if order.state is OrderState.STANDING:
            if event.first != order.first:
                raise ExecutorError(f"{where} took effect at step {order.first}, now at {event.first}?")
            if event.through <= self.reported and isinstance(event, StepsDone):
                return False
        elif event.first <= self.reported:
            raise ExecutorError(f"{where}: takes effect at step {event.first}, but step {self.reported} is done")
        self._check_range(where, order, event)
        return True

    def _check_range(self, where: str, order: Issued, event: StepsDone | StepsFailed) -> None:
        if isinstance(event, StepsDone) and event.launched is not None and event.launched < event.through:
            raise ExecutorError(f"{where}: ran step {event.through}, but launched only {event.launched}")
        if event.first > order.latest_first:
            raise ExecutorError(
                f"{where}: takes effect at step {event.first}, later than run_ahead {self.lane.run_ahead} allows "
                f"({order.latest_first})"
            )
        last = event.through + (1 if isinstance(event, StepsFailed) else 0)
        if last > event.first + order.step.horizon - 1 and not (last == event.first and isinstance(event, StepsFailed)):
            raise ExecutorError(f"{where}: step {last} lies beyond its horizon of {order.step.horizon} steps")
        later = next((o for o in self.issued if o.step.order > event.order), None) if self.issued else None
        if later is not None and event.through >= later.latest_first:
            raise ExecutorError(
                f"{where}: ran step {event.through}, but order {later.step.order} had to replace it by step "
                f"{later.latest_first} (run_ahead {self.lane.run_ahead})"
            )
        if order.step.chunks and isinstance(event, StepsDone) and event.through != event.first:
            raise ExecutorError(
                f"{where} carries prefill chunks and runs exactly one step, not {event.first} to {event.through}"
            )
        for skipped in self.issued if order.state is OrderState.ISSUED else ():
            if skipped is order:
                break
            if skipped.step.chunks and event.first == self.reported + 1:
                raise ExecutorError(
                    f"{where}: took effect before order {skipped.step.order}, which carries prefill chunks"
                )

    def must_wait(self, event: StepsDone | StepsFailed) -> bool:
        """Keep a report for later if an earlier one is still missing: it starts beyond the next step. O(1)."""
        order = self.find(event.order)
        if order is None or order.state is not OrderState.ISSUED or event.first <= self.reported + 1:
            return False
        if event not in self.early:
            self.early.append(event)
            self.early.sort(key=lambda report: (report.order, report.through))
        return True

    def next_early(self) -> StepsDone | StepsFailed | None:
        """Take out a report that need not wait any more, or None. O(reports kept)."""
        for at, event in enumerate(self.early):
            if event.first <= self.reported + 1:
                return self.early.pop(at)
        return None

    def accept(self, event: StepsDone | StepsFailed) -> Progress:
        """Take a checked report in: confirm orders, advance ``reported``. Amortised O(1)."""
        taken: list[Issued] = []
        order = self.find(event.order)
        assert order is not None
        if order.state is OrderState.ISSUED:
            while True:
                issued = self.issued.popleft()
                issued.first = event.first
                taken.append(issued)
                if issued is order:
                    break
                issued.state = OrderState.REPLACED
            if self.standing is not None:
                self.standing.state = OrderState.REPLACED
            order.state = OrderState.STANDING
            self.standing = order
            if not self.issued:
                self.last_possible = order.first + order.step.horizon - 1
        progress = Progress(taken, self.reported + 1, max(event.through, self.reported), order)
        self.reported = progress.through
        launched = event.launched if isinstance(event, StepsDone) else event.through
        launched = event.through + self.lane.run_ahead if launched is None else launched
        self.launched = max(self.launched, launched) if self.fresh else launched
        self.fresh = True
        if self.issued and not self.issued[-1].step.horizon:
            # The stop it holds takes effect as early as an order given now: nothing beyond can be launched.
            self.last_possible = min(self.last_possible, self.latest_first() - 1)
        return progress

    def halt(self, next_step: int | None = None) -> None:
        """Forget every order (failed step, lost lane): nothing runs any more."""
        self.issued.clear()
        self.early.clear()
        if self.standing is not None:
            self.standing.state = OrderState.REPLACED
            self.standing = None
        if next_step is not None:
            self.reported = next_step - 1
        self.last_possible = self.reported
