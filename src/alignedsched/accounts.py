"""The accounts: where every live request is and where its KV lies; the one owner of the scheduler's state.

Queue, pool, ledger, copies and lanes are kept in step here. Each method is one indivisible move; it changes several
structures so that no invariant is ever broken between two of them. What the executor has to be told is written into
the outbox as it happens. Nothing here knows of policies.
"""

from __future__ import annotations

from collections.abc import Callable

from .batch import RunningBatch
from .cluster import Cluster
from .lane_book import LaneBook, Outbox
from .lanes import LaneState
from .ledger import Ledger
from .live import Flight, Live
from .narrator import Narrator
from .plan import Abort, Drop, Outcome, Release
from .pool import Pool
from .queue import Queue, Waiting
from .request import Request, RequestId
from .states import CopyState, RequestState

R = RequestState
_OUTGREW_DECODE = "its KV outgrew every device that decodes"


class Accounts:
    """All state of one scheduler but its policies."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.layout = cluster.layout
        self.now = 0.0
        self.queue = Queue()
        self.pool = Pool()
        self.ledger = Ledger(cluster)
        self.live: dict[RequestId, Live] = {}
        self.flights: dict[int, Flight] = {}
        self.quarantine: dict[int, Flight] = {}  # copies given up: what they may still write is used by nobody
        self.lanes: dict[str, LaneBook] = {
            lane.id: LaneBook(
                LaneState(lane, cluster.role(lane), tuple(RunningBatch(self.layout.block_size) for _ in lane.ranks)),
                lane.ranks,
            )
            for lane in cluster.lanes
        }
        self.deciders = tuple(book for book in self.lanes.values() if book.state.role.decodes)
        self.prefillers = tuple(book for book in self.lanes.values() if book.state.role.prefills)
        self.lane_of_device: dict[str, str] = {rank: lane.id for lane in cluster.lanes for rank in lane.ranks}
        self.resident: dict[str, dict[RequestId, None]] = {device.id: {} for device in cluster.devices}
        self.links: dict[tuple[str, str], float] = {key: link.bytes_per_s for key, link in cluster.link.items()}
        self.lost: dict[str, None] = {}  # devices
        self.out = Outbox()
        self.next_copy = 0
        self.arrivals = 0
        self.on_end: Callable[[Live], None] | None = None  # hears of every live request that ends
        self.counts: dict[str, int] = dict.fromkeys(
            (
                "arrived", "finished", "cancelled", "rejected", "failed", "preemptions",
                "ignored", "refused", "late_now", "overruled",
            ),
            0,
        )  # fmt: skip
        self.paused = False
        self.draining = False  # nothing that still queues begins
        self.raised = False  # the policy, in the last call
        self.idle_since: float | None = None  # nothing has run or been under way since then, though work waits
        self.narrator: Narrator | None = None
        self.rank_of: Callable[[Request], float] = lambda request: 0.0  # the admission policy's

    # -- looking

    @staticmethod
    def prefill_room(lane: LaneBook, target: int) -> int:
        """Tokens to make room for: where the lane decodes too, the first decode step as well."""
        return target + (1 if lane.state.role.decodes else 0)

    def resident_rank(self, live: Live, lane: LaneBook) -> int | None:
        """The rank of a lane whose device holds all of a request's KV, or None."""
        for rank, tier in enumerate(lane.tiers):
            if self.ledger.tokens(live.id, tier) >= live.stored > 0:
                return rank
        return None

    def fits(self, lane: LaneBook, prefill_tokens: int) -> bool:
        """Whether a lane could prefill so much if it were empty.

        With room for one token more, as admission policies ask for: what is accepted must also be taken some day.
        """
        need = self.layout.blocks(prefill_tokens + 1)
        return lane.state.role.prefills and need <= min(self.cluster.device[tier].kv_blocks for tier in lane.tiers)

    def room(self, lane: LaneBook) -> int:
        """Blocks that the roomiest device of a lane, as large as it is now, could hold if it were empty."""
        tiers, usable = lane.tiers, self.ledger.usable
        return usable(tiers[0]) if len(tiers) == 1 else max(map(usable, tiers))

    def could_hold(self, lane: LaneBook, context_length: int) -> bool:
        """Whether a device of a lane, as large as it is now, could hold so much if it were empty."""
        return self.layout.blocks(context_length) <= self.room(lane)

    def outgrown(self, context_length: int) -> bool:
        """Whether no device that decodes is or was configured large enough for so much. O(devices)."""
        need = self.layout.blocks(context_length)
        return not any(
            need <= max(self.cluster.device[tier].kv_blocks, self.ledger.capacity(tier))
            for lane in self.lanes.values()
            if lane.state.role.decodes
            for tier in lane.tiers
        )

    def shrink_growth(self, lane: LaneBook) -> None:
        """Charge a running batch no more than what its present members need for the steps ordered."""
        last = max(lane.state.last_possible, lane.state.reported)
        for tier, batch in zip(lane.tiers, lane.state.batches, strict=True):
            self.ledger.set_growth(tier, min(self.ledger.growth(tier), batch.blocks(last)))

    def whole_elsewhere(self, live: Live, tier: str) -> bool:
        """Whether a tier that is not staging, other than this one, holds all of a request's KV."""
        return any(
            other != tier and not self.cluster.tiers[other].staged and self.ledger.tokens(live.id, other) >= live.stored
            for other in self.ledger.extents(live.id)
        )

    def touch_deciders(self) -> None:
        """Something every deciding lane may care about changed in the pool."""
        for lane in self.deciders:
            lane.dirty = True

    def touch_prefillers(self) -> None:
        for lane in self.prefillers:
            lane.dirty = True

    def touch_device(self, tier: str) -> None:
        """Blocks came free in a tier: whoever steps there may go on; the host and staging matter to all."""
        lane = self.lane_of_device.get(tier)
        if lane is not None:
            self.lanes[lane].dirty = True
        else:
            for book in self.lanes.values():
                book.dirty = True

    # -- pool and claims

    def to_pool(self, live: Live) -> None:
        """A prefilled request that does not decode: back to the pool, or there for the first time.

        One that has outgrown every device that decodes would wait there for ever; it ends as failed.
        """
        self._unclaim(live)
        if self.outgrown(live.context_length):
            live.outcome, live.why, live.then = Outcome.FAILED, _OUTGREW_DECODE, R.ENDED
            live.to(R.ENDED, self.now)
            self.vacate(live)
            return
        live.to(R.POOLED, self.now)
        length, again = live.context_length, live.preemptions > 0
        self.pool.add(live.id, length, live.order, self.layout.blocks(length), again)
        for tier in self.ledger.extents(live.id):
            if tier in self.resident and self.ledger.tokens(live.id, tier):
                self.resident[tier][live.id] = None
                self.touch_device(tier)
        self.touch_deciders()

    def claim(self, live: Live, lane: LaneBook, state: RequestState) -> None:
        """A pooled request becomes a lane's candidate or joining request."""
        self.leave_pool(live, lane)
        live.to(state, self.now)
        live.lane = lane.id
        (lane.candidates if state is R.CANDIDATE else lane.joining)[live.id] = None

    def leave_pool(self, live: Live, by: LaneBook | None = None) -> None:
        """Take a request out of the pool or out of a lane's claims, whichever it is in; ``by`` is who took it.

        When the pool has become empty, lanes that let it go first may begin new requests.
        """
        if live.state is R.POOLED:
            self.pool.remove(live.id)
            if not len(self.pool) and len(self.queue):
                for lane in self.lanes.values():
                    lane.dirty = lane.dirty or (lane is not by and lane.state.role.prefills)
            for tier in self.ledger.extents(live.id):
                if tier in self.resident:
                    self.resident[tier].pop(live.id, None)
        self._unclaim(live)

    def unclaim(self, live: Live) -> None:
        """A candidate or joining request goes back to the pool; copies on its account are not wanted any more."""
        for copy in live.copies:
            self.abort(self.flights[copy])
        self.to_pool(live)

    def _unclaim(self, live: Live) -> None:
        if live.lane is not None:
            lane = self.lanes[live.lane]
            lane.candidates.pop(live.id, None)
            lane.joining.pop(live.id, None)
            lane.prefilling.pop(live.id, None)
            lane.expected.pop(live.id, None)
        live.lane = None

    # -- leaving for good

    def vacate(self, live: Live) -> None:
        """Give up all KV of a request; it goes on to its end or back to the queue when nothing touches it."""
        self.leave_pool(live)
        if live.state is not R.ENDED and live.state is not R.LEAVING:
            live.to(R.LEAVING, self.now)
        for copy in live.copies:
            self.abort(self.flights[copy])
        extents = tuple(self.ledger.extents(live.id).items())
        freed = [tier for tier, extent in extents if not extent.doomed and self.ledger.drop(live.id, tier)]
        if self.gone(live) and live.state is R.ENDED:
            for tier in freed:  # its release says it all
                self.touch_device(tier)
        else:
            for tier in freed:
                self.drop_freed(live, tier)

    def gone(self, live: Live) -> bool:
        """If a request on its way out has nothing left, end it or queue it again. True if so."""
        if self.ledger.extents(live.id) or live.copies or live.state not in (R.ENDED, R.LEAVING):
            return False
        if live.state is R.LEAVING and live.then is R.POOLED:
            return False
        del self.live[live.id]
        if live.state is R.ENDED:
            assert live.outcome is not None
            if self.on_end is not None:
                self.on_end(live)
            self.release(live.id, live.outcome, live.why)
        else:
            self.requeue(live)
        return True

    def requeue(self, live: Live) -> None:
        """Back to the queue, to be prefilled with all it has; in front of whoever came later."""
        live.to(R.QUEUED, self.now)
        self.counts["preemptions"] += 1
        if not any(self.fits(lane, live.request.prompt_tokens + live.produced) for lane in self.lanes.values()):
            self.release(live.id, Outcome.FAILED, "its KV outgrew every device that prefills")
            return
        decodes = live.tokens_left(self.cluster.max_positions) > 1
        if decodes and self.outgrown(live.request.prompt_tokens + live.produced + 1):
            self.release(live.id, Outcome.FAILED, _OUTGREW_DECODE)
            return
        waiting = Waiting(live.request, live.order, live.produced, live.preemptions + 1, self.now)
        self.queue.add(waiting, self.rank_of(live.request))
        self.touch_prefillers()

    def release(self, request: RequestId, outcome: Outcome, why: str) -> None:
        self.counts[outcome.value] += 1
        self.out.releases.append(Release(request, outcome, why))

    def drop(self, live: Live, tier: str) -> None:
        """Give up a request's KV in one tier."""
        if tier in self.resident:
            self.resident[tier].pop(live.id, None)
        if self.ledger.drop(live.id, tier):
            self.drop_freed(live, tier)

    def drop_freed(self, live: Live, tier: str) -> None:
        """Blocks of a request came free in a tier: tell the executor and whoever waits for room there."""
        self.out.drops.append(Drop(live.id, tier))
        self.touch_device(tier)

    def forget(self, live: Live, tier: str) -> None:
        """A tier's memory is gone, and the request's KV in it."""
        if tier in self.resident:
            self.resident[tier].pop(live.id, None)
        self.ledger.forget(live.id, tier)

    def abort(self, flight: Flight) -> None:
        """Nobody wants a copy any more; its completion is awaited all the same."""
        if flight.state is CopyState.FLYING:
            flight.state = CopyState.UNWANTED
            self.out.aborts.append(Abort(flight.copy))
