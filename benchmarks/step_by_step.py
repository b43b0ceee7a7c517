"""An executor without devices or time: it runs what is ordered, one step when it is told to, and reports it.

Benchmarks and tests of the scheduler's own cost use it to bring a real ``Scheduler`` into a state quickly and to make
the next event. It chooses nothing: which members finish, and when copies arrive, the caller says.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from functools import partial

from attrs import define, field

from alignedsched import HOST, Cluster, Device, Lane, Link, Policy, Request, Role, Scheduler
from alignedsched.costs import Costs, Load
from alignedsched.errors import ExecutorError
from alignedsched.events import Arrived, CopyDone, CopyFailed, Event, StepsDone
from alignedsched.plan import Chunk, Plan, Step
from alignedsched.views import LaneView

PLENTY = 1 << 40  # blocks: room is never what is measured


@define(eq=False)
class LaneRun:
    """What one lane does: the orders it holds, the last step it ran, and its members."""

    lane: str
    done: int = -1
    pending: deque[Step] = field(factory=deque)
    standing: Step | None = None
    first: int = 0
    members: dict[str, None] = field(factory=dict)
    seconds: Callable[[tuple[Chunk, ...]], float] = lambda chunks: 0.0  # of its next step, with these chunks in it

    def run(self, finished: tuple[str, ...] = ()) -> list[Event]:
        """Run the next step, in which ``finished`` make their last token; reports of it and of orders passed over."""
        reports: list[Event] = []
        while self.pending:
            order = self._take_effect()
            if order.chunks or (order.horizon and not self.pending):
                break
            reports.append(StepsDone(self.lane, order.order, self.first, self.done))
        order_now = self.standing
        if order_now is None or self.done >= self.first + order_now.horizon - 1:
            return reports
        self.done += 1
        seconds = self.seconds(order_now.chunks)
        prefilled = tuple(chunk.request for chunk in order_now.chunks)
        last = tuple((request, self.done) for request in finished)
        for request in finished:
            self.members.pop(request, None)
        reports.append(StepsDone(self.lane, order_now.order, self.first, self.done, last, prefilled, seconds))
        return reports

    def _take_effect(self) -> Step:
        self.standing = order = self.pending.popleft()
        self.first = self.done + 1
        for request in order.leaves:
            self.members.pop(request, None)
        self.members.update(dict.fromkeys(join.request for join in order.joins))
        return order


class StepByStep:
    """A scheduler with this executor under it, which reports what steps take if the scheduler was told their costs."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.now = 0.0
        self.lanes = {lane.id: LaneRun(lane.id) for lane in scheduler.cluster.lanes}
        if scheduler.costs is not None:
            for name, lane in self.lanes.items():
                lane.seconds = partial(_seconds, scheduler.view(name), scheduler.costs)
        self.copies: list[int] = []
        self.aborted: list[int] = []
        self.ended = 0

    def call(self, *events: Event) -> Plan:
        """Hand events over and hold what is ordered."""
        self.now += 0.01
        plan = self.scheduler.handle(self.now, *events)
        self.hold(plan)
        return plan

    def hold(self, plan: Plan) -> None:
        """Hold the orders and copies of a plan until they are run."""
        for step in plan.steps:
            self.lanes[step.lane].pending.append(step)
        for abort in plan.aborts:
            self.copies.remove(abort.copy)
            self.aborted.append(abort.copy)
        self.copies += [copy.copy for copy in plan.copies]
        self.ended += len(plan.releases)

    def arrived_copies(self) -> list[Event]:
        """Every copy under way arrives."""
        done: list[Event] = [CopyDone(copy) for copy in self.copies]
        done += [CopyFailed(copy) for copy in self.aborted]
        self.copies.clear()
        self.aborted.clear()
        return done

    def round(self) -> bool:
        """Every lane runs a step and every copy arrives, in one call. False if there was nothing to run."""
        events = self.arrived_copies()
        for lane in self.lanes.values():
            events += lane.run()
        if events:
            self.call(*events)
        return bool(events)

    def fill(self, requests: Iterable[Request], lane: str, members: int, at_once: int = 4096) -> None:
        """Let requests arrive and run rounds until a lane has so many members. Raises ExecutorError if it does not."""
        waiting: list[Event] = []
        for request in requests:
            waiting.append(Arrived(request))
            if len(waiting) == at_once:
                self.call(*waiting)
                waiting.clear()
                self.round()
        self.call(*waiting)
        while len(self.lanes[lane].members) < members:
            if not self.round():
                raise ExecutorError(f"lane {lane!r} stopped at {len(self.lanes[lane].members)} of {members} members")


def _seconds(view: LaneView, costs: Costs, chunks: tuple[Chunk, ...]) -> float:
    """What the next step of a lane of one rank takes by these costs."""
    batch, parts = view.ranks[0].batch, tuple((chunk.start, chunk.end) for chunk in chunks)
    return costs.step_seconds(Load(len(batch), batch.total, batch.longest, parts))


def one_lane(members: int, run_ahead: int = 0, blocks: int = PLENTY) -> Cluster:
    """A device that prefills and decodes, with seats for so many."""
    lane = Lane("gpu-lane", ("gpu",), run_ahead, members, max_tokens=1 << 30)
    return Cluster((Device("gpu", Role.BOTH, blocks),), (lane,), max_positions=1 << 30)


def two_lanes(members: int, pool_blocks: int, host_blocks: int = 0) -> Cluster:
    """A device that prefills and one that decodes with so many seats.

    Without a host the pool stays on the first,
    whose ``pool_blocks`` bound it; with one it is kept in ``host_blocks``.
    """
    devices = (Device("p", Role.PREFILL, pool_blocks), Device("d", Role.DECODE, PLENTY))
    lanes = (
        Lane("p-lane", ("p",), max_members=1 << 30, max_tokens=1 << 30),
        Lane("d-lane", ("d",), max_members=members, max_tokens=1 << 30),
    )
    ends = ["p", "d", HOST] if host_blocks else ["p", "d"]
    links = tuple(Link(a, b, 1e12) for a in ends for b in ends if a != b)
    return Cluster(devices, lanes, host_blocks, links, max_positions=1 << 30)


def decoding(members: int, policy: Policy, lengths: Iterable[int], run_ahead: int = 0) -> StepByStep:
    """A lane with so many members of these prompt lengths, in the middle of a decode order."""
    rig = StepByStep(Scheduler(one_lane(members, run_ahead), policy))
    requests = (Request(f"r{i}", length) for i, length in zip(range(members), lengths, strict=False))
    rig.fill(requests, "gpu-lane", members)
    for _ in range(3):
        rig.round()
    return rig
