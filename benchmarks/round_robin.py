"""Requests go to the ranks of a lane in turn: the placement that lanes in lockstep are compared with.

Everything else is `fcfs`. As data-parallel routers do without a look at loads; whoever's rank is full waits, and
everybody behind it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from attrs import frozen

from alignedsched.policies import ArrivalOrder, Policy
from alignedsched.policies.fcfs import WATERMARK, ContinuousBatching
from alignedsched.policies.protocols import Evict, Transfer
from alignedsched.request import RequestId
from alignedsched.views import LaneView, RankView


@frozen
class InTurn(ContinuousBatching):
    """Joins in order of arrival, each on the rank of its turn."""

    def _from_pool(self, view: LaneView, ranks: Sequence[RankView], seats: int) -> Iterator[RequestId]:
        free = [rank.free - max(len(rank.batch), int(WATERMARK * rank.capacity)) for rank in ranks]
        left = [view.lane.max_members - len(rank.batch) for rank in ranks]
        for request in view.joining:
            left[view.entry(request).order % len(ranks)] -= 1
        for request in view.pool.by_order():
            rank = view.entry(request).order % len(ranks)
            need = view.layout.blocks(view.pool.length(request))
            if need > free[rank] or left[rank] < 1:
                return
            free[rank] -= need
            left[rank] -= 1
            yield request


@frozen
class InTurnResidency:
    """Joining requests to the rank of their turn."""

    def place(self, view: LaneView) -> Iterator[Transfer | Evict]:
        ranks = view.ranks
        for request in view.joining:
            entry = view.entry(request)
            tier = ranks[entry.order % len(ranks)].tier
            if tier not in entry.tiers and not view.flying(request):
                yield Transfer(request, tier, why="its turn")


def round_robin() -> Policy:
    """`fcfs` with ranks taken in turn; for lanes whose KV comes from other devices."""
    return Policy("round_robin", ArrivalOrder(), InTurn(), InTurnResidency())
