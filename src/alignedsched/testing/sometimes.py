"""What has to happen sometimes: rare situations, counted when a life really reaches them.

A run in which nothing was cancelled during a copy says nothing about cancelling during a copy. Each goal is looked for
in the scheduler's own books, before and after a call; a goal that a long run never reached fails the run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..cluster import HOST
from ..events import (
    Arrived,
    Cancelled,
    CapacityChanged,
    CopyDone,
    CopyFailed,
    DeviceLost,
    Draining,
    Event,
    LaneLost,
    LinkChanged,
    Paused,
    StagedLost,
    StepsFailed,
    WeightsChanged,
)
from ..plan import Plan
from ..policies import guard
from ..states import CopyState, RequestState

if TYPE_CHECKING:
    from ..books import Books
    from .life import Life

R = RequestState
TICK_S = 0.25  # between two calls of a world
COPIES = ("host to device", "device to host", "peer", "staged")
GOALS = (
    *(f"cancel during a copy: {kind}" for kind in COPIES),
    *(f"copy failed: {kind}" for kind in COPIES),
    *(f"copy given up: {kind}" for kind in COPIES),
    "cancel while queued", "cancel during prefill", "cancel of a running member", "cancel of a fenced member",
    "everybody cancelled at once", "id used again after its end",
    "host tier full", "peer link down while KV waits behind it", "all links of a device down",
    "copy retries exhausted", "step retries exhausted", "poisoned request", "output of an ended step lost",
    "lane lost with members", "lane lost during prefill", "lane given up for its silence",
    "device lost with KV", "device lost under a copy", "staged KV revoked", "weights changed with live requests",
    "quarantine entered", "quarantine left", "quarantine held work up", "completion after its lease",
    "capacity shrunk under load", "capacity zero", "capacity zero under load", "less than promised",
    "batch of one", "batch at its limit", "chunked prefill resumed", "lane waits for room",
    "preemption by recompute", "member parked", "starvation guard fired", "policy overruled",
    "proposal refused", "request rejected", "request failed", "member joins behind its last chunk",
    "clock set back", "clock stood still", "clock jumped", "report ignored", "report before its predecessor",
    "unknown report refused", "paused with members", "draining with a queue", "lane of several ranks",
    "two lanes lost at once",
)  # fmt: skip


class Sometimes:
    """How often each goal was reached. ``before`` and ``after`` look at one call; O(events + lanes)."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._ignored = self._refused = self._late = self._preemptions = self._overruled = self._failed = 0
        self._quarantine: frozenset[int] = frozenset()
        self._due: tuple[str, float] | None = None

    def count(self, goal: str, times: int = 1) -> None:
        """A goal was reached."""
        self.counts[goal] += times

    def missing(self) -> list[str]:
        """Goals never reached."""
        return [goal for goal in GOALS if not self.counts[goal]]

    # -- before a call

    def before(self, life: Life, events: tuple[Event, ...]) -> None:
        """Note what these events will meet."""
        books = life.scheduler._books
        counts = books.counts
        self._ignored, self._refused, self._late = counts["ignored"], counts["refused"], counts["late_now"]
        self._preemptions, self._overruled, self._failed = counts["preemptions"], counts["overruled"], counts["failed"]
        self._quarantine = frozenset(books.quarantine)
        self._due = self._guard(life)
        if len(events) > 1 and sum(isinstance(event, Cancelled) for event in events) > 3 and len(books.live) > 1:
            self.count("everybody cancelled at once")
        for event in events:
            meet = _MEETINGS.get(type(event))
            if meet is not None:
                for goal in meet(life, books, event):
                    self.count(goal)
        now = life.now + TICK_S
        if now < books.now:
            self.count("clock set back")
        elif now == books.now:
            self.count("clock stood still")
        elif now > books.now + 2.0:
            self.count("clock jumped")

    @staticmethod
    def _guard(life: Life) -> tuple[str, float] | None:
        """The class whose turn the guard says has come, and its clock."""
        clocks = getattr(life.policy.batching, "_clocks", None)
        settings = getattr(life.policy.batching, "settings", None)
        if not clocks or settings is None:
            return None
        due = guard.overdue(clocks, life.now + TICK_S, settings.guard_s)
        return None if due is None else (str(due), clocks[str(due)])

    # -- after a call

    def after(self, life: Life, events: tuple[Event, ...], plan: Plan) -> None:
        """Note where the call led."""
        books = life.scheduler._books
        counts = books.counts
        changes = (
            ("report ignored", counts["ignored"] - self._ignored),
            ("proposal refused", counts["refused"] - self._refused),
            ("preemption by recompute", counts["preemptions"] - self._preemptions),
            ("policy overruled", counts["overruled"] - self._overruled),
            ("request failed", counts["failed"] - self._failed),
            ("quarantine left", len(self._quarantine - books.quarantine.keys())),
        )
        for goal, change in changes:
            if change > 0:
                self.count(goal, change)
        for copy, flight in books.quarantine.items():
            if copy not in self._quarantine:
                self.count("quarantine entered")
                self.count(f"copy given up: {kind_of(books, flight.source, flight.target)}")
        if self._due is not None:
            index, since = self._due
            if life.policy.batching._clocks.get(index, since) != since:  # type: ignore[attr-defined]
                self.count("starvation guard fired")
        self._plan(books, plan)
        self._state(life, books)

    def _plan(self, books: Books, plan: Plan) -> None:
        for step in plan.steps:
            if any(chunk.start for chunk in step.chunks):
                self.count("chunked prefill resumed")
            if step.why == "waits for room":
                self.count("lane waits for room")
            for join in step.joins:
                live = books.live.get(join.request)
                if live is not None and live.stored < join.context_length - 1:
                    self.count("member joins behind its last chunk")
            for request in step.leaves:
                live = books.live.get(request)
                if live is not None and live.then is R.POOLED and live.outcome is None:
                    self.count("member parked")
        if plan.given_up:
            self.count("lane given up for its silence", len(plan.given_up))
        for release in plan.releases:
            if release.outcome.value == "rejected":
                self.count("request rejected")

    def _state(self, life: Life, books: Books) -> None:
        lost = 0
        for lane in books.lanes.values():
            lost += lane.state.lost
            members = lane.state.members()
            if lane.state.early:
                self.count("report before its predecessor")
            if members == 1:
                self.count("batch of one")
            elif members and any(len(batch) == lane.state.lane.max_members for batch in lane.state.batches):
                self.count("batch at its limit")
            if members > 1 and len(lane.tiers) > 1:
                self.count("lane of several ranks")
        if lost > 1:
            self.count("two lanes lost at once")
        if HOST in life.cluster.tiers and books.ledger.free(HOST) <= 0:
            self.count("host tier full")
        for (source, target), rate in books.links.items():
            if not rate and HOST not in (source, target) and books.resident[source] and target in books.lane_of_device:
                self.count("peer link down while KV waits behind it")


