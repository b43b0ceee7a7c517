"""Where the time of real lanes went, in the shares that ``compare`` prints (see `alignedsched.metrics.bubbles`).

Seconds are measured; what imbalance cost of them is priced by a surface: the one the engine was given, else one fitted
to the run's own steps. Which is used is known at the end only, so sums are kept, not steps.
"""

from __future__ import annotations

from attrs import define

from alignedsched.cluster import Cluster
from alignedsched.events import Event, StepsDone
from alignedsched.load import Costs, Load
from alignedsched.metrics.bubbles import Idle
from alignedsched.policies.protocols import PlainData, Stepped
from alignedsched.request import Request
from alignedsched.scheduler import Scheduler
from alignedsched.sim.meter import waiting

from .own_surface import OwnSurface, uneven


@define(eq=False)
class _Lane:
    """One lane that decodes. ``priced``: imbalance, in seconds or in tokens; ``_unfilled``: the share of a step that
    pooled requests could have filled, weighed with its seconds and with its imbalance.
    """

    until: float | None = None  # time accounted for
    reason: Idle = Idle.NO_WORK
    missing: int = 0
    steps: float = 0.0  # seconds of steps
    steps_unfilled: float = 0.0
    priced: float = 0.0
    priced_unfilled: float = 0.0
    batch: float = 0.0  # seconds without a step, by reason
    copy: float = 0.0
    no_work: float = 0.0

    def idle(self, until: float, seconds: float) -> None:
        if self.until is not None and seconds > 0:
            self.batch += seconds if self.reason is Idle.BATCH else 0.0
            self.copy += seconds if self.reason is Idle.COPY else 0.0
            self.no_work += seconds if self.reason is Idle.NO_WORK else 0.0
        self.until = until if self.until is None else max(self.until, until)

    def step(self, seconds: float, imbalance: float, served: int) -> None:
        unfilled = self.missing / (served + self.missing) if self.missing else 0.0
        self.steps += seconds
        self.steps_unfilled += seconds * unfilled
        self.priced += imbalance
        self.priced_unfilled += imbalance * unfilled


class Bubbles:
    """A watch of the scheduler that is also told of every call. Memory O(lanes)."""

    def __init__(self, cluster: Cluster, costs: Costs | None) -> None:
        self.own = OwnSurface()
        self._costs = costs
        self._cluster = cluster
        self._lanes = {lane.id: _Lane() for lane in cluster.lanes if cluster.role(lane).decodes}
        self._facts: list[Stepped] = []

    # -- a watch

    def stepped(self, facts: Stepped) -> None:
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
                if lane.until is None:
                    lane.until = end - busy
                lane.idle(end, end - lane.until - busy)
            for fact in mine:
                served = sum(load.n + len(load.chunks) for load in fact.loads)
                lane.step(fact.seconds, self._imbalance(fact), served)
            lane.until = now if lane.until is None else lane.until
            lane.reason, lane.missing = waiting(scheduler.view(name))

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
        for lane in self._lanes.values():
            if lane.until is not None:
                lane.idle(until, until - lane.until)
            cost = min(price * lane.priced, lane.steps)
            iteration += cost
            batch += lane.batch + max(0.0, lane.steps_unfilled - price * lane.priced_unfilled)
            copy += lane.copy
            seconds += lane.steps + lane.batch + lane.copy + lane.no_work
        known = self._costs is not None or fitted is not None
        shares = {"iteration": iteration, "batch": batch, "copy_stall": copy}
        fractions: dict[str, float | None] = {k: v / seconds if seconds else 0.0 for k, v in shares.items()}
        return fractions if known else fractions | {"iteration": None}
