"""Where the time of real lanes went, in the shares that ``compare`` prints (see `alignedsched.metrics.bubbles`).

Seconds are measured; what imbalance cost of them is priced by a surface: the one the engine was given, else one fitted
to the run's own steps. Which is used is known at the end only, so sums are kept, not steps.
"""

from __future__ import annotations

from copy import deepcopy

from attrs import define, field

from alignedsched.cluster import Cluster
from alignedsched.events import Event, StepsDone
from alignedsched.load import Costs, Load
from alignedsched.metrics.bubbles import Idle, Reasons
from alignedsched.policies.protocols import PlainData, Stepped
from alignedsched.request import Request
from alignedsched.scheduler import Scheduler
from alignedsched.sim.meter import waits_for

from .own_surface import OwnSurface, uneven


@define(eq=False)
class _Lane:
    """One lane that decodes: seconds of its steps, the imbalance in them (seconds, or tokens to be priced), of both the
    share in which pooled requests could have been members besides; seconds without a step, by reason.
    """

    until: float | None = None  # time accounted for
    reasons: Reasons = field(factory=Reasons)  # why it would be idle
    missing: int = 0
    steps: float = 0.0
    steps_unfilled: float = 0.0
    imbalance: float = 0.0
    imbalance_unfilled: float = 0.0
    idle: dict[Idle, float] = field(factory=lambda: dict.fromkeys(Idle, 0.0))

    def wait(self, until: float) -> None:
        """Count time without a step from what is accounted for until then."""
        if self.until is not None:
            for begin, end, reason in self.reasons.over(self.until, until):
                self.idle[reason] += end - begin
            self.until = max(self.until, until)

    def step(self, seconds: float, imbalance: float, served: int) -> None:
        unfilled = self.missing / (served + self.missing) if self.missing else 0.0
        self.steps += seconds
        self.steps_unfilled += seconds * unfilled
        self.imbalance += imbalance
        self.imbalance_unfilled += imbalance * unfilled


class Bubbles:
    """A watch of the scheduler that is also told of every call. Memory O(lanes)."""

    def __init__(self, cluster: Cluster, costs: Costs | None) -> None:
        self.own = OwnSurface()
        self._costs = costs
        self._lanes = {lane.id: _Lane() for lane in cluster.lanes if cluster.role(lane).decodes}
        self._facts: list[Stepped] = []

    # -- a watch

    def stepped(self, facts: Stepped) -> None:
        if facts.seconds > 0:
            self._facts.append(facts)

    def ended(self, request: Request, produced: int, finished: bool) -> None:
        """Nothing to learn."""

    def state(self) -> PlainData:
        """Figures are not part of snapshots."""
        return None

    def load(self, state: PlainData) -> None:
        """See ``state``."""

    # -- every call

    def observe(self, scheduler: Scheduler, now: float, events: tuple[Event, ...]) -> None:
        """What lanes did since the last call, then what waits now. O(reports + lanes)."""
        facts, self._facts = self._facts, []
        ends = {e.lane: now if e.ended is None else e.ended for e in events if isinstance(e, StepsDone)}
        for fact in facts:
            if len(fact.loads) == 1:
                self.own.add(fact.loads[0], fact.steps, fact.seconds)
        for name, lane in self._lanes.items():
            mine = [fact for fact in facts if fact.lane == name]
            if mine:
                end, busy = ends.get(name, now), sum(fact.seconds for fact in mine)
                if lane.until is not None:
                    lane.wait(end - busy)
                lane.until = end if lane.until is None else max(lane.until, end)
            for fact in mine:
                served = sum(load.n + len(load.chunks) for load in fact.loads)
                lane.step(fact.seconds, self._imbalance(fact), served)
            lane.until = now if lane.until is None else lane.until
            reason, lane.missing = waits_for(scheduler.view(name))
            lane.reasons.saw(now, reason)

    def _imbalance(self, fact: Stepped) -> float:
        """Seconds of imbalance by the surface that was given, else its tokens."""
        if self._costs is None:
            return sum(uneven(load, fact.steps) for load in fact.loads)
        half = (fact.steps - 1) // 2
        loads = [Load(o.n, o.total + o.n * half, o.longest + half, o.chunks) if o.n else o for o in fact.loads]
        whole = max(map(self._costs.step_seconds, loads), default=0.0)
        even = max(map(self._costs.balanced_seconds, loads), default=0.0)
        return fact.seconds * (1.0 - min(1.0, even / whole)) if whole > 0 else 0.0

    def shares(self, until: float) -> dict[str, float | None]:
        """Fractions of the decoding lanes' time up to then. ``iteration`` None: nothing can price imbalance yet."""
        fitted = self.own.fitted() if self._costs is None else None
        price = 1.0 if self._costs is not None else fitted[1] if fitted is not None else 0.0
        iteration = batch = copy = seconds = 0.0
        for lane in map(deepcopy, self._lanes.values()):
            lane.wait(until)
            idle = lane.idle
            iteration += min(price * lane.imbalance, lane.steps)
            batch += idle[Idle.BATCH] + max(0.0, lane.steps_unfilled - price * lane.imbalance_unfilled)
            copy += idle[Idle.COPY]
            seconds += lane.steps + sum(idle.values())
        shares = {"iteration": iteration, "batch": batch, "copy_stall": copy}
        fractions: dict[str, float | None] = {name: s / seconds if seconds else 0.0 for name, s in shares.items()}
        known = self._costs is not None or fitted is not None
        return fractions if known else fractions | {"iteration": None}