# -- what events meet


def kind_of(books: Books, source: str, target: str) -> str:
    """Which of ``COPIES`` a copy between two tiers is."""
    tiers = books.cluster.tiers
    if tiers[source].staged or tiers[target].staged:
        return "staged"
    return "host to device" if source == HOST else "device to host" if target == HOST else "peer"


def _cancelled(life: Life, books: Books, event: Cancelled) -> list[str]:
    if event.request in books.queue:
        return ["cancel while queued"]
    live = books.live.get(event.request)
    if live is None or live.outcome is not None:
        return []
    goals = [
        f"cancel during a copy: {kind_of(books, books.flights[copy].source, books.flights[copy].target)}"
        for copy in live.copies
    ]
    if live.state is R.PREFILLING:
        goals.append("cancel during prefill")
    elif live.state is R.RUNNING:
        goals.append("cancel of a running member")
    elif live.state is R.LEAVING and live.lane is not None:
        goals.append("cancel of a fenced member")
    return goals


def _arrived(life: Life, books: Books, event: Arrived) -> list[str]:
    number = event.request.id[1:]
    return ["id used again after its end"] if number.isdigit() and int(number) < life.arrived - 12 else []


def _copy_failed(life: Life, books: Books, event: CopyFailed) -> list[str]:
    if event.copy in books.quarantine:
        return ["completion after its lease"]
    flight = books.flights.get(event.copy)
    if flight is None or flight.state is not CopyState.FLYING:
        return []
    live = books.live[flight.request]
    exhausted = live.copy_failures >= life.scheduler._intake._trouble._copy_retries
    return [f"copy failed: {kind_of(books, flight.source, flight.target)}"] + ["copy retries exhausted"] * exhausted


