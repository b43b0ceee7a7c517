"""Admission of ``cost_aligned``: by arrival, or, while sorted waves are on, in the order of the wave.

While requests are grouped, those that sit out their turn count as residents: they keep their seats, and everybody is
left some room to grow, so that grouping causes no preemptions that plain batching would not have had.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Protocol

from attrs import field, frozen

from ..narrator import Reason
from ..queue import Waiting
from ..request import Request
from ..views import LaneView
from .aligned_memory import Memory
from .order import ByArrival, OrderedAdmission
from .prefill_lead import PrefillLead
from .protocols import Take
from .rank_balance import RankOrder


class Grouping(Protocol):
    """What admission has to know of the batching it serves."""

    memory: Memory

    def grows(self, view: LaneView) -> int: ...
    def sitting_out(self, view: LaneView) -> int: ...


@frozen
class WaveAdmission(OrderedAdmission):
    """As ArrivalOrder but for the order and the room; ``placed`` takes over on lanes of several ranks."""

    batching: Grouping = field(kw_only=True)
    placed: RankOrder = field(kw_only=True)
    lead: PrefillLead = field(factory=PrefillLead, kw_only=True)

    def rank(self, request: Request) -> float:
        """The order's key; by arrival, ``by_priority`` counts."""
        return (
            super(OrderedAdmission, self).rank(request) if isinstance(self.order, ByArrival) else super().rank(request)
        )

    def admit(self, view: LaneView) -> Iterator[Take]:
        """See Admission. O(requests taken + ranks), and in a wave O(requests of it that have gone)."""
        return self.placed.admit(view) if len(view.ranks) > 1 else super().admit(view)

    def _grouped(self, view: LaneView) -> bool:
        memory = self.batching.memory
        lane = memory.lane(view.lane.id)
        return memory.backlog("queue").wave is not None or lane.turn is not None or lane.cramped

    def _in_turn(self, view: LaneView) -> Iterable[Waiting]:
        backlog, queue = self.batching.memory.backlog("queue"), view.queue
        if backlog.wave is not None:
            return backlog.wave.in_turn(view)
        again = queue.again() if backlog.overtook else ()
        if not again:
            return queue
        # Who was preempted and had begun before its time would start over behind all that it overtook.
        return chain(map(queue.get, again), (waiting for waiting in queue if waiting.request.id not in again))

    def _budget(self, view: LaneView) -> int:
        """In rounds everybody decodes in one of several steps only, so each step brings only that share of prefill.

        Else prefill would overtake decoding: more and more would be begun, and finish later.
        """
        budget, turn = super()._budget(view), self.batching.memory.lane(view.lane.id).turn
        if turn is None:
            return budget
        rows = len(view.ranks[0].batch)
        return rows + max(0, budget - rows) // turn.groups

    def _free(self, view: LaneView) -> list[int]:
        free = super()._free(view)
        if not view.role.decodes:
            lead = self.lead.blocks(view)
            return free if lead is None else [min(left, lead) for left in free]
        if not self._grouped(view):
            return free
        out, each = self.batching.sitting_out(view), self.batching.grows(view)
        residents = (len(rank.batch) + rank.waiting + out for rank in view.ranks)
        return [left - each * count for left, count in zip(free, residents, strict=True)]

    def held_back(self, view: LaneView, first: Waiting, ordered: int) -> Reason | None:
        """As ArrivalOrder, but a bound on prefill is named."""
        lead = self.lead.blocks(view) if len(view.ranks) == 1 else None
        if lead is not None and lead < view.layout.blocks(first.prefill_tokens + 1):
            return Reason(
                "prefill stays just ahead of decode, for tokens to come fast; requests ahead", len(view.resident)
            )
        return super().held_back(view, first, ordered)

    def _seats(self, view: LaneView) -> list[int]:
        return [left - self.batching.sitting_out(view) for left in super()._seats(view)]

    def _gives_way(self, view: LaneView) -> bool:
        return not self._grouped(view) and super()._gives_way(view)
