"""Looks on while a run goes, and tells whoever draws it what lanes did: one pass over events and plans for all of them.

It reads events, plans and the scheduler's views after each call, and changes nothing: what it sees is there without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ..events import DeviceBack, DeviceLost, Event, LaneBack, LaneLost, StepsDone, StepsFailed
from ..metrics import LatencyCollector
from ..metrics.bubbles import Idle, Reasons
from ..metrics.latency import seconds_after
from ..plan import Plan
from ..scheduler import Scheduler
from ..scheduler_view import SchedulerView
from ..sim.meter import waits_for
from .stretches import LaneTrack, Pause, Stretch

Views = dict[str, SchedulerView]


class Sink(Protocol):
    """Whoever draws runs."""

    def begin(self, policy: str, views: Views) -> None:
        """A run begins; ``views`` are the scheduler's, by lane."""
        ...

    def ran(self, stretch: Stretch, missing: int) -> None:
        """A lane ran steps in which ``missing`` more pooled requests could have been members. In order of time."""
        ...

    def paused(self, pause: Pause) -> None:
        """A lane ran no step. In order of time with its stretches."""
        ...

    def called(self, now: float, events: Sequence[Event], plan: Plan) -> None:
        """The scheduler was called; the lanes' news of that call were told before."""
        ...

    def end(self, now: float, latency: LatencyCollector | None) -> None:
        """The run is over."""
        ...


class Lookout:
    """A RunWatch for any number of sinks."""

    _views: Views
    _tracks: dict[str, LaneTrack]

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._sinks = tuple(sinks)

    def begin(self, policy: str, scheduler: Scheduler) -> None:
        """A run begins; what the scheduler holds already (it may have been restored) is taken in."""
        cluster = scheduler.cluster
        self._views = {lane.id: scheduler.view(lane.id) for lane in cluster.lanes}
        self._lane_of = {device: lane.id for lane in cluster.lanes for device in lane.ranks}
        self._tracks = {
            lane.id: LaneTrack(lane, cluster.layout.block_size, view.costs if view.role.decodes else None)
            for lane, view in zip(cluster.lanes, self._views.values(), strict=True)
        }
        for lane, view in self._views.items():
            for rank in view.ranks:
                for request in rank.batch:
                    self._tracks[lane].join(request, rank.rank, rank.batch.context_length(request) - view.step)
        self._reasons = {lane: Reasons() for lane in self._tracks}
        self._missing = dict.fromkeys(self._tracks, 0)
        self._until: dict[str, float] = {}  # told to the sinks
        self._now = 0.0
        for sink in self._sinks:
            sink.begin(policy, self._views)

    def after(self, now: float, events: Sequence[Event], plan: Plan) -> None:
        """The scheduler was called. O(events + joins + leaves + lanes), and O(log n) for each change of a batch."""
        if not self._until:
            self._until = dict.fromkeys(self._tracks, now)
        self._now = now
        later = seconds_after(events)
        for index, event in enumerate(events):
            if isinstance(event, StepsDone | StepsFailed):
                told = event.ended if isinstance(event, StepsDone) else None
                self._reported(event, now - later.get(index, 0.0) if told is None else told)
            elif isinstance(event, LaneLost | DeviceLost | LaneBack | DeviceBack):
                self._lane_changed(event)
        for step in plan.steps:
            self._tracks[step.lane].ordered(step)
        for lane in plan.given_up:
            self._tracks[lane].stopped()
        for lane, view in self._views.items():
            if view.role.decodes:
                reason, self._missing[lane] = waits_for(view)
            else:
                reason = Idle.BATCH if len(view.queue) else Idle.NO_WORK
            self._reasons[lane].saw(now, reason)
        for sink in self._sinks:
            sink.called(now, events, plan)

    def _reported(self, event: StepsDone | StepsFailed, end: float) -> None:
        track = self._tracks.get(event.lane)
        if track is None:
            return
        for stretch in track.reported(event, end):
            self._idle_until(event.lane, stretch.begin)
            self._until[event.lane] = max(self._until[event.lane], stretch.end)
            for sink in self._sinks:
                sink.ran(stretch, self._missing[event.lane])
        if isinstance(event, StepsFailed):
            track.stopped()

    def _lane_changed(self, event: LaneLost | DeviceLost | LaneBack | DeviceBack) -> None:
        lane = event.lane if isinstance(event, LaneLost | LaneBack) else self._lane_of.get(event.device)
        if lane in self._tracks:
            self._tracks[lane].stopped(event.next_step if isinstance(event, LaneBack | DeviceBack) else None)

    def _idle_until(self, lane: str, end: float) -> None:
        for start, stop, reason in self._reasons[lane].over(self._until[lane], end):
            for sink in self._sinks:
                sink.paused(Pause(lane, start, stop, reason))
        self._until[lane] = max(self._until[lane], end)

    def end(self, latency: LatencyCollector | None = None) -> None:
        """The run is over: lanes have been idle since their last steps."""
        for lane in self._until:
            self._idle_until(lane, self._now)
        for sink in self._sinks:
            sink.end(self._now, latency)
