"""A run as a timeline for Perfetto: lanes and links as tracks, the policy's decisions with their reasons, counters.

Lane tracks have stretches of constant membership and pauses with their cause; beside each lane that decodes stands
what its policy decided, and why. A link serves one copy at a time: a copy's slice begins when the one before it ended.
"""

from __future__ import annotations

from collections.abc import Sequence

from attrs import define

from ..cluster import Cluster
from ..events import CopyDone, CopyFailed, Event
from ..metrics import LatencyCollector
from ..metrics.bubbles import Idle, split
from ..plan import Copy, Plan, Step
from . import text
from .lookout import Views
from .stretches import Pause, Stretch
from .trace_events import TraceWriter

SAMPLE_S = 0.1  # simulated seconds between two values of a counter
_NAME = 80  # characters of a name from outside
_PAUSES = {
    Idle.NO_WORK: "no work",
    Idle.BATCH: "idle: work waits (batch bubble)",
    Idle.COPY: "copy stall",
}


@define
class _Open:
    """A lane's stretch that may go on."""

    first: Stretch
    end: float
    steps: int
    balanced_s: float | None

    def takes(self, stretch: Stretch) -> bool:
        """Whether the next stretch has the same members, and chunks of the same requests, and follows at once."""
        return (
            stretch.membership == self.first.membership
            and stretch.begin - self.end < 1e-6
            and [c.request for c in stretch.chunks] == [c.request for c in self.first.chunks]
        )


@define
class _Decision:
    """What a policy has decided for a lane, until it decides something else."""

    since: float
    why: str
    orders: int = 0
    joined: int = 0
    left: int = 0


