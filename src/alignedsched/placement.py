"""Placement: what the residency policy proposes becomes copies and drops, where that is legal and has room."""

from __future__ import annotations

from .asking import wishes
from .books import Books
from .cluster import HOST
from .lane_book import LaneBook
from .live import Live
from .policies.protocols import Evict, Policy, Transfer
from .scheduler_view import SchedulerView
from .states import RequestState

R = RequestState


class Placement:
    """Takes transfers and evictions for one lane at a time."""

    def __init__(self, books: Books, policy: Policy, views: dict[str, SchedulerView]) -> None:
        self._books = books
        self._policy = policy
        self._views = views

    def place(self, lane: LaneBook) -> None:
        books, view = self._books, self._views[lane.id]
        for proposal in wishes(self._policy, view):
            live = books.live.get(proposal.request)
            taken = live is not None and (
                self._transfer(lane, live, proposal) if isinstance(proposal, Transfer) else self._evict(live, proposal)
            )
            if not taken:
                books.counts["refused"] += 1

    def _transfer(self, lane: LaneBook, live: Live, wish: Transfer) -> bool:
        """Start a copy if it is legal now: at rest, wanted place, room, a route from a whole readable extent."""
        books = self._books
        tier = books.cluster.tiers.get(wish.target)
        at_rest = live.state in (R.POOLED, R.CANDIDATE, R.JOINING)
        ours = wish.target in lane.tiers
        if tier is None or not at_rest or live.copies or (ours and not self._may_come(lane, live)):
            return False
        if not ours and not tier.staged and wish.target != HOST:
            return False
        there = books.ledger.extents(live.id).get(wish.target)
        if there is not None and (there.doomed or there.pins or there.tokens >= live.stored):
            return False
        if books.ledger.missing(live.id, wish.target, live.stored) > books.ledger.free(wish.target):
            return False
        source = self._source(lane, live, wish.target)
        if source is None:
            return False
        keep = wish.keep or tier.staged
        books.start_copy(live, source, wish.target, keep, wish.deadline, wish.why)
        return True

    def _may_come(self, lane: LaneBook, live: Live) -> bool:
        """Whether KV may be copied to a lane's devices: of who joins, or a candidate that lies on another rank."""
        if live.lane != lane.id:
            return False
        return live.state is R.JOINING or self._books.resident_rank(live, lane) is not None

    def _source(self, lane: LaneBook, live: Live, target: str) -> str | None:
        """The tier to copy from: staged first, then devices, then the host; whole, readable, with a link that is up."""
        books = self._books
        best: tuple[int, str] | None = None
        for tier, extent in books.ledger.extents(live.id).items():
            if tier == target or extent.doomed or extent.tokens < live.stored:
                continue
            if self._views[lane.id].route(tier, target) is None:
                continue
            place = books.cluster.tiers[tier]
            rank = 0 if place.staged else 2 if tier == HOST else 1
            if best is None or (rank, tier) < best:
                best = (rank, tier)
        return None if best is None else best[1]

    def _evict(self, live: Live, wish: Evict) -> bool:
        books = self._books
        extent = books.ledger.extents(live.id).get(wish.tier)
        if extent is None or extent.pins or extent.growing or extent.doomed:
            return False
        if not books.cluster.tiers[wish.tier].staged and not books.whole_elsewhere(live, wish.tier):
            return False
        books.drop(live, wish.tier)
        return True
