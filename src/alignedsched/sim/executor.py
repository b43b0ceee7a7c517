"""The simulated executor: an ordinary executor in virtual time, under the real scheduler.

It jumps from event to event. It alone knows how many tokens each request will make. It also keeps its own account of
what lies where and refuses, loudly, any plan that a real device could not carry out: a join without KV, a copy from
where nothing is, memory beyond capacity. ``spans`` and ``durations`` tell what lanes did since the last ``wait``.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from ..batch import RunningBatch
from ..cluster import Cluster
from ..costs import Costs
from ..errors import ExecutorError
from ..events import CopyDone, CopyFailed, ExecutorEvent
from ..plan import Copy, Plan, Step
from .lane import SimLane
from .links import Links
from .segment import Span, Work


class SimulatedExecutor:
    """Carries plans out in virtual time. ``costs`` may be one for all lanes, or given by lane id."""

    capabilities: Mapping[str, bool] = MappingProxyType({"virtual_time": True, "prompt": True})

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
        self._all = tuple(self._lanes.values())
        self._links = Links(cluster)
        self._ended: list[ExecutorEvent] = []  # aborted copies, to be reported at once
        self._tokens: dict[str, dict[str, int]] = {}  # request -> tier -> readable tokens, while not decoding there
        self._used: dict[str, int] = dict.fromkeys(cluster.tiers, 0)  # blocks of those
        self._room: dict[str, int] = {tier.id: tier.blocks for tier in cluster.tiers.values()}
        self._restful = tuple(tier for tier in self._room if not any(tier in lane.ranks for lane in cluster.lanes))
        self._into: dict[tuple[str, str], int] = {}  # (request, tier) -> copy on its way there
        self._astray: set[int] = set()  # copies whose target was given up: nothing arrives
        self._dropped: set[tuple[str, str]] = set()  # by the plan being taken
        self._released: set[str] = set()  # likewise
        self.copied_bytes: dict[tuple[str, str], int] = dict.fromkeys(cluster.link, 0)
        self.staged_bytes = 0
        self.steps = 0
        self.spans: list[Span] = []
        self.durations: dict[str, list[float]] = {}

    def expect(self, request: str, output_tokens: int) -> None:
        """Say how many tokens a request will make; nobody else is told."""
        self._work.to_make[request] = output_tokens

    def now(self) -> float:
        return self._now

    def members(self, lane: str) -> int:
        """Members of a lane now."""
        return len(self._lanes[lane].ranks)

    def blocks_held(self, tier: str) -> int:
        """Blocks of a tier in use now, those of copies under way included. O(lanes)."""
        held = self._used[tier]
        for lane in self._all:
            if tier in lane.lane.ranks:
                held += lane.batches[lane.lane.ranks.index(tier)].blocks(self._last_step(lane))
        return held

    def tokens_held(self, request: str, tier: str) -> int:
        """Tokens of a request, which does not decode there, in a tier."""
        return self._tokens.get(request, {}).get(tier, 0)

    # -- waiting

    def wait(self, until: float | None) -> list[ExecutorEvent]:
        """Jump to the next thing worth reporting, at the latest to ``until``."""
        self.spans = []
        events, self._ended = self._ended, []
        while not events and not self._due():
            self._now = max(self._now, self._next(until))
            for lane in self._all:
                if lane.segment is not None:
                    self.spans += lane.advance(self._now)
                    if lane.entered or lane.left:
                        self._settle(lane)
            for copy in self._links.arrived(self._now):
                self._arrive(copy)
                events.append(CopyDone(copy.copy))
            if until is not None and self._now >= until:
                break
        self._collect_durations()
        for lane in self._all:
            events += lane.reports(self._now)
        return events

    def _due(self) -> bool:
        return any(lane.due() for lane in self._all)

    def _next(self, until: float | None) -> float:
        """When the next thing happens that may have to be reported."""
        first, copied = until, self._links.next_end()
        if copied is not None and (first is None or copied < first):
            first = copied
        for lane in self._all:
            at = lane.next_event()
            if at is not None and (first is None or at < first):
                first = at
        if first is None:
            raise ExecutorError("nothing is under way and nobody said until when to wait: the scheduler is stuck")
        return first

    def _collect_durations(self) -> None:
        self.durations = {}
        for span in self.spans:
            self.steps += len(span.durations)
            known = self.durations.get(span.lane)
            self.durations[span.lane] = span.durations if known is None else known + span.durations

    # -- plans

    def submit(self, plan: Plan) -> None:
        """Take a plan: members out, drops and releases, copies, orders. Raises ExecutorError if it is not possible."""
        if plan.given_up:
            raise ExecutorError(f"lane {plan.given_up[0]!r} is given up, but works: step_lease_s is too short")
        running: set[str] = set()  # lanes that an order of this plan lets run
        for step in plan.steps:
            if step.leaves and step.lane not in running:
                self._lanes[step.lane].depart(step.leaves, self._now)
                self._settle(self._lanes[step.lane])
            if step.horizon:
                running.add(step.lane)
        for drop in plan.drops:
            self._drop(drop.request, drop.tier, drop.keep)
        for release in plan.releases:
            self._release(release.request)
        for abort in plan.aborts:
            copy = self._links.abort(abort.copy)
            if copy is not None:
                self._charge(copy, -1)
                self._landed(copy)
                self._ended.append(CopyFailed(copy.copy, "aborted"))
        for copy in plan.copies:
            self._send(copy)
        for step in plan.steps:
            self._order(step)
        for lane in self._all:
            if lane.at_rest:
                lane.begin(self._now)
                if lane.entered or lane.left:
                    self._settle(lane)
        if plan:
            self._dropped.clear()
            self._released.clear()
            self._check_memory()

    def _order(self, step: Step) -> None:
        lane = self._lanes[step.lane]
        for join in step.joins:
            tier = lane.lane.ranks[join.rank]
            if join.request in self._work.finished:
                continue
            tokens = self._tokens.get(join.request, {}).get(tier, -1)
            if tokens < join.context_length - 1:
                raise ExecutorError(f"order {step.order}: {join.request!r} joins on {tier!r}: {tokens} tokens there")
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
        self._charge(copy, 1)
        self._into[copy.request, copy.target] = copy.copy
        self._links.submit(copy, self._now)

    def _charge(self, copy: Copy, sign: int) -> None:
        """A copy's target is in use from its start on, and no more if it ends before it began."""
        blocks = self._layout.blocks
        self._used[copy.target] += sign * (blocks(copy.end) - blocks(copy.start))

    def _arrive(self, copy: Copy) -> None:
        link = self._cluster.place(copy.source), self._cluster.place(copy.target)
        self.copied_bytes[link] += self._links.bytes_of(copy)
        if self._cluster.tiers[copy.target].staged:
            self.staged_bytes += self._links.bytes_of(copy)
        if self._landed(copy):
            self._tokens.setdefault(copy.request, {})[copy.target] = copy.end
        else:
            self._charge(copy, -1)

    def _landed(self, copy: Copy) -> bool:
        """A copy has ended; False if its target was given up meanwhile."""
        if copy.copy in self._astray:
            self._astray.remove(copy.copy)
            return False
        self._into.pop((copy.request, copy.target), None)
        return True

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
            if request not in self._released and (request, lane.lane.ranks[rank]) not in self._dropped:
                self._hold(request, lane.lane.ranks[rank], tokens)
        lane.entered.clear()
        lane.left.clear()

    def _drop(self, request: str, tier: str, keep: int) -> None:
        """Drop KV; of a member, when the order in this very plan has taken it out of its batch."""
        if keep:
            if self._tokens.get(request, {}).get(tier, 0) > keep:
                self._hold(request, tier, keep)
            return
        self._dropped.add((request, tier))
        astray = self._into.pop((request, tier), None)
        if astray is not None:
            self._astray.add(astray)
        self._forget(request, tier)

    def _release(self, request: str) -> None:
        self._released.add(request)
        for tier in tuple(self._tokens.get(request, ())):
            self._forget(request, tier)
        self._work.to_make.pop(request, None)
        self._work.finished.discard(request)

    def _forget(self, request: str, tier: str) -> None:
        tiers = self._tokens.get(request)
        if tiers is None or tier not in tiers:
            return
        self._used[tier] -= self._layout.blocks(tiers.pop(tier))
        if not tiers:
            del self._tokens[request]

    def _check_memory(self) -> None:
        for lane in self._all:
            step = self._last_step(lane)
            for tier, batch in zip(lane.lane.ranks, lane.batches, strict=True):
                self._check_tier(tier, self._used[tier] + batch.blocks(step))
        for tier in self._restful:
            self._check_tier(tier, self._used[tier])

    def _last_step(self, lane: SimLane) -> int:
        """The last step launched that is known to write what the batch says."""
        return lane.done if lane.segment is None else min(lane.launched(self._now), lane.segment.last)

    def _check_tier(self, tier: str, used: int) -> None:
        if used > self._room[tier]:
            raise ExecutorError(f"tier {tier!r} holds {used} of {self._room[tier]} blocks")
