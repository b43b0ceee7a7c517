"""The simulated executor: an ordinary executor in virtual time, under the real scheduler.

It jumps from event to event. It alone knows how many tokens each request will make. It also keeps its own account of
what lies where and refuses, loudly, any plan that a real device could not carry out: a join without KV, a copy from
where nothing is, memory beyond capacity. ``spans`` and ``durations`` tell what lanes did since the last ``wait``.
"""

from __future__ import annotations

import numpy as np

from ..batch import RunningBatch
from ..cluster import Cluster
from ..costs import Costs
from ..errors import ExecutorError
from ..events import CopyDone, CopyFailed, ExecutorEvent
from ..plan import Copy, Plan, Step
from .lane import FloatArray, SimLane, Span, Work
from .links import Links


class SimulatedExecutor:
    """Carries plans out in virtual time. ``costs`` may be one for all lanes, or given by lane id."""

    def __init__(self, cluster: Cluster, costs: Costs | dict[str, Costs]) -> None:
        self._cluster = cluster
        self._layout = cluster.layout
        self._now = 0.0
        self._work = Work()
        self._lanes = {
            lane.id: SimLane(
                lane,
                costs[lane.id] if isinstance(costs, dict) else costs,
                self._work,
                tuple(RunningBatch(self._layout.block_size) for _ in lane.ranks),
            )
            for lane in cluster.lanes
        }
        self._links = Links(cluster)
        self._ended: list[ExecutorEvent] = []  # aborted copies, to be reported at once
        self._tokens: dict[str, dict[str, int]] = {}  # request -> tier -> readable tokens, while not decoding there
        self._used: dict[str, int] = dict.fromkeys(cluster.tiers, 0)  # blocks of those
        self._dropped: set[tuple[str, str]] = set()  # by the plan being taken
        self.copied_bytes: dict[tuple[str, str], int] = dict.fromkeys(cluster.link, 0)
        self.staged_bytes = 0
        self.steps = 0
        self.spans: list[Span] = []
        self.durations: dict[str, FloatArray] = {}

    def expect(self, request: str, output_tokens: int) -> None:
        """Say how many tokens a request will make; nobody else is told."""
        self._work.to_make[request] = output_tokens

    def now(self) -> float:
        return self._now

    def members(self, lane: str) -> int:
        """Members of a lane now."""
        return len(self._lanes[lane].ranks)

    # -- waiting

    def wait(self, until: float | None) -> list[ExecutorEvent]:
        """Jump to the next thing worth reporting, at the latest to ``until``."""
        self.spans = []
        events, self._ended = self._ended, []
        while not events and not any(lane.due() for lane in self._lanes.values()):
            target = self._next(until)
            self._now = max(self._now, target)
            for lane in self._lanes.values():
                self.spans += lane.advance(self._now)
                self._settle(lane)
            for copy in self._links.arrived(self._now):
                self._arrive(copy)
                events.append(CopyDone(copy.copy))
            if until is not None and self._now >= until:
                break
        self._collect_durations()
        for lane in self._lanes.values():
            events += lane.reports(self._now)
        return events

    def _next(self, until: float | None) -> float:
        times = [t for t in (lane.next_event() for lane in self._lanes.values()) if t is not None]
        times += [t for t in (self._links.next_end(), until) if t is not None]
        if not times:
            raise ExecutorError("nothing is under way and nobody said until when to wait: the scheduler is stuck")
        return min(times)

    def _collect_durations(self) -> None:
        by_lane: dict[str, list[FloatArray]] = {}
        for span in self.spans:
            by_lane.setdefault(span.lane, []).append(span.durations)
            self.steps += len(span.durations)
        self.durations = {lane: np.concatenate(parts) if len(parts) > 1 else parts[0] for lane, parts in by_lane.items()}

    # -- plans

    def submit(self, plan: Plan) -> None:
        """Take a plan: members out, drops and releases, copies, orders. Raises ExecutorError if it is not possible."""
        for step in plan.steps:
            if step.leaves:
                self._lanes[step.lane].depart(step.leaves, self._now)
                self._settle(self._lanes[step.lane])
        for drop in plan.drops:
            self._drop(drop.request, drop.tier)
        for release in plan.releases:
            for tier in self._cluster.tiers:
                self._drop(release.request, tier)
            self._work.to_make.pop(release.request, None)
            self._work.finished.discard(release.request)
        for abort in plan.aborts:
            copy = self._links.abort(abort.copy)
            if copy is not None:
                self._ended.append(CopyFailed(copy.copy, "aborted"))
        for copy in plan.copies:
            self._send(copy)
        for step in plan.steps:
            self._order(step)
        for lane in self._lanes.values():
            if lane.segment is None or lane.done >= lane.segment.last:
                lane.begin(self._now)
                self._settle(lane)
        self._dropped.clear()
        if plan:
            self._check_memory()

    def _order(self, step: Step) -> None:
        lane = self._lanes[step.lane]
        for join in step.joins:
            tier = lane.lane.ranks[join.rank]
            if join.request in self._work.finished:
                continue
            tokens = self._tokens.get(join.request, {}).get(tier, -1)
            if tokens < join.context_length - 1:
                raise ExecutorError(f"order {step.order}: {join.request!r} joins on {tier!r} with {tokens} tokens there")
        for chunk in step.chunks:
            tier = lane.lane.ranks[chunk.rank]
            if self._tokens.get(chunk.request, {}).get(tier, 0) != chunk.start:
                raise ExecutorError(f"order {step.order}: {chunk} does not go on where its KV ends")
            self._hold(chunk.request, tier, chunk.end)
        lane.take(step, self._now)

    def _send(self, copy: Copy) -> None:
        there = self._tokens.get(copy.request, {})
        if there.get(copy.source, 0) < copy.end or there.get(copy.target, 0) < copy.start:
            raise ExecutorError(f"{copy} reads or extends what is not there: {there}")
        self._used[copy.target] += self._layout.blocks(copy.end) - self._layout.blocks(there.get(copy.target, 0))
        self._links.submit(copy, self._now)

    def _arrive(self, copy: Copy) -> None:
        link = self._cluster.place(copy.source), self._cluster.place(copy.target)
        self.copied_bytes[link] += self._links.bytes_of(copy)
        if self._cluster.tiers[copy.target].staged:
            self.staged_bytes += self._links.bytes_of(copy)
        self._tokens.setdefault(copy.request, {})[copy.target] = copy.end

    # -- the executor's own account of memory

    def _hold(self, request: str, tier: str, tokens: int) -> None:
        """KV of a request reaches so far in a tier now (or will, when the chunk or step under way ends)."""
        tiers = self._tokens.setdefault(request, {})
        self._used[tier] += self._layout.blocks(tokens) - self._layout.blocks(tiers.get(tier, 0))
        tiers[tier] = tokens

    def _settle(self, lane: SimLane) -> None:
        """Members' KV is counted with their batch; what leaves a batch and is not dropped is counted here again."""
        for request, rank in lane.entered:
            self._forget(request, lane.lane.ranks[rank])
        for request, rank, tokens in lane.left:
            if (request, lane.lane.ranks[rank]) not in self._dropped:
                self._hold(request, lane.lane.ranks[rank], tokens)
        lane.entered.clear()
        lane.left.clear()

    def _drop(self, request: str, tier: str) -> None:
        """Drop KV; of a member, when the order in this very plan has taken it out of its batch."""
        self._dropped.add((request, tier))
        self._forget(request, tier)

    def _forget(self, request: str, tier: str) -> None:
        tiers = self._tokens.get(request)
        if tiers is None or tier not in tiers:
            return
        self._used[tier] -= self._layout.blocks(tiers.pop(tier))
        if not tiers:
            del self._tokens[request]

    def _check_memory(self) -> None:
        used = dict(self._used)
        for lane in self._lanes.values():
            step = lane.done if lane.segment is None else min(lane.launched(self._now), lane.segment.last)
            for tier_id, batch in zip(lane.lane.ranks, lane.batches, strict=True):
                used[tier_id] += batch.blocks(step)
        for tier in self._cluster.tiers.values():
            if used[tier.id] > tier.blocks:
                raise ExecutorError(f"tier {tier.id!r} holds {used[tier.id]} of {tier.blocks} blocks")
