"""Admission: prefill in order of arrival within a token budget, begun requests first (chunked prefill).

As vLLM's scheduler does (v1/core/sched/scheduler.py, ``schedule``): decode rows come first, begun prefills next,
and new requests while tokens, seats and blocks last; the first that does not fit blocks those behind it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from attrs import field, frozen

from ..narrator import Reason
from ..queue import Waiting
from ..request import Request
from ..views import LaneView
from .lane_share import EvenShare, gives_way
from .options import flag, whole
from .protocols import Take


@frozen
class ArrivalOrder:
    """First come, first served, with a token budget per step.

    ``token_budget`` bounds prefill and decode tokens of one rank's step (default: the lane's ``max_tokens``).
    ``by_priority`` lets larger ``Request.priority`` go first. ``seats`` counts requests whose prefill has begun
    against the lane's ``max_members``; a policy that pools them does not.
    """

    token_budget: int | None = field(default=None, validator=whole(1, none=True))
    by_priority: bool = field(default=False, validator=flag())
    seats: bool = field(default=True, validator=flag())

    def rank(self, request: Request) -> float:
        return -float(request.priority) if self.by_priority else 0.0

    def admit(self, view: LaneView) -> Iterator[Take]:
        """O(requests taken + ranks)."""
        prefilling = view.prefilling
        if not prefilling and not len(view.queue):
            return
        ranks, budget = view.ranks, self._budget(view)
        tokens = [budget - len(rank.batch) for rank in ranks]
        free, seats = self._free(view), self._seats(view)
        for begun in prefilling:
            take = min(begun.remaining, tokens[begun.rank])
            if take > 0:
                tokens[begun.rank] -= take
                yield Take(begun.request, take, begun.rank)
        if self._gives_way(view):
            return
        share = EvenShare.of(view, len(view.queue)) if view.role.decodes else None
        begin = 0
        for waiting in self._in_turn(view):
            need = view.layout.blocks(waiting.prefill_tokens + 1)
            if share is not None and begin >= share.need(need):
                return
            if not view.eligible(waiting.request):
                continue
            open_ranks = [r for r in range(len(tokens)) if tokens[r] > 0 and (seats[r] > 0 or not self.seats)]
            if not open_ranks:
                return
            rank = open_ranks[0] if len(open_ranks) == 1 else max(open_ranks, key=lambda r: (seats[r], free[r], -r))
            if need > free[rank]:
                return
            take = min(waiting.prefill_tokens, tokens[rank])
            tokens[rank] -= take
            free[rank] -= need
            seats[rank] -= 1
            begin += 1
            yield Take(waiting.request.id, take, rank)

    def _in_turn(self, view: LaneView) -> Iterable[Waiting]:
        """Who waits, in the order in which to begin."""
        return view.queue

    def _budget(self, view: LaneView) -> int:
        """Tokens of one rank's step."""
        return min(self.token_budget or view.lane.max_tokens, view.lane.max_tokens)

    def _free(self, view: LaneView) -> list[int]:
        """Blocks that new requests may take on each rank."""
        return [rank.free for rank in view.ranks]

    def _seats(self, view: LaneView) -> list[int]:
        """Seats left on each rank."""
        return [view.lane.max_members - len(rank.batch) - rank.waiting for rank in view.ranks]

    def _gives_way(self, view: LaneView) -> bool:
        """Whether nobody new begins: who was preempted with its KV goes on before."""
        return self.seats and view.role.decodes and gives_way(view)

    def held_back(self, view: LaneView, first: Waiting, ordered: int) -> Reason | None:
        """Why the first that still queues did not begin, after so many prefill tokens were ordered; see HoldsBack."""
        lane, ranks = view.lane, view.ranks
        if self._gives_way(view):
            return Reason("pooled requests go on before anybody new begins", len(view.pool))
        if self.seats and max(self._seats(view)) <= 0:
            return Reason(f"all seats of {lane.id} were taken, {lane.max_members} a rank")
        free, roomiest = max((blocks, rank.tier) for blocks, rank in zip(self._free(view), ranks, strict=True))
        need = view.layout.blocks(first.prefill_tokens + 1)
        short = need - free
        if short > 0:
            return Reason(f"blocks short on {roomiest}", short)
        budget = self._budget(view)
        if ordered >= sum(budget - len(rank.batch) for rank in ranks):
            return Reason(f"all {budget:,} tokens of a step of {lane.id} were taken")
        if view.role.decodes and not EvenShare.of(view, len(view.queue)).need(need):
            return Reason(f"{lane.id} has its even share of the load already")
        return None
