"""``FaultyExecutor``: any executor, with faults from a plan put between it and the scheduler.

It never lies about the executor inside. What it withholds from the scheduler it also withholds from the executor, or
undoes there: an order that failed reaches the executor as a stop; of a failed copy the executor writes nothing, a part
or all, and drops it when the scheduler says so; a lost device's KV is dropped inside. Faults that need the executor to
be stopped in the middle of a step (part of a step written, an ended step's output lost, a lane that falls silent)
cannot be faked from outside: the world of ``alignedsched.testing`` has them (see ``docs/faults.md``).
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable

from attrs import define, evolve, field

from ..cluster import HOST, Cluster, Tier
from ..driver import Executor
from ..errors import ConfigError
from ..events import (
    CapacityChanged,
    CopyDone,
    CopyFailed,
    DeviceBack,
    DeviceLost,
    ExecutorEvent,
    LaneBack,
    LaneLost,
    LinkChanged,
    StagedLost,
    StepsDone,
    StepsFailed,
)
from ..plan import Copy, Drop, Plan, Step
from .faults import VIRTUAL_TIME, Chances, Fault, FaultPlan
from .faulty_clock import FaultyClock


@define(eq=False)
class _Lane:
    """What the wrapper knows of a lane inside."""

    order: Step | None = None  # the newest one it has got
    members: dict[str, None] = field(factory=dict)
    at_rest: bool = True
    through: int = -1
    failing: int | None = None  # the order whose report becomes a failure
    poisoned: tuple[str, ...] = ()
    void: bool = False  # orders are void until the failure has been answered
    lost: bool = False


class FaultyExecutor:
    """Wraps an executor. ``struck`` counts the faults by family. Raises ConfigError for a plan it cannot carry out.

    The time families need an executor in virtual time (``capabilities["virtual_time"]``).
    """

    def __init__(self, inner: Executor, cluster: Cluster, plan: FaultPlan) -> None:
        self.inner = inner
        self.cluster = cluster
        self.capabilities = dict(getattr(inner, "capabilities", {}))
        timed = sorted({fault.family for fault in plan.faults} & VIRTUAL_TIME)
        if timed and not self.capabilities.get("virtual_time"):
            raise ConfigError(f"faults {', '.join(timed)} need an executor in virtual time")
        self.struck: dict[str, int] = {}
        self._chances = Chances(plan)
        self._clock = FaultyClock(inner, self._chances.rng, self._strikes)
        self._lanes = {lane.id: _Lane() for lane in cluster.lanes}
        self._lane_of = {rank: lane.id for lane in cluster.lanes for rank in lane.ranks}
        self._copies: dict[int, Copy] = {}  # the executor inside has them
        self._fates: dict[int, Callable[[ExecutorEvent], None]] = {}  # what becomes of a copy's completion
        self._withheld: dict[int, Copy] = {}
        self._later: list[tuple[float, int, ExecutorEvent]] = []  # heap of (time, number, report)
        self._count = 0
        self._where: dict[str, dict[str, None]] = {tier: {} for tier in cluster.tiers}  # requests that may have KV
        self._told: deque[ExecutorEvent] = deque(maxlen=16)
        self._down: set[tuple[str, str]] = set()
        self._lost_devices: set[str] = set()
        self._begun = False

    # -- time and chances

    def now(self) -> float:
        return self._clock.read()

    def _strikes(self, family: str, target: str | None = None) -> Fault | None:
        fault = self._chances.strikes(family, self._clock.now(), target)
        if fault is not None:
            self.struck[family] = self.struck.get(family, 0) + 1
        return fault

    def _say(self, event: ExecutorEvent, after: float = 0.0) -> None:
        """Report something, now or later; never after infinite time."""
        if math.isfinite(after):
            self._count += 1
            heapq.heappush(self._later, (self._clock.now() + after, self._count, event))

    # -- plans

    def submit(self, plan: Plan) -> None:
        """Pass a plan on, but for what fails at once."""
        for drop in plan.drops:
            if not drop.keep:
                self._where[drop.tier].pop(drop.request, None)
        for release in plan.releases:
            for there in self._where.values():
                there.pop(release.request, None)
        for step in plan.steps:
            for chunk in step.chunks:
                self._where[self.cluster.lane[step.lane].ranks[chunk.rank]][chunk.request] = None
        steps = tuple(self._order(step, plan) for step in plan.steps if not self._lanes[step.lane].void)
        aborts = tuple(abort for abort in plan.aborts if not self._abort(abort.copy))
        copies = tuple(sent for copy in plan.copies if (sent := self._send(copy)) is not None)
        self.inner.submit(evolve(plan, steps=steps, aborts=aborts, copies=copies))

    def _order(self, step: Step, plan: Plan) -> Step:
        """An order as the executor gets it: as it is, or as a stop if it is to fail."""
        lane = self._lanes[step.lane]
        alone = sum(other.lane == step.lane for other in plan.steps) == 1
        if lane.at_rest and alone and step.horizon and self._strikes("step_failed", step.lane):
            named = [join.request for join in step.joins] + [chunk.request for chunk in step.chunks]
            lane.poisoned = tuple(named[:1]) if self._chances.rng.random() < 0.3 else ()
            lane.failing, lane.void = step.order, True
            step = Step(step.lane, step.order, 0, (), self._all_leave(lane, step.leaves), (), "fails")
        else:
            for request in step.leaves:
                lane.members.pop(request, None)
            lane.members.update((join.request, None) for join in step.joins)
        lane.order, lane.at_rest = step, False
        return step

    @staticmethod
    def _all_leave(lane: _Lane, leaves: tuple[str, ...] = ()) -> tuple[str, ...]:
        gone = tuple(dict.fromkeys((*leaves, *lane.members)))
        lane.members.clear()
        return gone

    # -- copies

    def _abort(self, copy: int) -> bool:
        """Whether the executor need not hear of an abort: it has never heard of the copy, or has ended it."""
        return copy not in self._copies

    def _send(self, copy: Copy) -> Copy | None:
        link = self.cluster.place(copy.source), self.cluster.place(copy.target)
        name = f"{link[0]}->{link[1]}"
        if link in self._down:
            self._withhold(copy, "the link is down")
            return None
        if self._strikes("copy_failed", name):
            written = self._chances.rng.choice(("nothing", "some", "all"))
            if written == "nothing" or copy.end - copy.start < 2:
                self._withhold(copy, "nothing was written")
                return None
            sent = evolve(copy, end=(copy.start + copy.end) // 2) if written == "some" else copy
            self._fates[copy.copy] = lambda event: self._say(CopyFailed(copy.copy, f"{written} of it was written"))
        else:
            sent = copy
            fault = self._strikes("copy_lost", name) or self._strikes("copy_delayed", name)
            if fault is not None:
                after = fault.seconds if fault.family == "copy_lost" else self._chances.rng.random() * fault.seconds
                self._fates[copy.copy] = lambda event: self._say(event, after)
        self._copies[copy.copy] = sent
        self._where[copy.target][copy.request] = None
        return sent

    def _withhold(self, copy: Copy, why: str) -> None:
        self._withheld[copy.copy] = copy
        self._say(CopyFailed(copy.copy, why), self._chances.rng.random() * 0.01)

    def _copy_ended(self, event: CopyDone | CopyFailed) -> list[ExecutorEvent]:
        del self._copies[event.copy]
        fate = self._fates.pop(event.copy, None)
        if fate is None:
            return [event]
        fate(event)
        return []

    # -- reports

    def wait(self, until: float | None) -> list[ExecutorEvent]:
        """Wait as the executor does, and change what it says."""
        if not self._begun:
            self._begun = True
            self._promise_less()
        now = self._clock.now()
        stalled = self._clock.pass_time(now, until)
        if stalled is not None:
            return stalled
        events = self._due(self._clock.now())
        if not events:
            first = self._later[0][0] if self._later else None
            until = first if until is None else until if first is None else min(first, until)
            reports = self.inner.wait(until if until is None else max(until - self._clock.lag, self.inner.now()))
            events = [told for event in reports for told in self._changed(event)]
            events += self._due(self._clock.now())
        self._told.extend(
            event for event in events if isinstance(event, StepsDone | StepsFailed | CopyDone | CopyFailed)
        )
        if self._told and self._strikes("duplicate"):
            events.append(self._chances.rng.choice(self._told))
        events += self._strike_cluster()
        return events

    def _due(self, now: float) -> list[ExecutorEvent]:
        due = []
        while self._later and self._later[0][0] <= now:
            event = heapq.heappop(self._later)[2]
            self._over(event)
            due.append(event)
        return due

    def _changed(self, event: ExecutorEvent) -> list[ExecutorEvent]:
        if isinstance(event, CopyDone | CopyFailed):
            return self._copy_ended(event)
        if isinstance(event, StepsDone):
            return self._steps(event)
        return [event]

    def _steps(self, event: StepsDone) -> list[ExecutorEvent]:
        lane = self._lanes[event.lane]
        if lane.lost:
            return []
        for request, _ in event.finished:
            lane.members.pop(request, None)
        lane.through = max(lane.through, event.through)
        if lane.failing == event.order:
            lane.failing, lane.at_rest, lane.void = None, True, False
            reason = "a kernel failed"
            return [StepsFailed(event.lane, event.order, event.first, event.first - 1, reason, lane.poisoned)]
        order = lane.order
        if order is not None and order.order == event.order and event.launched is not None:
            last = event.first + order.horizon - 1
            lane.at_rest = event.launched <= event.through and event.through >= last
        lost: list[ExecutorEvent] = []
        if lane.at_rest:
            lost = self._lose_lane(event.lane)
        return [event, *lost]

    # -- lanes and devices

    def _stop(self, name: str, drops: tuple[Drop, ...] = ()) -> None:
        """Take every member out of a lane at rest inside; nobody hears of it."""
        lane = self._lanes[name]
        lane.lost = True
        if lane.order is not None:
            stop = Step(name, lane.order.order, 0, (), self._all_leave(lane), (), "lost")
            self.inner.submit(Plan(steps=(stop,), drops=drops))
        elif drops:
            self.inner.submit(Plan(drops=drops))

    def _lose_lane(self, name: str) -> list[ExecutorEvent]:
        fault = self._strikes("lane_lost", name)
        if fault is not None:
            self._stop(name)
            self._say(LaneBack(name, self._lanes[name].through + 1), fault.seconds)
            return [LaneLost(name)]
        for device in self.cluster.lane[name].ranks:
            fault = None if self._under_copy(device) else self._strikes("device_lost", device)
            if fault is not None:
                return [self._lose_device(device, fault)]
        return []

    def _under_copy(self, device: str) -> bool:
        copies = (*self._copies.values(), *self._withheld.values())
        return any(device in (self.cluster.place(copy.source), self.cluster.place(copy.target)) for copy in copies)

    def _lose_device(self, device: str, fault: Fault) -> ExecutorEvent:
        tiers = [tier.id for tier in self.cluster.tiers.values() if tier.device == device]
        drops = tuple(Drop(request, tier) for tier in tiers for request in self._where[tier])
        for tier in tiers:
            self._where[tier].clear()
        name = self._lane_of[device]
        self._stop(name, drops)
        self._lost_devices.add(device)
        self._say(DeviceBack(device, self._lanes[name].through + 1), fault.seconds)
        return DeviceLost(device)

    # -- the rest of the cluster

    def _strike_cluster(self) -> list[ExecutorEvent]:
        """What may happen to tiers, links and staging memory, once a wait."""
        rng, events = self._chances.rng, list[ExecutorEvent]()
        tier = rng.choice(list(self.cluster.tiers.values()))
        fault = self._strikes("capacity", tier.id) if tier.device not in self._lost_devices else None
        if fault is not None:
            events.append(CapacityChanged(tier.id, rng.choice((0, tier.blocks // 4, tier.blocks // 2))))
            self._say(CapacityChanged(tier.id, tier.blocks), fault.seconds)
        if self.cluster.links:
            link = rng.choice(self.cluster.links)
            ends = link.source, link.target
            fault = self._strikes("link_down", f"{link.source}->{link.target}") if ends not in self._down else None
            if fault is not None:
                self._down.add(ends)
                events.append(LinkChanged(*ends, 0.0))
                self._say(LinkChanged(*ends, link.bytes_per_s), fault.seconds)
        for device in self.cluster.devices:
            if (
                device.staging_blocks
                and device.id not in self._lost_devices
                and self._strikes("staged_lost", device.id)
            ):
                events.append(StagedLost(device.id))
        return events

    def _over(self, event: ExecutorEvent) -> None:
        """What lasted some time is over, now that it is told."""
        if isinstance(event, CopyFailed):
            self._withheld.pop(event.copy, None)
        elif isinstance(event, LinkChanged):
            self._down.discard((event.source, event.target))
        elif isinstance(event, LaneBack):
            self._lanes[event.lane].lost = False
        elif isinstance(event, DeviceBack):
            self._lost_devices.discard(event.device)
            self._lanes[self._lane_of[event.device]].lost = bool(
                self._lost_devices & set(self.cluster.lane[self._lane_of[event.device]].ranks)
            )

    def _promise_less(self) -> None:
        for tier in self.cluster.tiers.values():
            if self._strikes("less_promised", tier.id):
                self._say(CapacityChanged(tier.id, self._less(tier)))

    def _less(self, tier: Tier) -> int:
        return tier.blocks - self._chances.rng.randint(0, tier.blocks // (2 if tier.id == HOST else 4))
