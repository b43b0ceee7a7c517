"""The scheduler: ``handle(now, *events) -> Plan``, its one mutator.

The scheduler is sans-IO. It has no clock, thread, socket, random source or log; time comes in as ``now``, everything
else that happens comes in as events, and everything it wants comes out as a plan. It decides nothing by itself:
policies propose, it checks, owns every block and disposes. So a bad policy may be slow, never corrupt, and the same
events always give the same plans.

How a call goes:

1. An event that is not of its form (``forms``) and an arrival that cannot be are refused as a whole call, before
   anything changes.
2. Events are taken in, one after the other; a report that cannot be true is refused when it is its turn. They move
   requests between the queue, the pool and the running batches, lengthen extents when copies and chunks arrive, and
   mark the lanes to which this may matter as dirty.
3. Dirty lanes are planned (``planner``): reservation, departures, victims, joins, copies, prefill, order. A lane to
   which nothing happened is not looked at, so a plain decode step costs a handful of comparisons.
4. The outbox becomes the plan.

Rules that hold throughout (``check`` verifies them):

* Space is reserved before it is written and freed only when nothing under way may touch it (``ledger``, ``lanes``).
* A request is in exactly one place: queue, prefill, pool, claimed by a lane, running, or on its way out.
* Every request ends in exactly one ``Release``; late, duplicate and unknown reports change nothing but a counter.
* ``now`` never falls: a smaller one is taken as the last one and counted.

An executor's part of the contract: it carries out plans in order; every order is named by a report, also one that
ran no step, unless it was replaced before it ran: the report of the one that replaced it speaks for both; every copy
ends in one completion; a finished request leaves its lane by itself; after ``StepsFailed`` its lane is empty and waits
for an order (orders that reach it before the plan that answers the failure are void); it stops a request at its limit
and reports it finished. A lane without members and chunks runs no steps. Reports of one order come in the order of
their steps; those of different orders may overtake each other, be late or come twice. When a lane is lost, steps that
were not reported have not happened.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from .asking import hooked
from .books import Books
from .cluster import Cluster
from .errors import CallerError, ConfigError
from .events import (
    Arrived,
    Cancelled,
    CapacityChanged,
    CopyDone,
    CopyFailed,
    DeviceBack,
    DeviceLost,
    Draining,
    Event,
    LaneBack,
    LaneLost,
    LinkChanged,
    Paused,
    Resumed,
    StagedLost,
    StepsDone,
    StepsFailed,
    WeightsChanged,
)
from .forms import check_steps
from .intake import Intake
from .lane_book import LaneBook
from .leases import Leases
from .load import Costs
from .narrator import Narrator
from .outside import is_number, show
from .plan import Plan
from .planner import Planner
from .policies import fcfs
from .policies.options import number, whole
from .policies.protocols import Policy
from .registry import policy as registered
from .request import Request
from .scheduler_view import SchedulerView
from .standstill import Standstill
from .trouble import Trouble
from .watching import Watching

_INF = math.inf
PLANNING_PASSES = 4  # lanes may make work for each other; what is left then waits for the very next call


class Scheduler:
    """Decides which requests decode together, what runs next, and where KV lies.

    ``policy`` is a whole policy (see ``registry.policy``), ``cost_aligned`` unless another is given. ``costs`` is what
    the executor publishes about its steps, shown to policies. ``max_horizon`` is the longest a standing order lasts
    (steps). ``max_kinds`` bounds the kinds (adapters) in one batch; whom that keeps out is passed by fewer later ones
    than the lane has seats. ``eligible`` may hold requests back from prefill. ``copy_retries`` and ``step_retries``
    bound retries before a request is computed again, or failed. ``copy_lease_s``: a copy without completion for so long
    is given up and its target quarantined until the executor vouches for it by that completion. ``step_lease_s``: a
    lane that owes a report for so long is given up (``Plan.given_up``); choose it longer than the executor ever goes
    without one. ``None``: wait for ever.

    Raises ConfigError for an option out of range, and when the cluster and the policy cannot work together.
    """

    def __init__(
        self,
        cluster: Cluster,
        policy: Policy | None = None,
        costs: Costs | None = None,
        *,
        max_horizon: int = 256,
        max_kinds: int | None = None,
        eligible: Callable[[Request], bool] | None = None,
        copy_retries: int = 3,
        step_retries: int = 3,
        copy_lease_s: float | None = None,
        step_lease_s: float | None = None,
    ) -> None:
        whole(1)("Scheduler", "max_horizon", max_horizon)
        whole(1, none=True)("Scheduler", "max_kinds", max_kinds)
        whole(0)("Scheduler", "copy_retries", copy_retries)
        whole(0)("Scheduler", "step_retries", step_retries)
        number(0.0, none=True)("Scheduler", "copy_lease_s", copy_lease_s)
        number(0.0, none=True)("Scheduler", "step_lease_s", step_lease_s)
        _check_routes(cluster)
        allow = hooked(eligible) if eligible is not None else _everybody
        policy = policy or registered("cost_aligned")
        self.cluster = cluster
        self.policy = policy
        self.costs = costs
        self.eligible = eligible
        self.settings: Mapping[str, int | float | None] = MappingProxyType(
            {
                "max_horizon": max_horizon, "max_kinds": max_kinds, "copy_retries": copy_retries,
                "step_retries": step_retries, "copy_lease_s": copy_lease_s, "step_lease_s": step_lease_s,
            }
        )  # fmt: skip
        self._books = Books(cluster)
        self._books.rank_of = self._rank
        self._views = {lane.id: SchedulerView(self._books, lane, costs, allow) for lane in self._books.lanes.values()}
        limits: dict[str, Any] = {"max_horizon": max_horizon, "max_kinds": max_kinds, "eligible": allow}
        self._planner = Planner(self._books, policy, self._views, **limits)
        why = f"overruled {policy.name!r}, which chose nothing"
        self._standstill = Standstill(self._books, policy, Planner(self._books, fcfs(), self._views, **limits, why=why))
        trouble = Trouble(self._books, step_retries, copy_retries)
        self._watching = Watching(self._books, policy) if policy.watches else None
        self._intake = Intake(self._books, trouble, max_horizon, self._watching)
        self._leases = Leases(self._books, trouble, copy_lease_s, step_lease_s)
        # Lanes that only prefill come last: what decodes claims KV before it would be written out of their way.
        self._lanes = tuple(sorted(self._books.lanes.values(), key=lambda lane: not lane.state.role.decodes))
        intake = self._intake
        self._handlers: dict[type, Callable[[Any], None]] = {
            Arrived: intake.arrived,
            Cancelled: intake.cancelled,
            StepsDone: intake.steps_done,
            StepsFailed: intake.steps_failed,
            CopyDone: intake.copy_done,
            CopyFailed: intake.copy_failed,
            CapacityChanged: intake.capacity_changed,
            LinkChanged: intake.link_changed,
            LaneLost: intake.lane_lost,
            LaneBack: intake.lane_back,
            DeviceLost: intake.device_lost,
            DeviceBack: intake.device_back,
            StagedLost: intake.staged_lost,
            WeightsChanged: intake.weights_changed,
            Paused: self._pause,
            Resumed: self._resume,
            Draining: self._drain,
        }

    # -- the one mutator

    def handle(self, now: float, *events: Event) -> Plan:
        """Take events in and say what to do. O(log n) per event; O(1) for a plain decode step.

        Raises CallerError or ExecutorError, naming the field, for what cannot be; nothing was changed, unless a report
        is refused for what was reported before it: then the events in front of it are taken in, to be answered by the
        next plan, and it and those behind it are not. Raises PolicyError or HookError when a policy or the caller's
        hook raised, or a policy proposed nonsense: all events are taken in, and the next call goes on.
        """
        books = self._books
        if not (type(now) is float and -_INF < now < _INF) and not is_number(now):
            raise CallerError(f"now must be a finite number of seconds, got {show(now)}")
        if len(events) == 1 and type(events[0]) is StepsDone:
            check_steps(events[0])
        else:
            self._intake.check(events)
        if now < books.now:
            books.counts["late_now"] += 1
        else:
            books.now = now
        try:
            for event in events:
                self._handlers[type(event)](event)
            self._leases.expire()
            if self._watching is not None:
                self._watching.tell()
            self._plan_lanes()
        finally:
            for lane in self._lanes:
                lane.state.fresh = lane.relieved = False
        return books.out.plan(self._wake_at())

    def _plan_lanes(self) -> None:
        now = self._books.now
        planned = self._books.raised and self._standstill.end()  # whoever raised last time is not asked this time
        self._books.raised = False
        for _ in range(PLANNING_PASSES):
            again = False
            for lane in self._lanes:
                if lane.wake_at is not None and now >= lane.wake_at:
                    lane.wake_at, lane.dirty, lane.looked = None, True, True
                if lane.look_at is not None and now >= lane.look_at:
                    self._asking(self._planner.look, lane)
                if (lane.dirty or lane.renew) and not lane.state.lost:
                    if self._books.paused:
                        self._planner.halt(lane)
                    elif lane.may_plan():
                        self._asking(self._planner.plan, lane)
                        again = planned = True
            if not again and not ((planned or self._standstill.overdue()) and self._standstill.end()):
                return
        self._standstill.end()  # the passes are used up, and nothing may have come of them

    def _asking(self, what: Callable[[LaneBook], None], lane: LaneBook) -> None:
        try:
            what(lane)
        except BaseException:
            self._books.raised = True
            self._standstill.note()
            raise

    def _wake_at(self) -> float | None:
        wake = self._leases.next_end()
        due = self._standstill.due()
        if due is not None and due > self._books.now and (wake is None or due < wake):
            wake = due
        for lane in self._lanes:
            for asked in (lane.wake_at, lane.look_at):
                if asked is None or self._books.paused or asked <= self._books.now:
                    continue  # who names a moment that has come was asked again in this call, and is not so for ever
                if wake is None or asked < wake:
                    wake = asked
            if lane.dirty and not self._books.paused and not lane.state.lost and lane.may_plan():
                wake = self._books.now
        return wake

    def _rank(self, request: Request) -> float:
        """Where a request queues; 0, with a refusal counted, where the policy has no number for it."""
        try:
            rank = float(self.policy.admission.rank(request))
        except Exception:  # noqa: BLE001 - whatever a policy raises, the request has to queue somewhere
            rank = math.nan
        if math.isnan(rank):
            self._books.counts["refused"] += 1
            return 0.0
        return rank

    # -- standing wishes of the caller

    def _pause(self, event: Paused) -> None:
        self._books.paused = True
        for lane in self._lanes:
            lane.dirty = True

    def _resume(self, event: Resumed) -> None:
        self._books.paused = self._books.draining = False
        for lane in self._lanes:
            lane.dirty = True

    def _drain(self, event: Draining) -> None:
        self._books.draining = True

    # -- looking in

    @property
    def now(self) -> float:
        """The latest time seen."""
        return self._books.now

    @property
    def counts(self) -> Mapping[str, int]:
        """Counters since the start: arrivals, outcomes, preemptions, ignored reports, refused proposals."""
        return MappingProxyType(self._books.counts)

    @property
    def queued(self) -> int:
        """Requests waiting for prefill."""
        return len(self._books.queue)

    @property
    def pooled(self) -> int:
        """Prefilled requests that nobody has chosen."""
        return len(self._books.pool)

    @property
    def live(self) -> int:
        """Requests whose prefill has begun and that have not ended."""
        return len(self._books.live)

    def idle(self) -> bool:
        """Whether nothing is left to do: no request queued or live, no copy under way.

        While draining, only those that queue count that had begun before: the others stay where they are.
        """
        books = self._books
        queued = books.queue.again if books.draining else books.queue
        return not (queued or books.live or books.flights)

    def view(self, lane: str) -> SchedulerView:
        """The view policies get of a lane. Raises KeyError for an unknown one."""
        return self._views[lane]

    def narrate(self, narrator: Narrator | None) -> None:
        """Tell a narrator from now on which rules decide, and by which figures; None: nobody."""
        self._books.narrator = narrator

    def check(self) -> None:
        """Verify every named invariant of the whole state. O(everything). Raises InvariantError."""
        from .check import check

        check(self._books)


def _everybody(request: Request) -> bool:
    return True


def _check_routes(cluster: Cluster) -> None:
    """KV must be able to get from every lane that only prefills to every one that only decodes, or by the host."""
    for source in cluster.lanes:
        for target in cluster.lanes:
            if cluster.role(source).decodes or cluster.role(target).prefills:
                continue
            for a in source.ranks:
                for b in target.ranks:
                    by_host = cluster.host_blocks and cluster.link.get((a, "host")) and cluster.link.get(("host", b))
                    if not cluster.link.get((a, b)) and not by_host:
                        raise ConfigError(f"no link leads from device {a!r}, which prefills, to {b!r}, which decodes")
