"""Watches the lanes of a simulated run that decode: how much of their time were bubbles, and of which kind."""

from __future__ import annotations

from ..cluster import Cluster
from ..metrics.bubbles import BubbleMeter, Idle, Reasons, fractions
from ..scheduler import Scheduler
from ..views import LaneView
from .segment import Span


class LaneMeters:
    """A BubbleMeter for each lane that decodes, fed with what lanes did and what waited meanwhile.

    Time counts from the first look on, which is when the first request arrives.
    """

    def __init__(self, cluster: Cluster, scheduler: Scheduler) -> None:
        self._views = {ln.id: scheduler.view(ln.id) for ln in cluster.lanes if cluster.role(ln).decodes}
        self._meters = {lane: BubbleMeter() for lane in self._views}
        self._until: dict[str, float] = {}  # time accounted for
        self._reasons = {lane: Reasons() for lane in self._views}
        self._missing = dict.fromkeys(self._views, 0)

    def observe(self, now: float, spans: list[Span]) -> None:
        """Take in what lanes did since the last plan, then look at what waits now. O(spans + lanes)."""
        if not self._until:
            self._until = dict.fromkeys(self._views, now)
        for span in spans:
            meter = self._meters.get(span.lane)
            if meter is None:
                continue
            self._idle(span.lane, span.begin)
            balanced = span.balanced * len(span.durations)
            meter.step(span.end - span.begin, balanced, span.served, self._missing[span.lane])
            self._until[span.lane] = span.end
        for lane, view in self._views.items():
            reason, self._missing[lane] = waits_for(view)
            self._reasons[lane].saw(now, reason)

    def _idle(self, lane: str, until: float) -> None:
        for begin, end, reason in self._reasons[lane].over(self._until[lane], until):
            self._meters[lane].idle(end - begin, reason)
        self._until[lane] = max(self._until[lane], until)

    def close(self, now: float) -> dict[str, float]:
        """Account for the time up to ``now`` and return the fractions over all lanes."""
        for lane in self._until:
            self._idle(lane, now)
        return fractions(self._meters.values())


def waits_for(view: LaneView) -> tuple[Idle, int]:
    """Why a lane that decodes would be idle now, and how many pooled requests could be members besides. O(members).

    Such a request is one by count and by free blocks, were it of the members' mean size.
    """
    pooled = len(view.pool) + len(view.candidates)
    wanted = len(view.joining)
    if wanted:
        reason = Idle.COPY
    elif pooled or (len(view.queue) and view.role.prefills):
        reason = Idle.BATCH
    else:
        reason = Idle.NO_WORK
    if not pooled:
        return reason, 0
    members = sum(len(rank.batch) for rank in view.ranks)
    seats = max(0, view.lane.max_members * len(view.ranks) - members - wanted)
    each = max(1, sum(rank.batch.blocks for rank in view.ranks) // max(1, members))
    room = sum(max(0, rank.free) for rank in view.ranks) // each
    return reason, min(pooled, seats, room)
