"""Trouble: cancels, failed steps, lost lanes and devices, revoked staging, new weights; no request is ever lost.

Whatever happens, a request keeps what it can: KV that is readable somewhere durable, else the tokens it has made,
which are prefilled again behind its prompt.
"""

from __future__ import annotations

from .books import Books
from .errors import ExecutorError
from .events import StepsFailed
from .lane_book import LaneBook
from .live import Flight, Live
from .outside import show
from .plan import Outcome
from .states import CopyState, RequestState

R = RequestState


class Trouble:
    """Takes losses into the books."""

    def __init__(self, books: Books, step_retries: int, copy_retries: int) -> None:
        self._books = books
        self._step_retries = step_retries
        self._copy_retries = copy_retries

    def end(self, live: Live, outcome: Outcome, why: str) -> None:
        """Fix a live request's outcome; its KV goes when nothing touches it. Members leave with the next order."""
        books = self._books
        live.outcome, live.why, live.then = outcome, why, R.ENDED
        if live.state is R.RUNNING:
            lane = books.lanes[live.lane or ""]
            live.to(R.ENDED, books.now)
            lane.going[live.id] = R.ENDED
            lane.dirty = True
            return
        fenced = live.lane is not None and live.id in books.lanes[live.lane].fences
        if not fenced:
            books.leave_pool(live)
        live.to(R.ENDED, books.now)
        if not fenced:
            books.vacate(live)

    # -- copies

    def copy_failed(self, live: Live) -> None:
        """After too many failures in a row a request whose KV cannot be brought is computed again."""
        live.copy_failures += 1
        if live.copy_failures > self._copy_retries and live.state in (R.POOLED, R.CANDIDATE, R.JOINING):
            live.copy_failures = 0
            self._books.recompute(live)

    def forsake_copy(self, flight: Flight) -> None:
        """A copy whose lease ended counts as one that failed, and what it may still write is quarantined."""
        live, wanted = self._books.live[flight.request], flight.state is CopyState.FLYING
        self._books.forsake(flight)
        if wanted:
            self.copy_failed(live)

    # -- steps and lanes

    def step_failed(self, lane: LaneBook, event: StepsFailed, next_step: int) -> None:
        """A failed step empties its lane; members go back to the pool at their last good length, and join again."""
        books = self._books
        lane.state.failures += 1
        exhausted = lane.state.failures > self._step_retries
        members = [request for batch in lane.state.batches for request in batch]
        chunked = [*lane.prefilling, *lane.expected]
        self._empty(lane, next_step)
        doomed = {*event.poisoned, *(members if exhausted else ()), *(chunked if exhausted else ())}
        for request in sorted(doomed):
            live = books.live.get(request)
            if live is not None and live.outcome is None:
                self.end(live, Outcome.FAILED, event.reason or "a step failed")
        if exhausted:
            lane.state.failures = 0
        lane.dirty = True

    def _empty(self, lane: LaneBook, next_step: int | None) -> None:
        """Nothing runs on a lane any more: members, fenced ones and begun prefills are at rest again."""
        books, state = self._books, lane.state
        standing = state.standing
        not_run = [standing] if standing is not None and standing.first > state.reported else []
        for issued in (*not_run, *state.issued):
            for chunk in issued.step.chunks:
                if chunk.request in books.live:
                    self._unpin_chunk(lane, books.live[chunk.request], chunk.rank)
        state.halt(next_step)
        for request in tuple(lane.fences):
            live = books.live[request]
            books.unfence(live, lane, state.reported)
        for batch in state.batches:
            for request in tuple(batch):
                self._rest_member(lane, books.live[request])
        for request in tuple(lane.expected):
            live = books.live[request]
            del lane.expected[request]
            lane.prefilling[request] = None
        for request in lane.prefilling:
            books.live[request].ordered = books.live[request].stored
        for tier in lane.tiers:
            books.ledger.set_growth(tier, 0)
        lane.going.clear()
        lane.renew = False

    def _unpin_chunk(self, lane: LaneBook, live: Live, rank: int) -> None:
        tier = lane.tiers[rank]
        if self._books.ledger.unpin(live.id, tier):
            self._books.drop_freed(live, tier)
            self._books.gone(live)

    def _rest_member(self, lane: LaneBook, live: Live) -> None:
        """A member of an emptied lane: to the pool, or back to prefilling if its last chunk never ran."""
        books = self._books
        if live.stored < live.target:
            books.back_to_prefill(live, lane)
            return
        then = R.ENDED if live.state is R.ENDED else lane.going.get(live.id, R.POOLED)
        books.depart(live, lane, then, lane.state.reported, -1)

    def lose_lane(self, lane: LaneBook) -> None:
        """A lane runs no more: what only it could decode or prefill is computed again elsewhere or later."""
        if lane.state.lost:
            self._books.counts["ignored"] += 1
            return
        books = self._books
        self._empty(lane, None)
        lane.state.lost = True
        for request in tuple(lane.prefilling):
            books.recompute(books.live[request])
        for request in (*lane.candidates, *lane.joining):
            books.unclaim(books.live[request])
        if lane.state.role.decodes:
            for tier in lane.tiers:
                for request in tuple(books.resident[tier]):
                    if not books.whole_elsewhere(books.live[request], tier):
                        books.recompute(books.live[request])
        books.touch_deciders()
        books.touch_prefillers()

    def lane_back(self, lane: LaneBook, next_step: int) -> None:
        if not lane.state.lost:
            self._books.counts["ignored"] += 1
            return
        gone = [tier for tier in lane.tiers if tier in self._books.lost]
        if gone:
            raise ExecutorError(f"lane {lane.id!r} is back, but its device {gone[0]!r} is lost")
        self._check_next(lane, next_step)
        lane.state.halt(next_step)
        lane.state.lost = False
        lane.state.failures = 0
        lane.dirty = True

    @staticmethod
    def _check_next(lane: LaneBook, next_step: int) -> None:
        if next_step <= lane.state.reported:
            done = lane.state.reported
            raise ExecutorError(f"lane {lane.id!r} is back at step {show(next_step)}, but step {done} is done")

    # -- devices

    def _check_device(self, event: str, device: str) -> None:
        known = self._books.cluster.device
        if device not in known:
            raise ExecutorError(f"{event} of {show(device)}; known: {', '.join(known)}")

    def lose_device(self, device: str) -> None:
        """A device is gone with its memory: copies from and to it have ended, its lane is lost."""
        books = self._books
        self._check_device("DeviceLost", device)
        if device in books.lost:
            books.counts["ignored"] += 1
            return
        books.lost[device] = None
        tiers = [tier.id for tier in books.cluster.tiers.values() if tier.device == device]
        if device in books.lane_of_device:
            lane = books.lanes[books.lane_of_device[device]]
            if not lane.state.lost:
                self._empty(lane, None)
                lane.state.lost = True
        for flight in tuple(books.flights.values()):
            if flight.source in tiers or flight.target in tiers:
                books.end_copy(flight, arrived=False)
        for flight in tuple(books.quarantine.values()):
            if flight.source in tiers or flight.target in tiers:
                books.vouch(flight)
        for tier in tiers:
            self._void_tier(tier)
            books.ledger.set_capacity(tier, 0)
        if device in books.lane_of_device:
            self._strand(books.lanes[books.lane_of_device[device]])
        books.touch_deciders()
        books.touch_prefillers()

    def _strand(self, lane: LaneBook) -> None:
        """Requests that wait for a lost lane wait for any lane."""
        books = self._books
        for request in tuple(lane.prefilling):
            books.recompute(books.live[request])
        for request in (*lane.candidates, *lane.joining):
            books.unclaim(books.live[request])

    def _void_tier(self, tier: str) -> None:
        books = self._books
        for request, extents in tuple(books.ledger.segments()):
            if tier in extents:
                live = books.live[request]
                books.forget(live, tier)
                if live.state in (R.ENDED, R.LEAVING):
                    books.gone(live)
                elif not books.whole_elsewhere(live, tier):
                    books.recompute(live)

    def device_back(self, device: str, next_step: int) -> None:
        """A lost device is back, empty; its lane steps again as soon as all its devices are there."""
        books = self._books
        self._check_device("DeviceBack", device)
        if device not in books.lost:
            books.counts["ignored"] += 1
            return
        lane = books.lanes.get(books.lane_of_device.get(device, ""))
        if lane is not None and all(tier == device or tier not in books.lost for tier in lane.tiers):
            self._check_next(lane, next_step)
            del books.lost[device]
            self.lane_back(lane, next_step)
        books.lost.pop(device, None)
        for tier in books.cluster.tiers.values():
            if tier.device == device:
                books.ledger.set_capacity(tier.id, tier.blocks)
        for other in books.lanes.values():
            other.dirty = True

    def lose_staged(self, device: str, requests: tuple[str, ...]) -> None:
        """A helper took staged KV back: it is fetched from where it came from."""
        books = self._books
        self._check_device("StagedLost", device)
        spec = books.cluster.device[device]
        if not spec.staging_blocks:
            raise ExecutorError(f"StagedLost of {device!r}, which stages nothing")
        tier = spec.staging_tier
        for request in requests or tuple(r for r, extents in books.ledger.segments() if tier in extents):
            live = books.live.get(request)
            extent = books.ledger.extents(request).get(tier)
            if live is None or extent is None or extent.doomed:
                continue
            self._withdraw(live, tier)
        for lane in books.lanes.values():
            lane.dirty = True

    def clear(self, tier: str) -> None:
        """A tier that is no lane's became smaller: the newest KV there goes until the rest fits. O(requests there)."""
        books, ledger = self._books, self._books.ledger
        if ledger.free(tier) + ledger.doomed(tier) >= 0:
            return
        held = [books.live[request] for request, extents in ledger.segments() if tier in extents]
        for live in sorted(held, key=lambda live: live.order, reverse=True):
            if ledger.free(tier) + ledger.doomed(tier) >= 0:
                return
            if ledger.extents(live.id)[tier].doomed:
                continue
            if books.cluster.tiers[tier].staged or books.whole_elsewhere(live, tier):
                self._withdraw(live, tier)
            else:
                books.recompute(live)

    def _withdraw(self, live: Live, tier: str) -> None:
        """Give up KV in a tier, and the copies from and to it."""
        books = self._books
        for copy in tuple(live.copies):
            if tier in (books.flights[copy].source, books.flights[copy].target):
                books.abort(books.flights[copy])
        books.drop(live, tier)

    # -- all KV

    def void_all(self) -> None:
        """New weights: all KV is void; every live request is prefilled again with what it has made."""
        books = self._books
        for live in tuple(books.live.values()):
            if live.outcome is None:
                books.recompute(live)
