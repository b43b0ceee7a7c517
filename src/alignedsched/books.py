"""The books: how requests begin, join a running batch, leave it and finish; moves over the accounts."""

from __future__ import annotations

from .flights import Flights
from .lane_book import LaneBook
from .live import Live
from .plan import Outcome
from .queue import Waiting
from .states import RequestState

R = RequestState


class Books(Flights):
    """The accounts, and how requests begin, join, leave and finish."""

    # -- prefill

    def begin(self, waiting: Waiting, lane: LaneBook, rank: int) -> Live:
        """A queued request begins its prefill: room for all of it is taken at once, so that nobody holds and waits."""
        live = Live.begin(waiting, lane.id, rank, self.now)
        self.queue.remove(live.id)
        self.live[live.id] = live
        self.ledger.reserve(live.id, lane.tiers[rank], self.prefill_room(lane, live.target))
        lane.prefilling[live.id] = None
        return live

    # -- membership

    def join(self, live: Live, lane: LaneBook, rank: int, order: int) -> None:
        """A request becomes a member: its extent grows from now on, and the batch is charged for it.

        One whose last chunk is still under way joins behind it: by then that chunk has given it one more token.
        """
        behind_chunk = live.state is R.PREFILLING
        live.context = live.target + 1 if behind_chunk else live.context_length
        live.allowance = live.tokens_left(self.cluster.max_positions) - (1 if behind_chunk else 0)
        if behind_chunk:
            self._unclaim(live)
        else:
            self.leave_pool(live, lane)
        live.to(R.RUNNING, self.now)
        live.lane, live.rank, live.join_order, live.base = lane.id, rank, order, None
        self.ledger.lend(live.id, lane.tiers[rank])
        self._add_member(live, lane, lane.state.earliest_first())
        self._count_kind(live, lane, 1)

    @staticmethod
    def _count_kind(live: Live, lane: LaneBook, change: int) -> None:
        kind = live.request.kind
        if kind is not None:
            lane.kinds[kind] = lane.kinds.get(kind, 0) + change
            if not lane.kinds[kind]:
                del lane.kinds[kind]

    @staticmethod
    def _add_member(live: Live, lane: LaneBook, first: int) -> None:
        lane.state.batches[live.rank].add(live.id, live.context - first, first + live.allowance - 1)

    def joined_at(self, live: Live, lane: LaneBook, first: int) -> None:
        """The order a request joined by took effect at step ``first``: its base is known now."""
        live.base = live.context - first
        batch = lane.state.batches[live.rank]
        if live.id in batch and batch.base(live.id) != live.base:
            batch.remove(live.id)
            self._add_member(live, lane, first)

    def depart(self, live: Live, lane: LaneBook, then: RequestState, exposed: int, order: int) -> None:
        """A member leaves. If steps that touch its KV may be under way it is fenced, else it has left at once."""
        state, tier = lane.state, lane.tiers[live.rank]
        base = state.batches[live.rank].remove(live.id)
        lane.going.pop(live.id, None)
        self._count_kind(live, lane, -1)
        readable = live.stored if live.base is None else live.base + state.reported
        self.ledger.settle(live.id, tier, readable, max(readable, base + exposed))
        live.then, live.leave_order = then, order
        if live.state is not R.ENDED:
            live.to(R.LEAVING, self.now)
        if exposed > state.reported:
            self.ledger.pin(live.id, tier)
            lane.fences[live.id] = (exposed, order)
        else:
            self.settle_member(live, lane, state.reported)

    def finish(self, live: Live, lane: LaneBook, step: int, exposed: int) -> None:
        """A request made its last token in ``step``: it leaves by itself; what ran beyond is charged and ignored."""
        if live.outcome is None:
            live.outcome = Outcome.FINISHED
        if live.base is not None:
            live.produced += live.base + step - live.stored
            live.stored = live.base + step
            live.base = None  # nothing beyond counts
        if live.state is not R.ENDED:
            if live.state is not R.RUNNING:
                self.leave_pool(live)
            live.to(R.ENDED, self.now)
        live.then = R.ENDED
        if live.id in lane.state.batches[live.rank]:
            self.depart(live, lane, R.ENDED, exposed, lane.state.next_order)
        elif live.id not in lane.fences:
            self.vacate(live)

    def recompute(self, live: Live) -> None:
        """Send a request back to the queue as soon as nothing touches its KV; a member leaves with the next order."""
        live.then = R.QUEUED
        if live.state is R.RUNNING:
            lane = self.lanes[live.lane or ""]
            lane.going[live.id] = R.QUEUED
            lane.dirty = True
        elif live.state is not R.LEAVING:
            self.vacate(live)

    def back_to_prefill(self, live: Live, lane: LaneBook) -> None:
        """A member whose last chunk failed before it could decode: its prefill goes on."""
        lane.state.batches[live.rank].remove(live.id)
        self._count_kind(live, lane, -1)
        live.then = lane.going.pop(live.id, live.then)
        self.ledger.settle(live.id, lane.tiers[live.rank], live.stored, self.prefill_room(lane, live.target))
        if live.state is R.ENDED or live.then is R.QUEUED:
            live.lane = None
            self.vacate(live)
            return
        live.to(R.PREFILLING, self.now)
        lane.prefilling[live.id] = None

    def settle_member(self, live: Live, lane: LaneBook, last: int) -> None:
        """A departed member made its last step ``last``: nothing touches its KV any more."""
        if live.base is not None:
            live.produced += live.base + last - live.stored
            live.stored = live.base + last
            live.base = None
        tier = lane.tiers[live.rank]
        live.lane = None
        if live.then is R.POOLED and live.stored < live.target:
            live.then = R.QUEUED  # its last chunk never ran: there is nothing whole to pool
        if live.then is R.POOLED and live.state is not R.ENDED:
            self.ledger.commit(live.id, tier, live.stored)
            self.ledger.trim(live.id, tier, live.stored)
            self.to_pool(live)
            self.touch_device(tier)
        else:
            self.vacate(live)

    def unfence(self, live: Live, lane: LaneBook, last: int) -> None:
        """No step that is still to come touches a departed member; it last decoded in step ``last``."""
        del lane.fences[live.id]
        tier = lane.tiers[live.rank]
        if self.ledger.unpin(live.id, tier):
            self.drop_freed(live, tier)
        self.settle_member(live, lane, last)
