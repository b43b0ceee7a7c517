"""What a lane has to tell: of each order that took effect, what is done and was not told; and a failure, at the end."""

from __future__ import annotations

from collections import deque

from alignedsched.cluster import Lane
from alignedsched.events import StepsDone, StepsFailed
from alignedsched.request import RequestId

from .orders import InForce


class Reports:
    """Orders of one lane that took effect and may still have something to tell.

    ``done`` is the last step of the lane that has ended by now; to begin with, the one before its first.
    """

    def __init__(self, lane: Lane, done: int) -> None:
        self.failed: StepsFailed | None = None  # to be told; nothing takes effect before it was
        self._lane = lane
        self._orders: deque[InForce] = deque()  # the last is in force
        self._through = done  # the last step told
        self._last_end = 0.0

    @property
    def force(self) -> InForce | None:
        """The order in force."""
        return self._orders[-1] if self._orders else None

    def not_begun(self, launched: int) -> list[InForce]:
        """Orders whose first step comes after that one."""
        return [order for order in self._orders if order.first > launched]

    def take(self, order: InForce) -> None:
        """An order takes effect."""
        self._orders.append(order)

    def step_ended(self, order: InForce, began: float, now: float) -> None:
        """A step of an order has ended: it took the time since it was launched, or since the one before it ended."""
        order.seconds += now - max(began, self._last_end)
        self._last_end = order.ended = now

    def fail(self, done: int, reason: str, culprits: tuple[RequestId, ...]) -> None:
        """The step after ``done`` failed; what finished under its order is told with that."""
        force = next((o for o in reversed(self._orders) if o.first <= done + 1), None)
        assert force is not None, "a step fails under an order"
        self.failed = StepsFailed(
            self._lane.id, force.step.order, force.first, max(done, force.first - 1), reason, culprits,
            tuple(force.finished),
        )  # fmt: skip
        force.finished.clear()

    def due(self, done: int) -> bool:
        """Whether there is something the scheduler has to hear now."""
        if self.failed is not None:
            return True
        for number, order in enumerate(self._orders):
            if order.finished or order.prefilled or (not order.told and self._is_news(number, done)):
                return True
        force = self.force
        if force is None or force.first - 1 > done:
            return False
        last = force.last
        return self._through < last - self._lane.run_ahead <= done or self._through < last <= done

    def _is_news(self, number: int, done: int) -> bool:
        """Whether it is news by itself that the n-th order took effect.

        One with chunks runs its step first; one that another replaced at once is told of by that one's report.
        """
        order = self._orders[number]
        if order.told or order.step.chunks or not (order.step.leaves or not order.step.horizon):
            return False
        replaced = number + 1 < len(self._orders) and self._orders[number + 1].first == order.first
        return order.first - 1 <= done and not replaced

    def tell(self, done: int, launched: int) -> list[StepsDone | StepsFailed]:
        """What is done and was not told: of orders replaced since, then of the one in force, then a failure."""
        told: list[StepsDone | StepsFailed] = []
        while self._orders:
            order = self._orders[0]
            if order.first - 1 > done or (self.failed is not None and order.step.order == self.failed.order):
                break
            later = self._orders[1] if len(self._orders) > 1 else None
            through = done if later is None else min(done, later.first - 1)
            if through >= order.first and (through > self._through or order.finished or order.prefilled):
                told.append(self._tell_of(order, through, launched))
            elif self._is_news(0, done):
                told.append(self._tell_of(order, order.first - 1, launched))
            if later is None or later.first - 1 > done:
                break
            self._orders.popleft()
        if self.failed is not None:
            told.append(self.failed)
            self.failed = None
            self._orders.clear()
            self._through = done
        return told

    def _tell_of(self, order: InForce, through: int, launched: int) -> StepsDone:
        before = self._last_end or None  # when the step before its first ended
        ended = before if order.ended is None else order.ended
        event = StepsDone(
            self._lane.id, order.step.order, order.first, through, tuple(order.finished), tuple(order.prefilled),
            order.seconds, launched, ended,
        )  # fmt: skip
        order.finished.clear()
        order.prefilled.clear()
        order.seconds = 0.0
        order.told = True
        self._through = max(self._through, through)
        return event
