"""The life of one request, told while its calls are replayed: every stay and its reasons, every turn and its cause."""

from __future__ import annotations

from collections.abc import Sequence

from ..books import Books
from ..events import (
    Arrived,
    Cancelled,
    CopyDone,
    CopyFailed,
    DeviceLost,
    Event,
    LaneLost,
    StepsDone,
    StepsFailed,
    WeightsChanged,
)
from ..lane_book import LaneBook
from ..live import Live
from ..narrator import Reason, Rule
from ..plan import Copy, Outcome, Plan, Release
from ..policies.protocols import Policy
from ..request import Request
from ..scheduler import Scheduler
from ..scheduler_view import SchedulerView
from ..states import RequestState
from . import reasons
from .batch_numbers import BatchNumbers
from .life import Life
from .phases import Batch, Phase, Standing
from .sentences import Sentence, data, moment, name, seconds, several

R = RequestState


class RequestWatch:
    """A narrator that writes the story of one request. O(1) a call it does not appear in."""

    _books: Books
    _views: dict[str, SchedulerView]
    _policy: Policy
    _hook: bool

    def __init__(self, request: str) -> None:
        self._id = request
        self._story: list[Sentence] = []
        self._phase: Phase | None = None
        self._life = Life(0.0)
        self._numbers = BatchNumbers()
        self._was = ""  # the batch of its lane before this call's plan
        self._heard: Standing = {}  # in this call,
        self._heard_as: RequestState | None = None  # of the state it was in
        self._cause = ""  # of what happens to it in this call
        self._troubles: list[str] = []  # of this call, whomever they befall
        self._last = 0.0

    def begin(self, scheduler: Scheduler) -> None:
        """A scheduler is about to make the calls: of nothing, or of what it knew when the log began."""
        self._books, self._policy = scheduler._books, scheduler.policy
        self._hook = scheduler.eligible is not None
        self._views = {lane: scheduler.view(lane) for lane in self._books.lanes}
        known = self._books.live.get(self._id)
        if self._phase is not None:
            self._say(scheduler.now, "here another process went on")
        elif known is not None or self._id in self._books.queue:
            request = known.request if known is not None else self._books.queue.get(self._id).request
            self._life, self._last = Life(request.arrival), scheduler.now
            self._say(scheduler.now, "was here already when the log began")
            self._phase = Phase(R.QUEUED, scheduler.now)
            self._turn(scheduler.now)

    def wants(self, now: float) -> bool:
        """Whether the next call matters; its id may always come again."""
        return True

    # -- what the core says

    def note(self, rule: Rule, lane: str, request: str, figure: int) -> None:
        """See Narrator."""
        if rule is Rule.DECIDED:
            self._decided(self._books.lanes[lane], figure)
        elif rule is Rule.NO_ROOM:
            self._heard[lane] = Reason(f"blocks short on {name(lane)} for its own next step", figure), 0
        elif request == self._id:
            held = sum(self._blocks(tier) for tier in self._books.lanes[lane].tiers)
            short = f"{several(figure, 'block')} short for its next step"
            if rule is Rule.STARTS_OVER:
                self._cause = f"nothing could go on beside the KV on {name(lane)}, and it was the newest there"
            elif rule is Rule.VICTIM:
                self._cause = f"{name(lane)} was {short}, and {name(self._policy.name)} gave it up ({held:,} blocks)"
            else:
                self._cause = f"{name(lane)} was {short}, and it was the newest there ({held:,} blocks)"

    def _blocks(self, tier: str) -> int:
        """Blocks of a device the request takes up."""
        books = self._books
        extent, live = books.ledger.extents(self._id).get(tier), books.live.get(self._id)
        if extent is None or live is None:
            return 0
        if not extent.growing or live.lane is None:
            return extent.blocks
        state = books.lanes[live.lane].state
        return books.layout.blocks(state.batches[live.rank].base(live.id) + state.latest_first())

    def _decided(self, lane: LaneBook, ordered: int) -> None:
        books, live = self._books, self._books.live.get(self._id)
        state = R.QUEUED if live is None else live.state
        if state is not self._heard_as:  # it has gone on since another lane decided
            self._heard, self._heard_as = {}, state
        if self._id in books.queue:
            if lane.state.role.prefills:
                why = reasons.queued(books, lane, self._views[lane.id], self._policy, ordered, self._hook)
                self._heard[lane.id] = why, books.queue.position(self._id)
        elif live is not None and live.state is R.POOLED:
            passed = reasons.pooled(books, lane, self._views[lane.id], self._policy, live)
            if passed is not None:
                self._heard[lane.id] = passed, 0
        elif live is not None and live.lane == lane.id and live.state is R.CANDIDATE:
            self._heard[lane.id] = reasons.candidate(lane), 0
        elif live is not None and live.lane == lane.id and live.state is R.JOINING:
            self._heard[lane.id] = reasons.joining(books, lane, live), 0

    # -- calls

    def before(self, now: float, events: Sequence[Event]) -> None:
        """A call is about to be made."""
        if self._phase is not None:
            self._phase.passed(now - self._last)
        self._last, self._heard, self._heard_as, self._cause, self._troubles = now, {}, None, "", []
        self._seen()
        for event in events:
            self._take_in(now, event)

    def _seen(self) -> None:
        live = self._books.live.get(self._id)
        if live is not None:
            self._life.live = live

    def _take_in(self, now: float, event: Event) -> None:
        if isinstance(event, StepsDone | StepsFailed):
            self._steps(now, event)
        elif isinstance(event, CopyDone | CopyFailed):
            copy = self._life.copies.pop(event.copy, None)
            if copy is not None:
                self._copied(*copy, now, event)
        elif isinstance(event, Cancelled) and event.request == self._id:
            self._cause = "the client cancelled it"
        elif isinstance(event, LaneLost):
            self._troubles.append(f"lane {name(event.lane)} was lost")
        elif isinstance(event, DeviceLost):
            self._troubles.append(f"device {name(event.device)} was lost")
        elif isinstance(event, WeightsChanged):
            self._troubles.append("new weights made all KV void")

    def _steps(self, now: float, event: StepsDone | StepsFailed) -> None:
        lane = self._books.lanes.get(event.lane)
        if isinstance(event, StepsFailed):
            self._troubles.append(f"a step of {name(event.lane)} failed ({event.reason or 'no reason given'})")
        if lane is None:
            return
        end, each = now, 0.0
        if isinstance(event, StepsDone):
            end = now if event.ended is None else event.ended
            steps = min(event.through - event.first + 1, event.through - lane.state.reported)
            each = event.seconds / steps if steps > 0 else 0.0
            order = lane.state.find(event.order)
            mine = order is not None and any(c.request == self._id and c.last for c in order.step.chunks)
            if mine and steps > 0:
                self._life.token(end, rests=self._phase is None or self._phase.state is not R.RUNNING)
        for request, step in event.finished:
            if request == self._id:
                self._life.last_token = end - each * (event.through - step)

    def _copied(self, copy: Copy, began: float, now: float, event: CopyDone | CopyFailed) -> None:
        size = data((copy.end - copy.start) * self._books.layout.bytes_per_token)
        way = f"{size} from {name(copy.source)} to {name(copy.target)}"
        why = f" ({copy.why})" if copy.why else ""
        late = f", {seconds(now - copy.deadline)} late" if copy.deadline is not None and now > copy.deadline else ""
        if copy.copy in self._life.unwanted:
            self._say(began, f"a copy of its KV, {way}, ended after {seconds(now - began)}, not wanted any more{why}")
        elif isinstance(event, CopyDone):
            self._say(began, f"its KV was copied, {way}, in {seconds(now - began)}{late}{why}")
        else:
            reason = f": {event.reason}" if event.reason else ""
            after = f"ended after {seconds(now - began)} without arriving"
            self._say(began, f"a copy of its KV, {way}, {after}{reason}{why}")

    def _say(self, at: float, text: str, took: float = 0.0) -> None:
        self._story.append(Sentence(at, text, took))

    def after(self, now: float, events: Sequence[Event], plan: Plan) -> None:
        """The call has been made."""
        self._troubles += [f"lane {name(lane)} owed a report for too long" for lane in plan.given_up]
        if self._phase is not None:
            self._was = self._numbers.of(self._phase.lane)
        self._numbers.take(plan)
        for event in events:
            if isinstance(event, Arrived) and event.request.id == self._id and self._phase is None:
                self._arrive(now, event.request)
        if self._phase is None:
            return
        self._ordered(now, plan)
        self._seen()
        self._turn(now)
        if self._heard_as in (None, self._phase.state):
            self._phase.hear(self._heard)
        self._phase.above = reasons.above(self._books, self._phase.state, self._id)
        for release in plan.releases:
            if release.request == self._id:
                self._end(now, release)

    def _arrive(self, now: float, request: Request) -> None:
        arrival = min(request.arrival, now)
        limit = "no limit of its own" if request.output_limit is None else f"a limit of {request.output_limit:,} more"
        queue = self._books.queue
        ahead = queue.position(self._id) if self._id in queue else 0
        behind = f"; {several(ahead, 'request')} queued before it" if ahead else ""
        self._say(arrival, f"arrived with {several(request.prompt_tokens, 'prompt token')} and {limit}{behind}")
        self._life = Life(arrival)
        self._phase = Phase(R.QUEUED, arrival)
        if now > arrival:
            self._phase.tally.add(Reason("the scheduler had not been told of it"), now - arrival)

    def _ordered(self, now: float, plan: Plan) -> None:
        """What the plan says of it."""
        assert self._phase is not None
        for copy in plan.copies:
            if copy.request == self._id:
                self._life.copies[copy.copy] = copy, now
        for abort in plan.aborts:
            if abort.copy in self._life.copies:
                self._life.unwanted[abort.copy] = None
                if abort.copy in self._books.quarantine:
                    self._say(now, "a copy of its KV did not end in time and was given up; its target is quarantined")
        for step in plan.steps:
            chunks = sum(chunk.request == self._id for chunk in step.chunks)
            if chunks and self._phase.state is R.QUEUED:
                self._turn(now)
            self._phase.chunks += chunks
            if self._id in step.leaves and not (self._cause or self._troubles):
                why = self._books.lanes[step.lane].why
                self._troubles.append(f"{name(self._policy.name)} parked it{f' ({why})' if why else ''}")

    # -- turns

    def _turn(self, now: float) -> None:
        """From one state to another, if it is in another now."""
        phase, live = self._phase, self._books.live.get(self._id)
        assert phase is not None
        state = self._state(live)
        lane, joined = ("", -1) if live is None else (live.lane or "", live.join_order)
        here = (lane, joined) == (phase.lane, phase.joined) if state is R.RUNNING else lane == phase.lane
        if state is phase.state and (here or state not in (R.RUNNING, R.PREFILLING)):
            return
        finished = self._life.last_token is not None
        if phase.state is R.RUNNING and state in (R.LEAVING, R.ENDED) and not finished:
            if not phase.left:
                phase.left = True
                self._leaves(now, phase, live)
            return
        self._close(now)
        if not phase.left and not finished and (state is phase.state or self._fell_back(phase.state, state)):
            self._leaves(now, phase, live)
        self._phase = Phase(state, now, lane, joined)
        if state is R.RUNNING:
            self._phase.batch = self._life.met
            self._life.decodes(now)

    def _state(self, live: Live | None) -> RequestState:
        """Where it stands. A member whose last chunk is still under way is told as in prefill."""
        if live is None:
            return R.QUEUED if self._id in self._books.queue else R.ENDED
        if live.state is not R.RUNNING:
            self._life.met = None
            return live.state
        if self._life.met is None:
            lane = self._books.lanes[live.lane or ""]
            self._life.met = Batch.met(live, lane, self._numbers.of(lane.id), reasons.of_order(lane))
        return R.PREFILLING if live.stored < live.target else R.RUNNING

    @staticmethod
    def _fell_back(old: RequestState, new: RequestState) -> bool:
        """Whether a turn needs a cause: it is away from decoding, not towards it."""
        ranks = {R.QUEUED: 0, R.PREFILLING: 1, R.POOLED: 2, R.CANDIDATE: 3, R.JOINING: 4, R.RUNNING: 5}
        return new in (R.LEAVING, R.ENDED) or ranks[new] < ranks.get(old, 0)

    def _leaves(self, now: float, phase: Phase, live: Live | None) -> None:
        cause = self._cause or "; ".join(dict.fromkeys(self._troubles))
        then = ""
        if self._id in self._books.queue:
            then = ", to be computed again"
        elif live is not None and live.outcome is None and phase.state is not R.CANDIDATE:
            then = ", to the pool" if live.then is R.POOLED else ", to be computed again"
        from_ = f"left batch {self._was}" if phase.state is R.RUNNING else "fell back"
        if cause or phase.state is R.RUNNING:
            self._say(now, f"{from_}{then}{f': {cause}' if cause else ''}")

    def _produced(self) -> int:
        """Tokens it has made; those of a member follow from the steps its lane has reported."""
        live = self._life.live
        if live is None:
            return 0
        running = live.state is R.RUNNING and live.base is not None and live.lane is not None
        steps = self._books.lanes[live.lane or ""].state.reported + (live.base or 0) - live.stored if running else 0
        return live.produced + max(0, steps)

    def _close(self, until: float, more: str = "") -> None:
        """Tell a stay that ends, or that the log leaves open."""
        phase = self._phase
        assert phase is not None
        if phase.state is R.RUNNING:
            self._life.rests_since = until
        if until > phase.since or more:
            self._say(phase.since, phase.words(until, self._life.live, self._produced()) + more, until - phase.since)

    # -- the end

    def _end(self, now: float, release: Release) -> None:
        if self._phase is not None:
            self._close(now)
        text = self._life.finished() if release.outcome is Outcome.FINISHED else self._life.unfinished(release)
        self._say(now, text)
        self._phase = None

    def told(self) -> list[Sentence]:
        """The story in order of time; what the log leaves open is told up to its end."""
        if self._phase is not None:
            self._close(self._last, f"; here the log ends, at {moment(self._last)}")
            self._phase = None
        return sorted(self._story, key=lambda sentence: sentence.at)
