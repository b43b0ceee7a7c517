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
    Event,
    LaneBack,
    LaneLost,
    LinkChanged,
    StagedLost,
    StepsDone,
    StepsFailed,
    WeightsChanged,
)
from .forms import check_form, check_steps
from .lane_book import LaneBook
from .lanes import Issued
from .live import Flight
from .outside import show
from .plan import Chunk, Outcome
from .queue import Waiting
from .reports import Reports
from .request import Request
from .states import CopyState, RequestState
from .trouble import Trouble
from .watching import Watching

R = RequestState


class Intake:
    """Takes events into the books. Every handler is O(log n) in what there is, plus what the event names."""

    def __init__(self, books: Books, trouble: Trouble, max_horizon: int, watching: Watching | None) -> None:
        self._books = books
        self._low_water = max_horizon // 4
        self._trouble = trouble
        self._reports = Reports(books)
        self._watching = watching

    def check(self, events: tuple[Event, ...]) -> None:
        """Raise CallerError or ExecutorError for an event of the wrong form, CallerError for who cannot arrive."""
        books, seen = self._books, set[str]()
        for event in events:
            if type(event) is StepsDone:
                check_steps(event)
                continue
            check_form(event)
            if isinstance(event, Arrived):
                request = event.request.id
                if request in books.live or request in books.queue:
                    raise CallerError(f"request {show(request)} is here already")
                if request in seen:
                    raise CallerError(f"request {show(request)} arrives twice in one call")
                seen.add(request)

    # -- requests

    def arrived(self, event: Arrived) -> None:
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
            books.touch_prefillers()  # it may have held back those behind it
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
            raise ExecutorError(f"report of lane {show(name)}; known: {', '.join(self._books.lanes)}")
        return lane

    def _progress(self, lane: LaneBook, event: StepsDone) -> None:
        state = lane.state
        progress = state.accept(event)
        if progress.through >= progress.start:
            state.failures = 0
        for issued in progress.taken:
            self._take_effect(lane, issued, event.first)
        if self._watching is not None:
            self._watching.stepped(lane, progress, event.seconds)
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
        done, last = lane.state.reported, lane.state.last_possible  # no step beyond the last possible one will come
        passed = [(r, min(step, last)) for r, (step, _) in lane.fences.items() if min(step, last) <= done]
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
            if chunk.last and live.outcome is Outcome.FINISHED:
                live.produced += 1
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
        """The copy a completion names; None if it was given up or, counted, has ended already.

        Raises ExecutorError if there never was one.
        """
        if not 0 <= event.copy < self._books.next_copy:
            said = f"{type(event).__name__} of copy {show(event.copy)}"
            raise ExecutorError(f"{said}; {self._books.next_copy} were ordered")
        flight = self._books.flights.get(event.copy)
        if flight is None and event.copy in self._books.quarantine:
            self._books.vouch(self._books.quarantine[event.copy])
        elif flight is None:
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
            self._trouble.copy_failed(live)

    # -- the cluster

    def capacity_changed(self, event: CapacityChanged) -> None:
        books = self._books
        if event.tier not in books.cluster.tiers:
            raise ExecutorError(f"CapacityChanged of tier {show(event.tier)}; known: {', '.join(books.cluster.tiers)}")
        if books.cluster.tiers[event.tier].device in books.lost:
            books.counts["ignored"] += 1
            return
        books.ledger.set_capacity(event.tier, event.blocks)
        books.unclaim_unfit()
        if event.tier not in books.lane_of_device:
            self._trouble.clear(event.tier)
        books.touch_device(event.tier)

    def link_changed(self, event: LinkChanged) -> None:
        books = self._books
        ends = event.source, event.target
        if ends not in books.links:
            raise ExecutorError(f"LinkChanged of {show(ends[0])} to {show(ends[1])}, which are not linked")
        books.links[ends] = event.bytes_per_s
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
