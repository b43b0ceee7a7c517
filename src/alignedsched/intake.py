"""Intake: what each event does to the books, before any policy is asked.

Reports are checked against what can be true and refused before they change anything; late and duplicate ones are
counted and ignored. Losing a lane, a device or all KV (new weights) is taken in by ``trouble``.
"""

from __future__ import annotations

from .books import Books
from .errors import CallerError, ExecutorError
from .events import (
    Arrived,
    Cancelled,
    CapacityChanged,
    CopyDone,
    CopyFailed,
    DeviceBack,
    DeviceLost,
    LaneBack,
    LaneLost,
    LinkChanged,
    StagedLost,
    StepsDone,
    StepsFailed,
    WeightsChanged,
)
from .lane_book import LaneBook
from .lanes import Issued
from .live import Flight, Live
from .plan import Chunk, Outcome
from .queue import Waiting
from .reports import Reports
from .request import Request
from .states import CopyState, RequestState
from .trouble import Trouble

R = RequestState


class Intake:
    """Takes events into the books. Every handler is O(log n) in what there is, plus what the event names."""

    def __init__(
        self, books: Books, max_horizon: int, copy_retries: int, step_retries: int, copy_lease_s: float | None
    ) -> None:
        self._books = books
        self._low_water = max_horizon // 4
        self._copy_retries = copy_retries
        self._copy_lease_s = copy_lease_s
        self._trouble = Trouble(books, step_retries)
        self._reports = Reports(books)
        self._leased_to = 0  # copies with smaller ids have their lease (ids are given in order)

    # -- requests

    def check_arrival(self, event: Arrived) -> None:
        """Raise CallerError if the request cannot arrive."""
        request = event.request
        if not isinstance(request, Request):
            raise CallerError(f"Arrived.request must be a Request, got {request!r}")
        if request.id in self._books.live or request.id in self._books.queue:
            raise CallerError(f"request {request.id!r} is here already")

    def arrived(self, event: Arrived) -> None:
        self.check_arrival(event)
        books, request = self._books, event.request
        books.counts["arrived"] += 1
        order = books.arrivals
        books.arrivals += 1
        reason = self._never_fits(request)
        if reason:
            books.release(request.id, Outcome.REJECTED, reason)
            return
        books.queue.add(Waiting(request, order, since=books.now), books.rank_of(request))
        books.touch_prefillers()

    def _never_fits(self, request: Request) -> str:
        """Why a request could not be served even if it were alone, or an empty string."""
        books = self._books
        wanted = request.prompt_tokens + (request.output_limit or 1)
        if wanted > books.cluster.max_positions:
            return f"{wanted} tokens exceed the model's {books.cluster.max_positions} positions"
        if not any(books.fits(lane, request.prompt_tokens) for lane in books.lanes.values()):
            return f"a prompt of {request.prompt_tokens} tokens fits on no device that prefills"
        if request.output_limit == 1:
            return ""
        for lane in books.lanes.values():
            peak = wanted - 1 + (lane.state.lane.run_ahead + 1 if request.output_limit else 1)
            if lane.state.role.decodes and books.layout.blocks(peak) <= self._smallest(lane):
                return ""
        return f"{wanted} tokens of KV fit on no device that decodes"

    def _smallest(self, lane: LaneBook) -> int:
        return min(self._books.cluster.device[tier].kv_blocks for tier in lane.tiers)

    def cancelled(self, event: Cancelled) -> None:
        books = self._books
        if event.request in books.queue:
            books.queue.remove(event.request)
            books.release(event.request, Outcome.CANCELLED, "cancelled while it queued")
            return
        live = books.live.get(event.request)
        if live is None or live.outcome is not None:
            books.counts["ignored"] += 1
            return
        self._trouble.end(live, Outcome.CANCELLED, "cancelled")

    # -- steps

    def steps_done(self, event: StepsDone) -> None:
        lane = self._lane(event.lane)
        if lane.state.lost:
            self._books.counts["ignored"] += 1
            return
        if not lane.state.check_report(event):
            self._books.counts["ignored"] += 1
            return
        if lane.state.must_wait(event):
            return
        self._reports.check(lane, event)
        self._progress(lane, event)
        self._catch_up(lane)

    def _catch_up(self, lane: LaneBook) -> None:
        """Take in reports that came before one that is now here."""
        while lane.state.early:
            early = lane.state.next_early()
            if early is None:
                return
            if isinstance(early, StepsDone):
                self.steps_done(early)
            else:
                self.steps_failed(early)

    def _lane(self, name: str) -> LaneBook:
        lane = self._books.lanes.get(name)
        if lane is None:
            raise ExecutorError(f"report of lane {name!r}; known: {', '.join(self._books.lanes)}")
        return lane

    def _progress(self, lane: LaneBook, event: StepsDone) -> None:
        state = lane.state
        progress = state.accept(event)
        if progress.through >= progress.start:
            state.failures = 0
        for issued in progress.taken:
            self._take_effect(lane, issued, event.first)
        self._finish(lane, event, state.exposed())
        for chunk in progress.order.step.chunks:
            self._chunk_done(lane, chunk)
        if lane.fences:
            self._pass_fences(lane)
        if event.finished or event.prefilled or progress.order.step.chunks:
            lane.dirty = True
        if state.last_possible - state.reported <= self._low_water and state.members():
            lane.renew = True

    def _finish(self, lane: LaneBook, event: StepsDone | StepsFailed, exposed: int) -> None:
        for request, step in event.finished:
            live = self._books.live.get(request)
            if live is not None:
                self._books.finish(live, lane, step, exposed)
        if event.finished:  # what left is charged for itself from now on, and no more with the batch
            self._books.shrink_growth(lane)

    def _take_effect(self, lane: LaneBook, issued: Issued, first: int) -> None:
        """An order took effect: its joins have a base, and those it removed made their last step before it."""
        books, number = self._books, issued.step.order
        for join in issued.step.joins:
            live = books.live.get(join.request)
            if live is not None and live.join_order == number and live.lane == lane.id and live.state is not R.ENDED:
                books.joined_at(live, lane, first)
        for request in [r for r, (_, order) in lane.fences.items() if order <= number]:
            books.unfence(books.live[request], lane, first - 1)
            lane.dirty = True
        if not issued.step.horizon:
            lane.dirty = True

    def _pass_fences(self, lane: LaneBook) -> None:
        passed = [(r, step) for r, (step, _) in lane.fences.items() if step <= lane.state.reported]
        for request, step in passed:
            self._books.unfence(self._books.live[request], lane, step)
            lane.dirty = True

    def _chunk_done(self, lane: LaneBook, chunk: Chunk) -> None:
        books = self._books
        live = books.live.get(chunk.request)
        if live is None:
            return
        tier = lane.tiers[chunk.rank]
        if books.ledger.unpin(live.id, tier):
            books.drop_freed(live, tier)
        if live.state in (R.ENDED, R.LEAVING) and live.id not in lane.fences:
            books.gone(live)
            return
        books.ledger.commit(live.id, tier, chunk.end)
        live.stored = chunk.end
        if chunk.last:
            live.produced += 1
            if live.state is R.PREFILLING:
                books.ledger.trim(live.id, tier, live.stored)  # the pool is charged for what is stored
                books.to_pool(live)

    # -- copies

    def _flight(self, event: CopyDone | CopyFailed) -> Flight | None:
        """The copy a completion names; None, counted, if it has ended. Raises ExecutorError if there never was one."""
        if type(event.copy) is not int or not 0 <= event.copy < self._books.next_copy:
            raise ExecutorError(f"{type(event).__name__} of copy {event.copy!r}; {self._books.next_copy} were ordered")
        flight = self._books.flights.get(event.copy)
        if flight is None:
            self._books.counts["ignored"] += 1
        return flight

    def copy_done(self, event: CopyDone) -> None:
        flight = self._flight(event)
        if flight is None:
            return
        self._books.live[flight.request].copy_failures = 0
        self._books.end_copy(flight, arrived=True)

    def copy_failed(self, event: CopyFailed) -> None:
        books = self._books
        flight = self._flight(event)
        if flight is None:
            return
        live, wanted = books.live[flight.request], flight.state is CopyState.FLYING
        books.end_copy(flight, arrived=False)
        if wanted:
            self._give_up_copy(live)

    def _give_up_copy(self, live: Live) -> None:
        """After too many failures in a row a request whose KV cannot be brought is computed again."""
        live.copy_failures += 1
        if live.copy_failures > self._copy_retries and live.state in (R.POOLED, R.CANDIDATE, R.JOINING):
            live.copy_failures = 0
            live.then = R.QUEUED
            self._books.vacate(live)

    def next_lease(self) -> float | None:
        """When the next lease of a copy ends."""
        if self._copy_lease_s is None:
            return None
        ends = [f.lease_ends for f in self._books.flights.values() if f.lease_ends is not None and not f.quarantined]
        return min(ends, default=None)

    def expire_leases(self) -> None:
        """Give up copies without completion in time: their targets are quarantined until the completion comes."""
        books = self._books
        if self._copy_lease_s is None or not books.flights:
            return
        for flight in tuple(books.flights.values()):
            if flight.lease_ends is None:
                flight.lease_ends = books.now + self._copy_lease_s
            elif flight.lease_ends <= books.now and not flight.quarantined:
                self._expire(flight.copy)

    def _expire(self, copy: int) -> None:
        books = self._books
        flight = books.flights[copy]
        live, wanted = books.live[flight.request], flight.state is CopyState.FLYING
        books.abort(flight)
        flight.quarantined = books.ledger.quarantine(live.id, flight.target)
        if wanted:
            self._give_up_copy(live)

    # -- the cluster

    def capacity_changed(self, event: CapacityChanged) -> None:
        books = self._books
        if event.tier not in books.cluster.tiers:
            raise ExecutorError(f"CapacityChanged of tier {event.tier!r}; known: {', '.join(books.cluster.tiers)}")
        if type(event.blocks) is not int or event.blocks < 0:
            raise ExecutorError(f"CapacityChanged of {event.tier!r} to {event.blocks!r} blocks: at least 0")
        if books.cluster.tiers[event.tier].device in books.lost:
            books.counts["ignored"] += 1
            return
        books.ledger.set_capacity(event.tier, event.blocks)
        for lane in books.lanes.values():
            for request in (*lane.candidates, *lane.joining):
                if not books.could_hold(lane, books.live[request].context_length):
                    books.unclaim(books.live[request])
        books.touch_device(event.tier)

    def link_changed(self, event: LinkChanged) -> None:
        books = self._books
        if (event.source, event.target) not in books.links:
            raise ExecutorError(f"LinkChanged of {event.source!r} to {event.target!r}, which are not linked")
        if not event.bytes_per_s >= 0:
            raise ExecutorError(f"LinkChanged: bytes_per_s must be at least 0, got {event.bytes_per_s!r}")
        books.links[event.source, event.target] = event.bytes_per_s
        for lane in books.lanes.values():
            lane.dirty = True

    def steps_failed(self, event: StepsFailed) -> None:
        lane = self._lane(event.lane)
        if lane.state.lost or not lane.state.check_report(event):
            self._books.counts["ignored"] += 1
            return
        if lane.state.must_wait(event):
            return
        self._reports.check(lane, event)
        progress = lane.state.accept(event)
        for issued in progress.taken:
            self._take_effect(lane, issued, event.first)
        self._finish(lane, event, lane.state.reported)
        self._trouble.step_failed(lane, event, event.through + 1)

    def lane_lost(self, event: LaneLost) -> None:
        self._trouble.lose_lane(self._lane(event.lane))

    def lane_back(self, event: LaneBack) -> None:
        self._trouble.lane_back(self._lane(event.lane), event.next_step)

    def device_lost(self, event: DeviceLost) -> None:
        self._trouble.lose_device(event.device)

    def device_back(self, event: DeviceBack) -> None:
        self._trouble.device_back(event.device, event.next_step)

    def staged_lost(self, event: StagedLost) -> None:
        self._trouble.lose_staged(event.device, event.requests)

    def weights_changed(self, event: WeightsChanged) -> None:
        self._trouble.void_all()
