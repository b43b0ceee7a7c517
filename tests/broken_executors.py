"""Executors with one fault each, for the tests of the conformance suite."""

from __future__ import annotations

from attrs import evolve

from alignedsched.cluster import Cluster
from alignedsched.events import CopyDone, CopyFailed, ExecutorEvent, StepsDone, StepsFailed
from alignedsched.plan import Copy, Plan, Step
from alignedsched.sim.executor import SimulatedExecutor
from alignedsched.testing.adversarial_executor import AdversarialExecutor
from alignedsched.testing.executor_suite import COSTS


class Simulated(SimulatedExecutor):
    """The simulated executor with a place to break its reports."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(cluster, COSTS)
        self.held: list[ExecutorEvent] = []
        self.count = 0

    def wait(self, until: float | None) -> list[ExecutorEvent]:
        return self.told(super().wait(until))

    def told(self, events: list[ExecutorEvent]) -> list[ExecutorEvent]:
        return events

    def nth(self, n: int) -> bool:
        self.count += 1
        return self.count % n == 0


class LateSteps(Simulated):
    def wait(self, until: float | None) -> list[ExecutorEvent]:
        if self.held:
            held, self.held = self.held, []
            later = self.now() + 0.001
            return held + SimulatedExecutor.wait(self, later if until is None else min(until, later))
        return super().wait(until)

    def told(self, events: list[ExecutorEvent]) -> list[ExecutorEvent]:
        if self.nth(5):
            self.held = [event for event in events if isinstance(event, StepsDone)]
        return [event for event in events if event not in self.held]


class LateCopies(LateSteps):
    def told(self, events: list[ExecutorEvent]) -> list[ExecutorEvent]:
        self.held = [event for event in events if isinstance(event, CopyDone)]
        return [event for event in events if event not in self.held]


class RepeatsSteps(Simulated):
    def told(self, events: list[ExecutorEvent]) -> list[ExecutorEvent]:
        return events + [event for event in events if isinstance(event, StepsDone) and self.nth(4)]


class RepeatsCopies(Simulated):
    def told(self, events: list[ExecutorEvent]) -> list[ExecutorEvent]:
        return events + [event for event in events if isinstance(event, CopyDone)]


class LosesSteps(Simulated):
    def told(self, events: list[ExecutorEvent]) -> list[ExecutorEvent]:
        return [event for event in events if not (isinstance(event, StepsDone) and event.order % 9 == 8)]


class LosesCopies(Simulated):
    def told(self, events: list[ExecutorEvent]) -> list[ExecutorEvent]:
        return [event for event in events if not (isinstance(event, CopyDone) and event.copy % 5 == 4)]


class Reorders(Simulated):
    """A report waits until the next one of its lane is told."""

    def told(self, events: list[ExecutorEvent]) -> list[ExecutorEvent]:
        return events[::-1]


class WrongBlocks(Simulated):
    def blocks_held(self, tier: str) -> int:
        return super().blocks_held(tier) + 1


class LeaksBlocks(Simulated):
    """Every tenth request that is forgotten leaves a block behind."""

    def _forget(self, request: str, tier: str) -> None:
        had = tier in self._tokens.get(request, {})
        super()._forget(request, tier)
        self._used[tier] += had and self.nth(10)


class PartialCopies(Simulated):
    def _arrive(self, copy: Copy) -> None:
        super()._arrive(copy)
        if self.nth(3):
            self._tokens[copy.request][copy.target] = copy.end // 2


class HalfJoins(Simulated):
    def _order(self, step: Step) -> None:
        super()._order(evolve(step, joins=step.joins[:1]))


class HalfChunks(Simulated):
    def _order(self, step: Step) -> None:
        super()._order(evolve(step, chunks=step.chunks[:1]))


class HalfLeaves(Simulated):
    """What is to leave stays, but where the lane is at rest."""

    def _order(self, step: Step) -> None:
        super()._order(evolve(step, leaves=step.leaves[1:]))


class RunsEmpty(Simulated):
    """Steps on after the last member has ended, as far as the horizon allows."""

    def told(self, events: list[ExecutorEvent]) -> list[ExecutorEvent]:
        return [
            evolve(event, through=event.through + 1, launched=event.through + 1)
            if isinstance(event, StepsDone) and event.finished and not self.members(event.lane) and not event.prefilled
            else event
            for event in events
        ]


class UnknownRequests(Simulated):
    def told(self, events: list[ExecutorEvent]) -> list[ExecutorEvent]:
        return [
            evolve(event, finished=(*event.finished, ("nobody", event.through)))
            if isinstance(event, StepsDone)
            else event
            for event in events
        ]


class UnknownCopies(Simulated):
    def told(self, events: list[ExecutorEvent]) -> list[ExecutorEvent]:
        return [*events, CopyDone(10**6)] if self.nth(9) else events


class FinishesTwice(Simulated):
    def __init__(self, cluster: Cluster) -> None:
        super().__init__(cluster)
        self.before: tuple[tuple[str, int], ...] = ()

    def told(self, events: list[ExecutorEvent]) -> list[ExecutorEvent]:
        told = []
        for event in events:
            if isinstance(event, StepsDone):
                ended, self.before = event.finished, event.finished or self.before
                again = tuple((request, event.through) for request, _ in self.before) if not ended else ()
                event = evolve(event, finished=ended + again)
            told.append(event)
        return told


class StopsEarly(Simulated):
    def expect(self, request: str, output_tokens: int) -> None:
        super().expect(request, max(1, output_tokens - 1))


class GoesOn(Simulated):
    def expect(self, request: str, output_tokens: int) -> None:
        super().expect(request, output_tokens + 2)


class ClockGoesBack(Simulated):
    def now(self) -> float:
        return super().now() - (0.001 if self.nth(7) else 0.0)


class ComesBackEarly(Simulated):
    def wait(self, until: float | None) -> list[ExecutorEvent]:
        return [] if until is not None and self.nth(5) else super().wait(until)


class Oversleeps(Simulated):
    def wait(self, until: float | None) -> list[ExecutorEvent]:
        return super().wait(None if until is None else until + 0.05)


class WrongDurations(Simulated):
    def told(self, events: list[ExecutorEvent]) -> list[ExecutorEvent]:
        return [evolve(e, seconds=e.seconds * 3) if isinstance(e, StepsDone) else e for e in events]


class SkipsSteps(Simulated):
    def told(self, events: list[ExecutorEvent]) -> list[ExecutorEvent]:
        return [
            evolve(e, first=e.first - 1) if isinstance(e, StepsDone) and e.first and self.nth(6) else e for e in events
        ]


class BeyondHorizon(Simulated):
    def _order(self, step: Step) -> None:
        super()._order(evolve(step, horizon=step.horizon + 3) if step.horizon and not step.chunks else step)


class LaunchesAhead(Simulated):
    def told(self, events: list[ExecutorEvent]) -> list[ExecutorEvent]:
        return [evolve(e, launched=e.through + 9) if isinstance(e, StepsDone) else e for e in events]


class Refuses(Simulated):
    def submit(self, plan: Plan) -> None:
        if self.nth(30):
            raise KeyError("some plan")
        super().submit(plan)


class ForgetsAborted(Simulated):
    def told(self, events: list[ExecutorEvent]) -> list[ExecutorEvent]:
        return [event for event in events if not isinstance(event, CopyFailed)]


class RunsVoidOrders(AdversarialExecutor):
    """After a failed step it goes on with the order it had."""

    def wait(self, until: float | None) -> list[ExecutorEvent]:
        events = super().wait(until)
        failed = [event for event in events if isinstance(event, StepsFailed)]
        return [*events, *(StepsDone(e.lane, e.order, e.first, e.through + 1) for e in failed)]