def _copy_done(life: Life, books: Books, event: CopyDone) -> list[str]:
    return ["completion after its lease"] if event.copy in books.quarantine else []


def _steps_failed(life: Life, books: Books, event: StepsFailed) -> list[str]:
    state = books.lanes[event.lane].state
    goals = ["poisoned request"] if event.poisoned else []
    goals += ["output of an ended step lost"] if event.reason == "output lost" else []
    if state.members() and state.failures >= life.scheduler._intake._trouble._step_retries:
        goals.append("step retries exhausted")
    return goals


def _lane_lost(life: Life, books: Books, event: LaneLost) -> list[str]:
    lane = books.lanes[event.lane]
    goals = ["lane lost with members"] if lane.state.members() else []
    return goals + (["lane lost during prefill"] if lane.prefilling or lane.expected else [])


def _device_lost(life: Life, books: Books, event: DeviceLost) -> list[str]:
    tiers = [tier.id for tier in books.cluster.tiers.values() if tier.device == event.device]
    copies = any(flight.source in tiers or flight.target in tiers for flight in books.flights.values())
    goals = ["device lost under a copy"] if copies else []
    return goals + (["device lost with KV"] if any(books.ledger.held(tier) for tier in tiers) else [])


def _capacity(life: Life, books: Books, event: CapacityChanged) -> list[str]:
    ledger = books.ledger
    load = ledger.held(event.tier) + ledger.growth(event.tier)
    goals = ["capacity shrunk under load"] if load > event.blocks else []
    if not event.blocks:
        goals += ["capacity zero"] + ["capacity zero under load"] * (load > 0)
    if life.now == 0.0 and event.blocks < books.cluster.tiers[event.tier].blocks:
        goals.append("less than promised")
    return goals


def _link(life: Life, books: Books, event: LinkChanged) -> list[str]:
    others = [
        rate for ends, rate in books.links.items() if event.source in ends and ends != (event.source, event.target)
    ]
    return ["all links of a device down"] if not event.bytes_per_s and others and not any(others) else []


def _staged(life: Life, books: Books, event: StagedLost) -> list[str]:
    tier = books.cluster.device[event.device].staging_tier
    return ["staged KV revoked"] if books.ledger.held(tier) else []


_MEETINGS: dict[type[Event], Callable[[Life, Books, Any], list[str]]] = {
    Cancelled: _cancelled,
    Arrived: _arrived,
    CopyFailed: _copy_failed,
    CopyDone: _copy_done,
    StepsFailed: _steps_failed,
    LaneLost: _lane_lost,
    DeviceLost: _device_lost,
    CapacityChanged: _capacity,
    LinkChanged: _link,
    StagedLost: _staged,
    WeightsChanged: lambda life, books, event: ["weights changed with live requests"] if books.live else [],
    Paused: lambda life, books, event: (
        ["paused with members"] if any(lane.state.members() for lane in books.lanes.values()) else []
    ),
    Draining: lambda life, books, event: ["draining with a queue"] if len(books.queue) else [],
}
