"""Room: who gives up blocks when the next step of a lane does not fit, and when nothing else can go on.

Every preemption raises usable capacity or does not happen: nobody is sacrificed while enough is already coming free,
and a lone member never makes room for itself.
"""

from __future__ import annotations

from .asking import victims
from .books import Books
from .cluster import HOST
from .lane_book import LaneBook
from .live import Live
from .narrator import Rule
from .plan import Outcome
from .policies.protocols import Policy, Sacrifice
from .request import RequestId
from .scheduler_view import SchedulerView
from .states import CopyState, RequestState

R = RequestState


class Room:
    """Makes room on one lane at a time."""

    def __init__(self, books: Books, policy: Policy, views: dict[str, SchedulerView]) -> None:
        self._books = books
        self._policy = policy
        self._views = views

    def make_room(self, lane: LaneBook, latest: int, leaves: list[RequestId]) -> bool:
        """Members make room until the next step of the others fits. True if it still does not (frees are awaited)."""
        books = self._books
        stuck = False
        for rank, tier in enumerate(lane.tiers):
            if books.ledger.free(tier) >= 0:
                continue
            offered = iter(self._victims(lane, rank))
            parked = 0  # their blocks come free when residency has copied them out
            while books.ledger.free(tier) + self._coming(lane, tier) + parked < 0:
                named = next(offered, None)
                chosen = named or self._fallback_victim(lane, rank)
                if chosen is None:
                    break
                self._tell(Rule.VICTIM if named else Rule.NEWEST, lane, chosen[0], -books.ledger.free(tier))
                if named and len(lane.state.batches[rank]) == 1 and named[0] in lane.state.batches[rank]:
                    continue  # a lone member makes no room for itself, unless nothing else can
                self._sacrifice(lane, rank, *chosen, latest, leaves)
                books.ledger.set_growth(tier, lane.state.batches[rank].blocks(latest))
                if chosen[0] in books.pool:
                    extent = books.ledger.extents(chosen[0]).get(tier)
                    parked += extent.blocks if extent is not None else 0
            if books.ledger.free(tier) < 0:
                stuck = True
                self._tell(Rule.NO_ROOM, lane, "", -books.ledger.free(tier))
        return stuck

    def _tell(self, rule: Rule, lane: LaneBook, request: RequestId, figure: int) -> None:
        if self._books.narrator is not None:
            self._books.narrator.note(rule, lane.id, request, figure)

    def _victims(self, lane: LaneBook, rank: int) -> list[tuple[RequestId, Sacrifice]]:
        """Whom the policy gives up first. A lone member cannot make room for itself, so nobody is asked then."""
        if len(lane.state.batches[rank]) < 2 and not lane.prefilling:
            return []
        short = -self._books.ledger.free(lane.tiers[rank])
        return victims(self._policy, self._views[lane.id], rank, short)

    def _fallback_victim(self, lane: LaneBook, rank: int) -> tuple[RequestId, Sacrifice] | None:
        """Beyond the policy's victims: the newest that holds KV here without running, then the newest member."""
        books, tier, batch = self._books, lane.tiers[rank], lane.state.batches[rank]
        idle = (*books.resident.get(tier, {}), *lane.prefilling, *lane.joining, *lane.candidates)
        choice = [r for r in idle if self._yields(books.live[r], tier)] or (list(batch) if len(batch) > 1 else [])
        if choice:
            return max(choice, key=lambda request: books.live[request].order), Sacrifice.RECOMPUTE
        if len(batch) == 1 and not self._outstanding(lane):
            live = books.live[next(iter(batch))]
            if books.outgrown(batch.base(live.id) + lane.state.latest_first()):
                live.outcome, live.why = Outcome.FAILED, f"its KV outgrew {tier}"
            return live.id, Sacrifice.RECOMPUTE  # else it waits, in the queue, for the room there was once
        return None

    def _sacrifice(
        self, lane: LaneBook, rank: int, request: RequestId, how: Sacrifice, latest: int, leaves: list[RequestId]
    ) -> None:
        books = self._books
        live = books.live.get(request)
        if live is None or live.state in (R.LEAVING, R.ENDED):
            return
        if live.state is not R.RUNNING:
            if self._yields(live, lane.tiers[rank]):
                books.recompute(live)
            return
        batch = lane.state.batches[rank]
        if request not in batch:
            return
        if how is Sacrifice.PARK and not self._can_park(lane, live):
            how = Sacrifice.RECOMPUTE
        then = R.POOLED if how is Sacrifice.PARK else R.QUEUED
        if live.outcome is not None:
            then = R.ENDED
            live.to(R.ENDED, books.now)
        leaves.append(live.id)
        books.depart(live, lane, then, latest - 1, lane.state.next_order)

    def _yields(self, live: Live, tier: str) -> bool:
        """Whether giving up a request that does not run raises what is free, or coming free, in a tier."""
        extent = self._books.ledger.extents(live.id).get(tier)
        if extent is None or extent.doomed or not extent.blocks:
            return False
        flights = (self._books.flights[copy] for copy in live.copies)
        return not any(f.source == tier and not f.keep and f.state is CopyState.FLYING for f in flights)

    def _can_park(self, lane: LaneBook, live: Live) -> bool:
        books = self._books
        if HOST not in books.cluster.tiers:
            return False
        blocks = books.layout.blocks(live.context_length)
        return self._views[lane.id].route(lane.tiers[live.rank], HOST) is not None and books.ledger.free(HOST) >= blocks

    def _coming(self, lane: LaneBook, tier: str) -> int:
        """Blocks of a device that come free when what is under way has ended. O(fences and copies)."""
        books = self._books
        coming = books.ledger.doomed(tier)
        for request in lane.fences:
            live = books.live[request]
            extent = books.ledger.extents(request).get(tier)
            if extent is not None and not extent.doomed and (live.then is not R.POOLED or self._can_park(lane, live)):
                coming += extent.blocks
        for flight in books.flights.values():
            live = books.live[flight.request]
            if flight.source == tier and not flight.keep and live.id not in lane.fences:
                extent = books.ledger.extents(flight.request).get(tier)
                movable = extent is not None and not (extent.growing or extent.doomed)
                if extent is not None and movable and flight.state is CopyState.FLYING:
                    coming += extent.blocks
        return coming

    def _outstanding(self, lane: LaneBook) -> bool:
        """Whether something under way will call for this lane again."""
        return bool(lane.fences or lane.state.chunk_orders()) or any(
            flight.source in lane.tiers or flight.target in lane.tiers for flight in self._books.flights.values()
        )

    def last_resort(self, lane: LaneBook) -> None:
        """Nothing runs, nothing is under way, yet KV sits here that cannot go on: the newest of it starts over."""
        books = self._books
        queued = len(books.queue) > 0 and lane.state.role.prefills and not books.draining
        if not lane.state.role.decodes:
            return  # what waits there for a place to decode is not helped by making it again
        if not (lane.joining or lane.candidates or lane.prefilling or queued or len(books.pool)):
            return
        held = [
            books.live[r]
            for r in (*lane.joining, *lane.candidates)
            if books.resident_rank(books.live[r], lane) is not None
        ]
        held += [books.live[r] for tier in lane.tiers for r in books.resident.get(tier, {})]
        if not held:
            return
        newest = max(held, key=lambda live: live.order)
        first = next(books.pool.by_order(), None)
        overtaken = first is not None and books.live[first].order < newest.order  # it sits where an older one has to go
        rank = books.resident_rank(newest, lane)
        tiers = lane.tiers if rank is None else (lane.tiers[rank],)
        fits = books.layout.blocks(newest.context_length) <= max(map(books.ledger.capacity, tiers))
        if len(held) > 1 or lane.prefilling or lane.joining or overtaken or not fits:
            self._tell(Rule.STARTS_OVER, lane, newest.id, len(held))
            books.recompute(newest)
            lane.dirty = True
