"""Admission: prefill in order of arrival within a token budget, begun requests first (chunked prefill).

As vLLM's scheduler does (v1/core/sched/scheduler.py, ``schedule``): decode rows come first, begun prefills next,
and new requests while tokens, seats and blocks last; the first that does not fit blocks those behind it.
"""

from __future__ import annotations

from collections.abc import Iterator

from attrs import frozen

from ..request import Request
from ..views import LaneView
from .protocols import Take


@frozen
class ArrivalOrder:
    """First come, first served, with a token budget per step.

    ``token_budget`` bounds prefill and decode tokens of one rank's step (default: the lane's ``max_tokens``).
    ``by_priority`` lets larger ``Request.priority`` go first. ``seats`` counts requests whose prefill has begun
    against the lane's ``max_members``; a policy that pools them does not.
    """

    token_budget: int | None = None
    by_priority: bool = False
    seats: bool = True

    def rank(self, request: Request) -> float:
        return -float(request.priority) if self.by_priority else 0.0

    def admit(self, view: LaneView) -> Iterator[Take]:
        """O(requests taken + ranks)."""
        prefilling = view.prefilling
        if not prefilling and not len(view.queue):
            return
        lane, ranks = view.lane, view.ranks
        budget = min(self.token_budget or lane.max_tokens, lane.max_tokens)
        tokens = [budget - len(rank.batch) for rank in ranks]
        free = [rank.free for rank in ranks]
        seats = [lane.max_members - len(rank.batch) - rank.waiting for rank in ranks]
        for begun in prefilling:
            take = min(begun.remaining, tokens[begun.rank])
            if take > 0:
                tokens[begun.rank] -= take
                yield Take(begun.request, take, begun.rank)
        if self.seats and view.role.decodes and len(view.pool):
            return  # who was preempted with its KV goes on before anybody new begins
        share = even_share(view, len(view.queue)) if view.role.decodes else len(view.queue)
        for waiting in view.queue:
            if share <= 0:
                return
            if not view.eligible(waiting.request):
                continue
            open_ranks = [r for r in range(len(tokens)) if tokens[r] > 0 and (seats[r] > 0 or not self.seats)]
            if not open_ranks:
                return
            need = view.layout.blocks(waiting.prefill_tokens + 1)
            rank = open_ranks[0] if len(open_ranks) == 1 else max(open_ranks, key=lambda r: (seats[r], free[r], -r))
            if need > free[rank]:
                return
            take = min(waiting.prefill_tokens, tokens[rank])
            tokens[rank] -= take
            free[rank] -= need
            seats[rank] -= 1
            share -= 1
            yield Take(waiting.request.id, take, rank)


def even_share(view: LaneView, waiting: int) -> int:
    """How many of ``waiting`` requests this lane takes if every lane that decodes ends with an even load. O(lanes)."""
    loads = view.loads
    target = -(-(sum(loads.values()) + waiting) // max(1, len(loads)))
    return max(0, target - loads.get(view.lane.id, 0))
