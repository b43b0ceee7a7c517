"""The books: every live request, and the moves that keep queue, pool, batches, ledger and copies in step.

Each method is one indivisible move; it changes several structures so that no invariant is ever broken between two of
them. What the executor has to be told is written into the outbox as it happens. The books know nothing of policies.
"""

from __future__ import annotations

from collections.abc import Callable

from attrs import define, field

from .batch import RunningBatch
from .cluster import Cluster
from .lanes import LaneState
from .ledger import Ledger
from .live import Flight, Live
from .plan import Abort, Copy, Drop, Outcome, Plan, Release, Step
from .pool import Pool
from .queue import Queue, Waiting
from .request import Request, RequestId
from .states import CopyState, RequestState

R = RequestState
_NOTHING = Plan()
_OUTGREW_DECODE = "its KV outgrew every device that decodes"


@define
class Outbox:
    """Instructions on their way out; kept for the next plan if a call ends in an error."""

    steps: list[Step] = field(factory=list)
    copies: list[Copy] = field(factory=list)
    aborts: list[Abort] = field(factory=list)
    drops: list[Drop] = field(factory=list)
    releases: list[Release] = field(factory=list)

    def plan(self, wake_at: float | None) -> Plan:
        """Everything in it as a plan; the box is empty afterwards."""
        if not (self.steps or self.copies or self.aborts or self.drops or self.releases):
            return _NOTHING if wake_at is None else Plan(wake_at=wake_at)
        plan = Plan(
            tuple(self.steps), tuple(self.copies), tuple(self.aborts), tuple(self.drops), tuple(self.releases), wake_at
        )
        for box in (self.steps, self.copies, self.aborts, self.drops, self.releases):
            box.clear()
        return plan


@define(eq=False)
class LaneBook:
    """What the core keeps per lane beside its orders."""

    state: LaneState
    tiers: tuple[str, ...]  # of the ranks
    prefilling: dict[RequestId, None] = field(factory=dict)  # begun, not all ordered
    expected: dict[RequestId, None] = field(factory=dict)  # last chunk ordered, not reported
    candidates: dict[RequestId, None] = field(factory=dict)
    joining: dict[RequestId, None] = field(factory=dict)
    going: dict[RequestId, RequestState] = field(factory=dict)  # members to leave in the next order, and whereto
    fences: dict[RequestId, tuple[int, int]] = field(factory=dict)  # (step, order) that end what may touch its KV
    kinds: dict[str, int] = field(factory=dict)  # members by kind, where kinds are limited
    dirty: bool = True
    renew: bool = False
    relieved: bool = False  # members made room in this very call
    wake_at: float | None = None

    @property
    def id(self) -> str:
        return self.state.lane.id


