"""An executor looked at while it works: plans go on to it, and everything it tells is held against them.

``Audited`` is an executor itself, so the real driver and the real scheduler run over it and notice nothing. What it
finds goes to ``Findings`` by the name of the check. What a scheduler survives (a report told twice) is noted and goes
on; what it cannot stand upon ends the life.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ..cluster import Cluster
from ..driver import Executor
from ..errors import ExecutorError
from ..events import (
    CapacityChanged,
    CopyDone,
    CopyFailed,
    DeviceBack,
    DeviceLost,
    ExecutorEvent,
    LaneBack,
    LaneLost,
    StepsDone,
    StepsFailed,
)
from ..plan import Copy, Plan
from .audit_lane import LaneAudit
from .capabilities import Capabilities, Probes
from .ground import Ground
from .results import Findings

FRUITLESS = 50  # waits in a row that tell nothing, though nobody says until when to wait
SURVIVED = frozenset(
    {"reports_come_once", "reports_in_order", "reports_are_prompt", "durations_add_up", "time_never_falls"}
    | {"waits_until_told", "launches_within_run_ahead", "orders_are_reported"}
)


class EndedError(Exception):
    """A life cannot go on: what is wrong is noted."""


class Audited:
    """Stands between a driver and the executor under test."""

    def __init__(self, executor: Executor, cluster: Cluster, ground: Ground, findings: Findings) -> None:
        self.flags = Capabilities.of(executor)
        self.probes = Probes.of(executor)
        self._executor = executor
        self._cluster = cluster
        self._ground = ground
        self._findings = findings
        self._fatal = False
        self._now = executor.now()
        self._lanes = {
            lane.id: LaneAudit(lane, self.flags, ground, self._note, ended=self._now) for lane in cluster.lanes
        }
        self._copies: dict[int, Copy] = {}
        self._aborted: set[int] = set()
        self._ended: set[int] = set()
        self._fruitless = 0
        self._going: set[str] = set()  # tiers that vanish with what is just being told
        self._capacity = {tier.id: tier.blocks for tier in cluster.tiers.values()}

    def _note(self, check: str, message: str) -> None:
        self._findings.note(check, message)
        self._fatal = self._fatal or check not in SURVIVED

    # -- the executor's three methods

    def now(self) -> float:
        now = self._executor.now()
        if now < self._now:
            self._note("time_never_falls", f"now() went from {self._now!r} back to {now!r}")
        self._now = max(self._now, now)
        return self._now

    def submit(self, plan: Plan) -> None:
        """Hand a plan on, and take it down."""
        try:
            self._executor.submit(plan)
        except Exception as error:
            self._note("carries_out_legal_plans", f"submit raised {type(error).__name__}: {error}; {plan!r:.200}")
            raise EndedError from error
        for drop in plan.drops:
            self._ground.drop(drop)
        for release in plan.releases:
            self._ground.release(release.request)
        self._aborted |= {abort.copy for abort in plan.aborts}
        for copy in plan.copies:
            self._copies[copy.copy] = copy
        for step in plan.steps:
            self._lanes[step.lane].order(step)
        self._look_at_memory()

    def wait(self, until: float | None) -> list[ExecutorEvent]:
        """Wait as the executor does, and look at what it tells."""
        before = self.now()
        try:
            events = list(self._executor.wait(until))
        except ExecutorError as error:
            self._stuck(str(error))
            raise EndedError from error
        except Exception as error:
            self._note("carries_out_legal_plans", f"wait raised {type(error).__name__}: {error}")
            raise EndedError from error
        now = self.now()
        self._look_at_time(before, until, now, bool(events))
        self._fruitless = 0 if events or until is not None else self._fruitless + 1
        if self._fruitless > FRUITLESS:
            self._stuck(f"{FRUITLESS} waits in a row told nothing")
            raise EndedError
        self._look_at_launches(events)
        lost = {event.device for event in events if isinstance(event, DeviceLost)}
        self._going = {tier.id for tier in self._cluster.tiers.values() if tier.device in lost}
        for event in events:
            self._read(event, before, now)
            if self._fatal:
                raise EndedError
        self._look_for_arrived_copies()
        self._look_at_memory()
        if self._fatal:
            raise EndedError
        return events

    # -- time

    def _look_at_time(self, before: float, until: float | None, now: float, told: bool) -> None:
        slack = 1e-9 * max(1.0, abs(now))
        if until is None:
            return
        if not told and now < until - slack:
            self._note("waits_until_told", f"wait({until!r}) came back at {now!r} with nothing to tell")
        if self.flags.virtual_time and now > max(before, until) + slack:
            self._note("waits_until_told", f"wait({until!r}) came back only at {now!r}")

    def _look_at_launches(self, events: list[ExecutorEvent]) -> None:
        through: dict[str, int] = {}
        reports = [event for event in events if isinstance(event, StepsDone)]
        for event in reports:
            audit = self._lanes.get(event.lane)
            if audit is not None:
                through[event.lane] = max(through.get(event.lane, audit.told()), event.through)
        for event in reports:
            if event.lane in through and event.launched is not None:
                last = through[event.lane] + self._cluster.lane[event.lane].run_ahead + 1
                if not event.through <= event.launched <= last:
                    what = f"launched {event.launched}, but by run-ahead it is from {event.through} to {last}"
                    self._note("launches_within_run_ahead", f"lane {event.lane!r}, order {event.order}: {what}")

    # -- reports

    def _read(self, event: ExecutorEvent, before: float, now: float) -> None:
        if isinstance(event, StepsDone | StepsFailed):
            audit = self._lanes.get(event.lane)
            if audit is None:
                self._note("names_what_exists", f"lane {event.lane!r} is none: {event}")
            elif not audit.lost:
                self._look_whether_late(event, before)
                audit.read(event, now)
        elif isinstance(event, CopyDone | CopyFailed):
            self._copy_ended(event)
        elif isinstance(event, CapacityChanged):
            self._capacity[event.tier] = event.blocks
        elif isinstance(event, LaneLost | DeviceLost):
            self._lost(event)
        elif isinstance(event, LaneBack | DeviceBack):
            self._back(event)

    def _look_whether_late(self, event: StepsDone | StepsFailed, before: float) -> None:
        if not self.flags.prompt or not isinstance(event, StepsDone) or event.ended is None:
            return
        if event.through >= event.first and event.ended <= before:
            when = f"ended at {event.ended!r}, and the wait that came back at {before!r} did not tell"
            self._note("reports_are_prompt", f"lane {event.lane!r}, order {event.order}: {when}")

    def _copy_ended(self, event: CopyDone | CopyFailed) -> None:
        copy = self._copies.pop(event.copy, None)
        if copy is None:
            if event.copy not in self._ended:
                self._note("names_what_exists", f"copy {event.copy!r} was never ordered: {event}")
            elif not self.flags.repeats:
                self._note("copies_end_once", f"copy {event.copy} ended before: {event}")
            return
        self._ended.add(event.copy)
        if isinstance(event, CopyFailed):
            return
        held = self.probes.tokens_held
        if held is not None and copy.request not in self._ground.released and copy.target not in self._going:
            tokens = held(copy.request, copy.target)
            if tokens < copy.end:
                self._note("copies_arrive_whole", f"{event}: {tokens} of {copy.end} tokens are in {copy.target!r}")
        self._ground.arrive(copy)

    def _look_for_arrived_copies(self) -> None:
        """A prompt executor does not keep to itself that a copy has arrived."""
        held = self.probes.tokens_held
        if not self.flags.prompt or held is None:
            return
        for number, copy in self._copies.items():
            if held(copy.request, copy.target) >= copy.end > copy.start:
                self._note("reports_are_prompt", f"copy {number} is whole in {copy.target!r}, and is not reported")

    def _lost(self, event: LaneLost | DeviceLost) -> None:
        gone, tiers = ({event.lane} if isinstance(event, LaneLost) else set()), set[str]()
        if isinstance(event, DeviceLost):
            tiers = {tier.id for tier in self._cluster.tiers.values() if tier.device == event.device}
            gone = {lane.id for lane in self._cluster.lanes if event.device in lane.ranks}
            for number in [n for n, copy in self._copies.items() if {copy.source, copy.target} & tiers]:
                self._ended.add(number)
                del self._copies[number]
        for lane in sorted(gone & set(self._lanes)):
            self._lanes[lane].halt()
            self._lanes[lane].lost = True
        self._ground.lose(tiers)

    def _back(self, event: LaneBack | DeviceBack) -> None:
        for audit in self._lanes.values():
            lane = audit.lane
            if (isinstance(event, LaneBack) and lane.id == event.lane) or (
                isinstance(event, DeviceBack) and event.device in lane.ranks
            ):
                audit.lost, audit.reported = False, event.next_step - 1

    # -- memory

    def _look_at_memory(self) -> None:
        """What an executor says it holds lies between what is known to be there and the tier's capacity."""
        held = self.probes.blocks_held
        if held is None:
            return
        quiet = not self._copies and all(audit.resting() for audit in self._lanes.values())
        quiet = quiet and self._ground.finished <= self._ground.released
        for tier, capacity in self._capacity.items():
            known, said = self._ground.blocks(tier), held(tier)
            if said < known or said > capacity or (quiet and said != known):
                bound = f"exactly {known}" if quiet else f"from {known} to {capacity}"
                self._note(
                    "memory_as_accounted", f"tier {tier!r} holds {said} blocks, but by plans and reports {bound}"
                )

    # -- the end

    def _stuck(self, why: str) -> None:
        """Nothing comes any more: whose word is missing?"""
        missing: Mapping[str, Callable[[], list[str]]] = {
            "aborts_complete": lambda: [f"copy {n}" for n in self._copies if n in self._aborted],
            "copies_end_once": lambda: [f"copy {n}" for n in self._copies if n not in self._aborted],
            "orders_are_reported": lambda: [
                f"order {n} of {a.lane.id!r}" for a in self._lanes.values() for n in a.pending()
            ],
            "orders_applied_whole": lambda: [f"the end of {r!r}" for a in self._lanes.values() for r in a.members],
        }
        found = False
        for check, names in missing.items():
            lacking = names()
            if lacking:
                found = True
                self._note(check, f"never told: {', '.join(lacking[:3])} ({why})")
        if not found:
            self._note("everything_ends", f"{why}, and nothing is under way")

    def close(self) -> None:
        """A life has ended: every order was named or passed over, nothing is kept."""
        if self._copies:
            self._stuck("the life is over")
        self._look_at_memory()