class Timeline:
    """A Sink that writes a trace."""

    _views: Views
    _cluster: Cluster

    def __init__(self, writer: TraceWriter) -> None:
        self._writer = writer

    def begin(self, policy: str, views: Views) -> None:
        """See Sink."""
        self._views = views
        self._cluster = next(iter(views.values())).cluster
        self._open: dict[str, _Open] = {}
        self._decisions: dict[str, _Decision] = {}
        self._whys: dict[str, str] = {}  # what batching said last, by lane
        self._copies: dict[int, tuple[float, Copy]] = {}  # under way, by number: since when
        self._link_end: dict[str, float] = {}  # by link or shared channel: end of its last copy
        self._sampled = -SAMPLE_S
        self._lost = self._counted = 0.0  # seconds of bubbles, and of all, since the last sample
        self._writer.begin(text.printable(policy, _NAME))
        for lane, view in views.items():
            self._writer.track(_lane_track(lane, view.role.value))
            if view.role.decodes:
                self._writer.track(_decision_track(lane))

    # -- lanes

    def ran(self, stretch: Stretch, missing: int) -> None:
        """See Sink."""
        if self._views[stretch.lane].role.decodes:
            seconds = stretch.end - stretch.begin
            balanced = seconds if stretch.balanced_s is None else stretch.balanced_s
            self._lost += sum(split(seconds, balanced, stretch.served, missing)[1:])
            self._counted += seconds
        open_ = self._open.get(stretch.lane)
        if open_ is not None and open_.takes(stretch):
            open_.end = stretch.end
            open_.steps += stretch.steps
            if open_.balanced_s is not None and stretch.balanced_s is not None:
                open_.balanced_s += stretch.balanced_s
            return
        self._close_stretch(stretch.lane)
        self._open[stretch.lane] = _Open(stretch, stretch.end, stretch.steps, stretch.balanced_s)

    def _close_stretch(self, lane: str) -> None:
        done = self._open.pop(lane, None)
        if done is None:
            return
        first, seconds = done.first, done.end - done.first.begin
        args: dict[str, object] = {"steps": done.steps, "ms a step": round(1e3 * seconds / done.steps, 6)}
        args["order"] = first.order
        if first.members or not first.chunks:
            spread = first.longest - first.shortest
            args |= {"members": first.members, "sum L": first.total, "max L": first.longest, "spread": spread}
        if first.chunks:
            args["prefill tokens (first step)"] = sum(chunk.end - chunk.start for chunk in first.chunks)
            args["prefill of"] = ", ".join(text.printable(chunk.request, 40) for chunk in first.chunks[:8])
        if done.balanced_s is not None and seconds > 0:
            args["iteration bubble"] = text.percent(max(0.0, 1 - done.balanced_s / seconds))
        track = _lane_track(lane, self._views[lane].role.value)
        kind = "prefill" if first.chunks else "decode"
        self._writer.slice(track, first.begin, done.end, _stretch_name(first), kind, args)

    def paused(self, pause: Pause) -> None:
        """See Sink."""
        self._close_stretch(pause.lane)
        role = self._views[pause.lane].role
        if role.decodes:
            self._counted += pause.end - pause.begin
            self._lost += 0.0 if pause.reason is Idle.NO_WORK else pause.end - pause.begin
        self._writer.slice(
            _lane_track(pause.lane, role.value), pause.begin, pause.end, _PAUSES[pause.reason], "idle", {}
        )

    # -- calls

    def called(self, now: float, events: Sequence[Event], plan: Plan) -> None:
        """See Sink."""
        for event in events:
            if isinstance(event, CopyDone | CopyFailed):
                self._copied(now, event)
        for copy in plan.copies:
            self._copies[copy.copy] = (now, copy)
        for lane, view in self._views.items():
            if view.why:  # of the last composition that chose anything: its joins may have waited for copies since
                self._whys[lane] = view.why
        for step in plan.steps:
            if (step.joins or step.leaves) and self._views[step.lane].role.decodes:
                self._decided(now, step)
        if now - self._sampled >= SAMPLE_S:
            self._sample(now)

    def _copied(self, now: float, event: CopyDone | CopyFailed) -> None:
        known = self._copies.pop(event.copy, None)
        if known is None:
            return
        ordered, copy = known
        cluster = self._cluster
        source, target = cluster.place(copy.source), cluster.place(copy.target)
        track, request = f"copies {source} → {target}", text.printable(copy.request, _NAME)
        nbytes = cluster.layout.copy_bytes(copy.start, copy.end)
        args: dict[str, object] = {
            "bytes": nbytes,
            "from": copy.source,
            "to": copy.target,
            "tokens": copy.end - copy.start,
        }
        args |= {"why": text.printable(copy.why, _NAME)} if copy.why else {}
        if isinstance(event, CopyFailed):
            reason = text.printable(event.reason, _NAME) or "no reason given"
            self._writer.instant(track, now, f"copy of {request} failed: {reason}", "copy", args)
            return
        link = cluster.route(copy.source, copy.target)
        channels = (track, *(link.shares if link is not None else ()))
        begin = max(ordered, *(self._link_end.get(channel, ordered) for channel in channels))
        self._link_end.update(dict.fromkeys(channels, now))
        args["waited for the link, ms"] = round(1e3 * (begin - ordered), 6)
        if copy.deadline is not None:
            args["late, ms"] = round(1e3 * max(0.0, now - copy.deadline), 6)
        staged = cluster.tiers[copy.target].staged
        name = f"{'stage ' if staged else ''}{request}: {text.data(nbytes)}"
        self._writer.slice(track, begin, now, name, "staging" if staged else "copy", args)

    def _decided(self, now: float, step: Step) -> None:
        """An order that changes who decodes begins a turn, unless it only lets more in for the same reason."""
        why = text.printable(self._whys.get(step.lane) or step.why or "no reason given", _NAME)
        decision = self._decisions.get(step.lane)
        if decision is None or decision.why != why or step.leaves:
            self._close_decision(step.lane, now)
            decision = self._decisions[step.lane] = _Decision(now, why)
        decision.orders += 1
        decision.joined += len(step.joins)
        decision.left += len(step.leaves)

    def _close_decision(self, lane: str, now: float) -> None:
        done = self._decisions.pop(lane, None)
        if done is not None:
            args = {"orders": done.orders, "joined": done.joined, "left": done.left}
            self._writer.slice(_decision_track(lane), done.since, now, done.why, "decision", args)

    def _sample(self, now: float) -> None:
        self._sampled = now
        view = next(iter(self._views.values()))
        claimed = sum(len(each.candidates) + len(each.joining) for each in self._views.values())
        self._writer.counter("pool", now, {"requests": len(view.pool) + claimed})
        self._writer.counter("queue", now, {"requests": len(view.queue)})
        if self._counted > 0:
            self._writer.counter("bubble share, %", now, {"of lane time": round(100 * self._lost / self._counted, 3)})
        self._lost = self._counted = 0.0
        for lane, each in self._views.items():
            if each.role.decodes:
                self._writer.counter(
                    f"{lane} batch size", now, {"members": sum(len(rank.batch) for rank in each.ranks)}
                )
            for rank in each.ranks:
                self._writer.counter(f"{rank.tier} free blocks", now, {"blocks": rank.free})

    def end(self, now: float, latency: LatencyCollector | None) -> None:
        """See Sink."""
        for lane in tuple(self._open):
            self._close_stretch(lane)
        for lane in tuple(self._decisions):
            self._close_decision(lane, now)
        self._writer.end(now)


def _lane_track(lane: str, role: str) -> str:
    return f"{lane} ({role})"


def _decision_track(lane: str) -> str:
    return f"{lane}: decisions"


def _stretch_name(stretch: Stretch) -> str:
    """``n 64, sum L 812k, max 40.1k, spread 39.0k``; a prefill beside it comes first: ``prefill r7 (8.19k a step)``."""
    parts = []
    if stretch.chunks:
        tokens = sum(chunk.end - chunk.start for chunk in stretch.chunks)
        who = text.printable(stretch.chunks[0].request, 40)
        if len(stretch.chunks) > 1:
            who = f"{len(stretch.chunks)} requests"
        parts.append(f"prefill {who} ({text.quantity(tokens)} a step)")
    if stretch.members:
        spread = stretch.longest - stretch.shortest
        parts.append(
            f"n {stretch.members}, sum L {text.quantity(stretch.total)}, max {text.quantity(stretch.longest)}, "
            f"spread {text.quantity(spread)}"
        )
    return " + ".join(parts) or "rows past their requests' ends"
