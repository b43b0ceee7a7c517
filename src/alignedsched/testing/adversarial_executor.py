"""The adversary as an ordinary executor in virtual time: it keeps the contract, and helps nobody.

``check_executor`` must find nothing wrong with it, or the suite asks for more than the contract says. Drivers and
schedulers can be run over it as over any executor.
"""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from types import MappingProxyType
from typing import cast

from attrs import evolve

from ..cluster import Cluster
from ..events import ExecutorEvent, LaneBack, StepsDone
from ..plan import Plan
from ..request import Request
from .adversary import Adversary
from .happenings import Happenings

TICK_S = 0.01
NOTHING = 200  # ticks after which a wait without `until` gives up


class AdversarialExecutor:
    """Runs steps and copies at random speed, and reports late, merged, repeated, or overtaken by other reports.

    ``losses``: lanes and devices vanish and come back too.
    """

    capabilities: Mapping[str, bool] = MappingProxyType({"virtual_time": True, "repeats": True, "overtakes": True})

    def __init__(self, cluster: Cluster, seed: int = 0, *, losses: bool = False) -> None:
        self.adversary = Adversary(cluster)
        self._rng = Random(seed)
        self._now = 0.0
        self._losses = losses
        self._trouble = Happenings(cluster, self.adversary, losses, 0.0)
        self._told: list[ExecutorEvent] = []

    def introduce(self, request: Request, output_tokens: int) -> None:
        """Say how many tokens a request will make."""
        self.adversary.requests[request.id] = request
        self.adversary.to_make[request.id] = output_tokens

    def now(self) -> float:
        return self._now

    def submit(self, plan: Plan) -> None:
        """Raises AssertionError if the plan is illegal."""
        self.adversary.submit(plan)

    def fail_next_step(self, lane: str) -> bool:
        """The oldest step under way on a lane fails; False if none is."""
        model = self.adversary.lanes[lane]
        if model.done >= model.launched or model.failed:
            return False
        self.adversary.fail_step(model, (), "out of luck")
        return True

    def blocks_held(self, tier: str) -> int:
        """Blocks written or reserved in a tier."""
        return self.adversary.used(tier)

    def tokens_held(self, request: str, tier: str) -> int:
        """Readable tokens of a request in a tier."""
        there = self.adversary.kv.get(request, {}).get(tier)
        return there.readable if there is not None else 0

    def wait(self, until: float | None) -> list[ExecutorEvent]:
        """Ticks until there is something it pleases to tell, at the latest until ``until``."""
        for _ in range(NOTHING):
            events = self._tick()
            if events:
                return events
            if until is not None and self._now >= until:
                break
            if until is None and not self.adversary.outstanding():
                return self._losses_end()
            self._now = self._now + TICK_S if until is None else min(self._now + TICK_S, until)
        else:
            self._now = max(self._now, until or 0.0)
        return []

    def _tick(self) -> list[ExecutorEvent]:
        rng, adversary = self._rng, self.adversary
        events: list[ExecutorEvent] = []
        for model in adversary.lanes.values():
            if adversary.may_launch(model) and rng.random() < 0.7:
                adversary.launch(model)
            if model.done < model.launched and rng.random() < 0.7:
                adversary.complete(model)
            if rng.random() < 0.5:  # several steps may end within a tick: they took no time
                told = adversary.reports(model, rng)
                events += [evolve(e, seconds=0.0) if isinstance(e, StepsDone) else e for e in told]
        for number in list(adversary.copies):
            if rng.random() < 0.3:
                events.append(adversary.end_copy(number, rng.random() < (0.3 if number in adversary.aborted else 0.95)))
        if self._losses and rng.random() < 0.01:
            trouble = rng.choice((self._trouble.lane_trouble, self._trouble.device_trouble))
            return events + cast(list[ExecutorEvent], trouble(rng))
        if self._told and events and rng.random() < 0.1:
            events.append(rng.choice(self._told))
        self._told = [*self._told, *events][-9:]
        return events

    def _losses_end(self) -> list[ExecutorEvent]:
        """Nothing else goes on: what was lost comes back, one thing at a time."""
        for device in sorted(self._trouble.lost_devices):
            return cast(list[ExecutorEvent], self._trouble._device_back(device, self._rng))
        for model in self.adversary.lanes.values():
            if model.lost:
                return [LaneBack(model.lane.id, self.adversary.lane_back(model, 1))]
        return []
