"""``fcfs``: plain continuous batching, the baseline. Everything resident decodes; the newest makes room.

No knowledge of lengths, no reservation for tokens not yet made. As vLLM's scheduler (v1/core/sched/scheduler.py): a
prefilled request decodes at once; when the next step does not fit, the request that came last is preempted and
computed again later (``swap`` copies its KV to the host instead). With prefill and decode on separate devices KV
goes directly to a decode lane; lanes share what waits evenly.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from attrs import field, frozen

from ..request import RequestId
from ..views import LaneView, RankView
from .admission import ArrivalOrder
from .lane_share import EvenShare, fitting
from .options import flag, one_of
from .protocols import Composition, PlainData, Policy, Sacrifice
from .rank_balance import PLACES, RankOrder
from .residency import DirectResidency

WATERMARK = 0.01  # vLLM's block manager before its v1 engine (`watermark` of SchedulerConfig's time)

_NOTHING = Composition()


@frozen
class ContinuousBatching:
    """Everything that fits decodes, in order of arrival."""

    swap: bool = field(default=False, validator=flag())

    def compose(self, view: LaneView) -> Composition:
        """O(requests that join, and pooled ones before them that the lane cannot get or hold)."""
        expected = view.expected
        if not view.role.decodes or not (expected or len(view.pool)):
            return _NOTHING
        ranks = view.ranks
        seats = view.lane.max_members * len(ranks) - sum(len(r.batch) for r in ranks) - len(view.joining)
        joins: list[RequestId] = list(expected[: max(0, seats)])
        seats -= len(joins)
        if seats > 0 and len(view.pool):
            if view.role.prefills:
                joins += self.from_pool(view, ranks, seats, self._in_turn(view))
            else:
                joins += self._share_of_pool(view, ranks, seats)
        return Composition(joins=joins, why="everything that fits decodes") if joins else _NOTHING

    def _share_of_pool(self, view: LaneView, ranks: Sequence[RankView], seats: int) -> Iterator[RequestId]:
        """Those of the pool that join, as long as lanes get even loads."""
        share = EvenShare.of(view, len(view.pool))
        joining = self.from_pool(view, ranks, min(seats, share.most), self._in_turn(view))
        for taken, request in enumerate(joining):
            if taken >= share.need(view.pool.blocks(request)):
                return
            yield request

    def _in_turn(self, view: LaneView) -> Iterable[RequestId]:
        """Pooled requests in the order in which they join."""
        return view.pool.by_order()

    def from_pool(
        self, view: LaneView, ranks: Sequence[RankView], seats: int, in_turn: Iterable[RequestId], keeps: int = 0
    ) -> Iterator[RequestId]:
        """Those of ``in_turn`` that find a seat and room, up to the first that does not; not who is too large for now.

        At least ``keeps`` blocks stay free of what is copied in from elsewhere.
        """
        free = {rank.tier: rank.free for rank in ranks}
        # KV is only copied in where it can stay for a while: one block per member, or the share vLLM once kept free.
        headroom = max(max(len(r.batch), int(WATERMARK * r.capacity)) if len(r.batch) else 0 for r in ranks)
        headroom = max(headroom, keeps)
        blocks = view.layout.blocks
        for request in fitting(view, in_turn):
            if seats <= 0:
                return
            tiers = view.entry(request).tiers
            here = next((tier for tier in free if tier in tiers), None)
            if here is None and any(self._decodes(view, tier) for tier in tiers):
                continue  # another lane that decodes holds it
            length = view.pool.length(request)
            tier = here or max(free, key=lambda t: (free[t], t))
            need = blocks(length) - (blocks(length - 1) if here else 0)
            if need + (0 if here else headroom) > free[tier]:
                return
            free[tier] -= need
            seats -= 1
            yield request

    @staticmethod
    def _decodes(view: LaneView, tier: str) -> bool:
        device = view.cluster.device.get(tier)
        return device is not None and device.role.decodes

    def victims(self, view: LaneView, rank: int, blocks: int) -> Iterator[tuple[RequestId, Sacrifice]]:
        """Newest arrival first, also among those still in prefill or just prefilled. O(n log n)."""
        how = Sacrifice.PARK if self.swap else Sacrifice.RECOMPUTE
        holders = [(view.entry(member).order, member) for member in view.ranks[rank].batch]
        holders += [(begun.order, begun.request) for begun in view.prefilling if begun.rank == rank]
        if not self.swap:  # with it, pooled KV is on its way to the host, which costs less than computing it again
            tier, pooled = view.ranks[rank].tier, ((view.entry(request), request) for request in view.resident)
            holders += [(entry.order, request) for entry, request in pooled if tier in entry.tiers]
        return ((request, how) for _, request in sorted(holders, reverse=True))

    def taken(self, view: LaneView, composition: Composition) -> None:
        """Nothing to remember."""

    def state(self) -> PlainData:
        return None

    def load(self, state: PlainData) -> None:
        """Nothing to restore."""


def fcfs(
    *, swap: bool = False, token_budget: int | None = None, by_priority: bool = False, place: str = "seats"
) -> Policy:
    """Plain continuous batching as a whole policy.

    ``swap`` copies a preempted request's KV to the host instead of computing it again; ``token_budget`` bounds the
    tokens of a step (default: the lane's); ``by_priority`` orders the queue by ``Request.priority`` first. ``place``
    says which rank of a lane a request goes to: the one with most free ``seats``, or as ``RankOrder`` has it
    (``least``, ``round_robin``).
    """
    one_of(("seats", *PLACES))("fcfs", "place", place)
    residency = DirectResidency(to_host="short" if swap else "never")
    if place == "seats":
        admission = ArrivalOrder(token_budget=token_budget, by_priority=by_priority)
        return Policy("fcfs", admission, ContinuousBatching(swap=swap), residency)
    placed = RankOrder(token_budget, by_priority, place)
    return Policy("fcfs", placed, ContinuousBatching(swap=swap), residency, watches=(placed,))
