"""Requests go to the ranks of a lane in turn: the placement that lanes in lockstep are compared with.

Everything else is `fcfs`. As data-parallel routers do without a look at loads (SGLang's data-parallel controller): each
rank has a queue of its own, and whoever's rank is full waits, with those behind it there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from attrs import frozen

from alignedsched.policies import Policy
from alignedsched.policies.fcfs import WATERMARK, ContinuousBatching
from alignedsched.policies.protocols import Evict, Transfer
from alignedsched.policies.rank_balance import RankOrder
from alignedsched.request import RequestId
from alignedsched.views import LaneView, RankView


@frozen
class InTurn(ContinuousBatching):
    """Joins in order of arrival, each on the rank of its turn."""

    def from_pool(
        self, view: LaneView, ranks: Sequence[RankView], seats: int, in_turn: Iterable[RequestId], keeps: int = 0
    ) -> Iterator[RequestId]:
        """Those of each rank that find a seat and room there, up to the first that does not."""
        free = [rank.free - max(keeps, len(rank.batch), int(WATERMARK * rank.capacity)) for rank in ranks]
        left = [view.lane.max_members - len(rank.batch) for rank in ranks]
        for request in view.joining:
            left[turn_of(view, request)] -= 1
        full: set[int] = set()
        for request in in_turn:
            rank = turn_of(view, request)
            if rank in full:
                continue
            need = view.layout.blocks(view.pool.length(request))
            if need > free[rank] or left[rank] < 1:
                full.add(rank)
                if len(full) == len(ranks):
                    return
                continue
            free[rank] -= need
            left[rank] -= 1
            yield request


@frozen
class InTurnResidency:
    """Joining requests to the rank of their turn."""

    def place(self, view: LaneView) -> Iterator[Transfer | Evict]:
        for request in view.joining:
            tier = view.ranks[turn_of(view, request)].tier
            if tier not in view.entry(request).tiers and not view.flying(request):
                yield Transfer(request, tier, why="its turn")


def turn_of(view: LaneView, request: RequestId) -> int:
    """The rank whose turn a request is, by its arrival number."""
    return view.entry(request).order % len(view.ranks)


def round_robin() -> Policy:
    """`fcfs` with ranks taken in turn: where a request is prefilled, or, if that is elsewhere, where it joins."""
    placed = RankOrder(place="round_robin")
    return Policy("round_robin", placed, InTurn(), InTurnResidency(), watches=(placed,))
