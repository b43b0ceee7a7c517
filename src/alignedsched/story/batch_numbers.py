"""What a batch is called: ``LANE/ORDER``, after the order that last changed who decodes on the lane.

An order of a lane has a number, and joins and leaves are part of orders. So the batch of a lane between two orders
that change its membership has one name, the same in every replay. Members that finish leave by themselves, and the
batch keeps its name; an order that only renews the horizon does not change it either.
"""

from __future__ import annotations

from ..plan import Plan
from .sentences import name


class BatchNumbers:
    """Keeps, by lane, the number of the batch that its newest order stands for."""

    def __init__(self) -> None:
        self._orders: dict[str, int] = {}

    def take(self, plan: Plan) -> None:
        """Look at the orders of a plan."""
        for step in plan.steps:
            if step.joins or step.leaves:
                self._orders[step.lane] = step.order

    def order(self, lane: str) -> int | None:
        """The order that made the lane's present batch; None before the first."""
        return self._orders.get(lane)

    def of(self, lane: str) -> str:
        """The name of the lane's present batch."""
        return f"{name(lane)}/{self._orders.get(lane, '-')}"
