"""What may happen to a scheduler and its executor at any moment; every action is legal whenever it is taken."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from random import Random

from ..cluster import Cluster
from ..events import (
    Arrived,
    Cancelled,
    CapacityChanged,
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
    WeightsChanged,
)
from ..request import Request
from .adversary import Adversary

Action = Callable[[Random], list[Event]]


class Happenings:
    """Actions on an executor that give the events to tell; each takes its choices from the random source it gets."""

    def __init__(self, cluster: Cluster, adversary: Adversary, trouble: bool, copies_end: float) -> None:
        self.cluster = cluster
        self.adversary = adversary
        self.trouble = trouble
        self.copies_end = copies_end  # how probable the end of each copy is, each time it may end
        self.now = 0.0
        self.arrived = 0
        self.paused = self.draining = False
        self.shrunk: dict[str, int] = {}  # tiers whose memory is still over a smaller capacity
        self.lost_devices: set[str] = set()
        self.told: deque[Event] = deque(maxlen=20)

    def arrive(self, rng: Random) -> list[Event]:
        gone = list(self.adversary.released)
        again = bool(gone) and rng.random() < 0.1
        name = rng.choice(gone) if again else f"r{self.arrived}"
        self.arrived += 1
        prompt = rng.choice((1, 3, 8, 17, rng.randint(1, 60)))
        limit = rng.choice((None, 1, 2, 9, 40))
        request = Request(
            name, prompt, limit, self.now, priority=rng.randint(0, 2), kind=rng.choice((None, "a", "b", "c"))
        )
        most = max(1, min(limit or 400, self.cluster.max_positions - prompt))
        adversary = self.adversary
        adversary.released.pop(name, None)
        adversary.finished.discard(name)
        adversary.requests[name] = request
        adversary.to_make[name] = rng.randint(1, min(most, rng.choice((1, 4, 12, 60))))
        return [Arrived(request)]

    def cancel(self, rng: Random) -> list[Event]:
        names = list(self.adversary.requests) or ["nobody"]
        return [Cancelled(rng.choice(names[-12:]))]

    def step(self, rng: Random) -> list[Event]:
        """Lanes launch and end steps."""
        for model in self.adversary.lanes.values():
            for _ in range(rng.randint(0, 3)):
                if self.adversary.may_launch(model) and rng.random() < 0.7:
                    self.adversary.launch(model)
                if model.done < model.launched and rng.random() < 0.7:
                    self.adversary.complete(model)
        return []

    def report(self, rng: Random) -> list[Event]:
        events: list[Event] = []
        for model in self.adversary.lanes.values():
            if rng.random() < 0.7:
                events += self.adversary.reports(model, rng)
        return events

    def end_copies(self, rng: Random) -> list[Event]:
        events: list[Event] = []
        for number in self.adversary.endable():
            if rng.random() < self.copies_end:
                fails = rng.random() < (0.5 if number in self.adversary.aborted else 0.1 if self.trouble else 0.0)
                events.append(self.adversary.end_copy(number, not fails))
        rng.shuffle(events)
        return events

    def repeat(self, rng: Random) -> list[Event]:
        """A duplicate of a report already made."""
        harmless = [e for e in self.told if type(e).__name__ in ("StepsDone", "StepsFailed", "CopyDone", "CopyFailed")]
        return [rng.choice(harmless)] if harmless else []

    def fail_step(self, rng: Random) -> list[Event]:
        for model in self.adversary.lanes.values():
            if model.done < model.launched and not model.failed:
                rows = self.adversary.row_requests(model)
                poisoned = tuple(rows[:1]) if rng.random() < 0.3 else ()
                self.adversary.fail_step(model, poisoned, "out of luck")
                break
        return []

    def lane_trouble(self, rng: Random) -> list[Event]:
        model = self.adversary.lanes[rng.choice(list(self.adversary.lanes))]
        if not model.lost:
            self.adversary.lose_lane(model)
            return [LaneLost(model.lane.id)]
        if not self.lost_devices & set(model.lane.ranks):
            return [LaneBack(model.lane.id, self.adversary.lane_back(model, rng.randint(1, 3)))]
        return []

    def device_trouble(self, rng: Random) -> list[Event]:
        device = rng.choice([d.id for d in self.cluster.devices])
        if device in self.lost_devices:
            return self._device_back(device, rng)
        self.adversary.lose_device(device)
        self.lost_devices.add(device)
        return [DeviceLost(device)]

    def _device_back(self, device: str, rng: Random) -> list[Event]:
        self.lost_devices.discard(device)
        next_step = 0
        for tier in self.cluster.tiers.values():
            if tier.device == device:
                self.shrunk.pop(tier.id, None)
                self.adversary.capacity[tier.id] = tier.blocks
        for model in self.adversary.lanes.values():
            if device in model.lane.ranks:
                if self.lost_devices & set(model.lane.ranks):
                    next_step = model.done + 1
                else:
                    next_step = self.adversary.lane_back(model, rng.randint(1, 3))
        return [DeviceBack(device, next_step)]

    def capacity(self, rng: Random) -> list[Event]:
        tier = self.cluster.tiers[rng.choice(list(self.cluster.tiers))]
        if tier.device in self.lost_devices:
            return []
        blocks = rng.choice((tier.blocks, tier.blocks // 2, tier.blocks // 4, tier.blocks * 2))
        return [self._resize(tier.id, blocks)]

    def _resize(self, tier: str, blocks: int) -> Event:
        if blocks < self.adversary.capacity[tier]:
            self.shrunk[tier] = blocks
        else:
            self.adversary.capacity[tier] = blocks
            self.shrunk.pop(tier, None)
        return CapacityChanged(tier, blocks)

    def link(self, rng: Random) -> list[Event]:
        if not self.cluster.links:
            return []
        link = rng.choice(self.cluster.links)
        return [LinkChanged(link.source, link.target, rng.choice((0.0, 1e9)))]

    def staged(self, rng: Random) -> list[Event]:
        stages = [d.id for d in self.cluster.devices if d.staging_blocks]
        if not stages:
            return []
        names = tuple(rng.sample(list(self.adversary.kv), min(2, len(self.adversary.kv)))) if rng.random() < 0.5 else ()
        return [StagedLost(rng.choice(stages), names)]

    def weights(self, rng: Random) -> list[Event]:
        return [WeightsChanged()]

    def wish(self, rng: Random) -> list[Event]:
        event = rng.choice((Paused(), Resumed(), Resumed(), Draining()))
        self.paused = isinstance(event, Paused) or (self.paused and not isinstance(event, Resumed))
        self.draining = isinstance(event, Draining) or (self.draining and not isinstance(event, Resumed))
        return [event]

    def calm(self) -> list[tuple[int, Action]]:
        """What may happen at any time, with how often."""
        return [(6, self.arrive), (3, self.cancel), (30, self.step), (5, self.repeat)]

    def troubles(self) -> list[tuple[int, Action]]:
        """What goes wrong now and then."""
        return [
            (2, self.fail_step), (1, self.lane_trouble), (1, self.device_trouble), (1, self.capacity),
            (1, self.link), (1, self.staged), (1, self.weights), (1, self.wish),
        ]  # fmt: skip
