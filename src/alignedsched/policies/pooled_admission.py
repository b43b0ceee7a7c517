"""Admission for policies that pool: prefill in order of arrival, but never into the room that decoding needs.

Seats do not bound what is prefilled, for prefilled requests wait in the pool. Room does. On a device that decodes, a
new request begins only if then still free are: room for growth, and, where the pool can be kept in host memory, what
the running batch lacks of its share, so that joining requests find blocks. A lane with nothing else to do takes any
request that fits. On a device that only prefills, its own room is the limit: what the host cannot take stays there,
and admission stops by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from attrs import field, frozen

from ..cluster import HOST
from ..narrator import Reason
from ..queue import Waiting
from ..request import Request
from ..views import LaneView, RankView
from .lane_share import gives_way
from .options import flag, number, whole
from .protocols import Take


@frozen
class PooledOrder:
    """First come, first served, with a token budget per step, as long as decoding keeps its room.

    ``batch_share`` and ``growth_share`` are shares of a device's blocks: of the running batch, and for growth.
    ``pool_batches`` stops prefill on lanes that also decode while the pool holds that many full batches for each lane
    (``None``: no such bound): a deeper pool aligns better, but its KV has to be carried to the host and back.
    """

    token_budget: int | None = field(default=None, validator=whole(1, none=True))
    by_priority: bool = field(default=False, validator=flag())
    batch_share: float = field(default=0.4, validator=number(0.0, 1.0))
    growth_share: float = field(default=0.1, validator=number(0.0, 1.0))
    pool_batches: float | None = field(default=8.0, validator=number(0.0, none=True))

    def rank(self, request: Request) -> float:
        return -float(request.priority) if self.by_priority else 0.0

    def admit(self, view: LaneView) -> Iterator[Take]:
        """O(requests taken · ranks)."""
        lane, ranks = view.lane, view.ranks
        budget = min(self.token_budget or lane.max_tokens, lane.max_tokens)
        tokens = [budget - len(rank.batch) for rank in ranks]
        begun = view.prefilling
        for prefill in begun:
            take = min(prefill.remaining, tokens[prefill.rank])
            if take > 0:
                tokens[prefill.rank] -= take
                yield Take(prefill.request, take, prefill.rank)
        if view.role.decodes and self._deep(view, ranks):
            return
        busy = bool(begun or len(view.pool) or view.joining or view.candidates or view.expected)
        free = [rank.free - self._reserve(view, rank, busy) for rank in ranks]
        for waiting in view.queue:
            if not view.eligible(waiting.request):
                continue
            if max(tokens) <= 0:
                return
            need = view.layout.blocks(waiting.prefill_tokens + 1)
            rank = max(range(len(tokens)), key=lambda r: (tokens[r] > 0, free[r], -r))
            if need > free[rank]:
                return
            take = min(waiting.prefill_tokens, tokens[rank])
            tokens[rank] -= take
            free[rank] -= need
            if view.role.decodes and not busy:
                busy = True  # the first request of an idle lane may take all there is, those behind it may not
                free = [left - self._reserve(view, r, True) for left, r in zip(free, ranks, strict=True)]
            yield Take(waiting.request.id, take, rank)

    def held_back(self, view: LaneView, first: Waiting, ordered: int) -> Reason | None:
        """Why the first that still queues did not begin, after so many prefill tokens were ordered; see HoldsBack."""
        lane, ranks = view.lane, view.ranks
        if view.role.decodes and self._deep(view, ranks):
            return Reason(
                f"requests fill the pool to its bound of {self.pool_batches:g} batches a lane", len(view.pool)
            )
        budget = min(self.token_budget or lane.max_tokens, lane.max_tokens)
        if ordered >= sum(budget - len(rank.batch) for rank in ranks):
            return Reason(f"all {budget:,} tokens of a step of {lane.id} were taken")
        busy = bool(view.prefilling or len(view.pool) or view.joining or view.candidates or view.expected)
        kept = {rank.tier: self._reserve(view, rank, busy) for rank in ranks}
        roomiest = max(ranks, key=lambda rank: rank.free - kept[rank.tier])
        tier = roomiest.tier
        short = view.layout.blocks(first.prefill_tokens + 1) - (roomiest.free - kept[tier])
        if short <= 0:
            return None
        return Reason(f"blocks short on {tier}{' beside what its batch is to have' if kept[tier] else ''}", short)

    def _deep(self, view: LaneView, ranks: Sequence[RankView]) -> bool:
        if self.pool_batches is None:
            return False
        blocks = sum(rank.capacity for rank in ranks) * self.batch_share * max(1, len(view.loads))
        return view.pool.class_blocks(0, 0) > self.pool_batches * blocks and gives_way(view)

    def _reserve(self, view: LaneView, rank: RankView, busy: bool) -> int:
        """Blocks that a new prefill must leave free: none on an idle lane, so that whatever fits can run."""
        if not view.role.decodes or not (busy or len(rank.batch)):
            return 0
        growth = int(self.growth_share * rank.capacity)
        if HOST not in view.cluster.tiers:
            return growth
        return growth + max(0, int(self.batch_share * rank.capacity) - rank.batch.blocks)