class Books:
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
        self.lanes: dict[str, LaneBook] = {
            lane.id: LaneBook(
                LaneState(lane, cluster.role(lane), tuple(RunningBatch(self.layout.block_size) for _ in lane.ranks)),
                lane.ranks,
            )
            for lane in cluster.lanes
        }
        self.lane_of_device: dict[str, str] = {rank: lane.id for lane in cluster.lanes for rank in lane.ranks}
        self.resident: dict[str, dict[RequestId, None]] = {device.id: {} for device in cluster.devices}
        self.links: dict[tuple[str, str], float] = {key: link.bytes_per_s for key, link in cluster.link.items()}
        self.lost: dict[str, None] = {}  # devices
        self.out = Outbox()
        self.next_copy = 0
        self.arrivals = 0
        self.counts: dict[str, int] = dict.fromkeys(
            ("arrived", "finished", "cancelled", "rejected", "failed", "preemptions", "ignored", "refused", "late_now"), 0
        )
        self.rank_of: Callable[[Request], float] = lambda request: 0.0  # the admission policy's

    # -- looking

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

    def could_hold(self, lane: LaneBook, context_length: int) -> bool:
        """Whether a device of a lane, as large as it is now, could hold so much if it were empty."""
        return self.layout.blocks(context_length) <= max(self.ledger.capacity(tier) for tier in lane.tiers)

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
        for lane in self.lanes.values():
            if lane.state.role.decodes:
                lane.dirty = True

    def touch_prefillers(self) -> None:
        for lane in self.lanes.values():
            if lane.state.role.prefills:
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
        self.pool.add(live.id, live.context_length, live.order, self.layout.blocks(live.context_length))
        for tier in self.ledger.extents(live.id):
            if tier in self.resident and self.ledger.tokens(live.id, tier):
                self.resident[tier][live.id] = None
                self.touch_device(tier)
        self.touch_deciders()

    def claim(self, live: Live, lane: LaneBook, state: RequestState) -> None:
        """A pooled request becomes a lane's candidate or joining request."""
        self.leave_pool(live)
        live.to(state, self.now)
        live.lane = lane.id
        (lane.candidates if state is R.CANDIDATE else lane.joining)[live.id] = None

    def leave_pool(self, live: Live) -> None:
        """Take a request out of the pool or out of a lane's claims, whichever it is in."""
        if live.state is R.POOLED:
            self.pool.remove(live.id)
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

    # -- prefill

    def begin(self, waiting: Waiting, lane: LaneBook, rank: int) -> Live:
        """A queued request begins its prefill: room for all of it is taken at once, so that nobody holds and waits."""
        live = Live.begin(waiting, lane.id, rank, self.now)
        self.queue.pop(live.id)
        self.live[live.id] = live
        self.ledger.reserve(live.id, lane.tiers[rank], self.prefill_room(lane, live.target))
        lane.prefilling[live.id] = None
        return live

    @staticmethod
    def prefill_room(lane: LaneBook, target: int) -> int:
        """Tokens to make room for: where the lane decodes too, the first decode step as well."""
        return target + (1 if lane.state.role.decodes else 0)

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
            self.leave_pool(live)
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
        if live.tokens_left(self.cluster.max_positions) > 1 and self.outgrown(live.request.prompt_tokens + live.produced + 1):
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

    # -- copies

    def start_copy(self, live: Live, source: str, target: str, keep: bool, deadline: float | None, why: str) -> None:
        """Reserve the target and send KV on its way; both ends stay pinned until the one completion."""
        start = self.ledger.tokens(live.id, target)
        self.ledger.reserve(live.id, target, live.stored)
        self.ledger.pin(live.id, source)
        self.ledger.pin(live.id, target)
        flight = Flight(self.next_copy, live.id, source, target, start, live.stored, keep)
        self.next_copy += 1
        self.flights[flight.copy] = flight
        live.copies[flight.copy] = None
        self.out.copies.append(Copy(flight.copy, live.id, source, target, start, flight.end, deadline, why))

    def abort(self, flight: Flight) -> None:
        """Nobody wants a copy any more; its completion is awaited all the same."""
        if flight.state is CopyState.FLYING:
            flight.state = CopyState.UNWANTED
            self.out.aborts.append(Abort(flight.copy))

    def end_copy(self, flight: Flight, arrived: bool) -> None:
        """The one completion of a copy."""
        del self.flights[flight.copy]
        live = self.live[flight.request]
        del live.copies[flight.copy]
        wanted = flight.state is CopyState.FLYING
        if flight.quarantined:
            self.ledger.vouch(flight.target, flight.quarantined)
            self.drop_freed(live, flight.target)
        else:
            self._land(live, flight, arrived and wanted)
        if self.ledger.unpin(live.id, flight.source):
            self.drop_freed(live, flight.source)
        if arrived and wanted and not flight.keep:
            self._drop_others(live, flight)
        self.gone(live)
        self.touch_device(flight.target)

    def _land(self, live: Live, flight: Flight, readable: bool) -> None:
        if self.ledger.unpin(live.id, flight.target):
            self.drop_freed(live, flight.target)
        elif readable:
            self.ledger.commit(live.id, flight.target, flight.end)
            if live.state is R.POOLED and flight.target in self.resident:
                self.resident[flight.target][live.id] = None
        elif live.state not in (R.ENDED, R.LEAVING):
            if flight.start:
                self.ledger.trim(live.id, flight.target, flight.start)
            else:
                self.drop(live, flight.target)

    def _drop_others(self, live: Live, flight: Flight) -> None:
        """The copy arrived: what it replaces goes. Staged KV is revocable, so a copy into staging replaces nothing."""
        if live.state in (R.ENDED, R.LEAVING) or self.cluster.tiers[flight.target].staged:
            return
        for tier, extent in tuple(self.ledger.extents(live.id).items()):
            if tier != flight.target and not extent.growing and not extent.doomed:
                self.drop(live, tier)
