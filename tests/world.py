"""A random world around one scheduler: clusters, policies and every event that may happen, at any moment.

``World`` holds the scheduler and its adversary. Each action is legal whenever it is taken; after every call the plan
is carried out (and checked) by the adversary, every invariant is verified, and the scheduler's account of memory is
compared with what is physically there. ``finish`` lets everything end, and demands that it does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from random import Random

from alignedsched import policies
from alignedsched.cluster import HOST, Cluster, Device, KVLayout, Lane, Link, Role
from alignedsched.errors import PolicyError
from alignedsched.events import (
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
from alignedsched.plan import Outcome, Plan
from alignedsched.policies.admission import ArrivalOrder
from alignedsched.policies.fcfs import ContinuousBatching
from alignedsched.policies.protocols import Composition, Evict, PlainData, Policy, Sacrifice, Take, Transfer
from alignedsched.policies.residency import DirectResidency
from alignedsched.request import Request
from alignedsched.scheduler import Scheduler
from alignedsched.views import LaneView
from tests.adversary import Adversary

PATIENCE = 5000  # calls in which everything has to end


class Erratic:
    """A policy that proposes anything at all, until it is told to be sane."""

    def __init__(self, seed: int) -> None:
        self.rng = Random(seed)
        self.sane = False
        self.raises = self.rng.choice((0.0, 0.03))
        self.cleaned: set[str] = set()
        self.swap = self.rng.random() < 0.5
        self.good = ContinuousBatching(swap=self.swap)
        self.admission = ArrivalOrder()
        self.residency = DirectResidency(to_host="short" if self.swap else "never")

    def rank(self, request: Request) -> float:
        return 0.0

    def _some(self, view: LaneView, most: int = 4) -> list[str]:
        if self.rng.random() < self.raises:
            raise RuntimeError("a bug in a policy")
        known = [*view.pool.by_order(), *view.candidates, *view.joining, *view.expected, "nobody"]
        known += [member for rank in view.ranks for member in rank.batch]
        known += [waiting.request.id for waiting in view.queue]
        known += [begun.request for begun in view.prefilling]
        return self.rng.choices(known, k=self.rng.randint(0, most))

    def admit(self, view: LaneView) -> Iterable[Take]:
        if self.sane:
            return list(self.admission.admit(view))
        known = [begun.request for begun in view.prefilling] + [w.request.id for w in view.queue]
        ranks = len(view.ranks)
        some = [request for request in known if self.rng.random() < 0.5]
        takes = [Take(request, self.rng.randint(0, 40), self.rng.randint(-1, ranks)) for request in some]
        return takes + [Take(r, self.rng.randint(1, 9), 0) for r in self._some(view, 1)]

    def compose(self, view: LaneView) -> Composition:
        if self.sane:
            if view.lane.id not in self.cleaned:  # what nobody sane would have claimed goes back first
                self.cleaned.add(view.lane.id)
                return Composition(unclaims=[*view.candidates, *view.joining], wake_at=view.now)
            return self.good.compose(view)
        return Composition(
            joins=[*self._some(view), *view.expected] if self.rng.random() < 0.7 else self._some(view),
            candidates=self._some(view),
            parks=self._some(view, 2) if self.rng.random() < 0.3 else (),
            unclaims=self._some(view, 2),
            wake_at=view.now + 1.0 if self.rng.random() < 0.3 else None,
        )

    def victims(self, view: LaneView, rank: int, blocks: int) -> Iterable[tuple[str, Sacrifice]]:
        if self.sane:
            return self.good.victims(view, rank, blocks)
        return [(request, self.rng.choice(list(Sacrifice))) for request in self._some(view)]

    def place(self, view: LaneView) -> Iterable[Transfer | Evict]:
        if self.sane:
            return list(self.residency.place(view))
        tiers = [*view.cluster.tiers, "nowhere"]
        wishes: list[Transfer | Evict] = []
        for request in [*self._some(view), *view.joining]:
            if self.rng.random() < 0.2:
                wishes.append(Evict(request, self.rng.choice(tiers)))
            else:
                own = self.rng.random() < 0.5
                target = self.rng.choice(view.lane.ranks) if own else self.rng.choice(tiers)
                wishes.append(Transfer(request, target, keep=self.rng.random() < 0.5))
        return wishes

    def taken(self, view: LaneView, composition: Composition) -> None:
        """Nothing to remember."""

    def state(self) -> PlainData:
        return None

    def load(self, state: PlainData) -> None:
        """Nothing to restore."""


def both_ways(a: str, b: str) -> tuple[Link, Link]:
    return Link(a, b, 1e9), Link(b, a, 1e9)


def random_cluster(rng: Random) -> Cluster:
    """A small cluster, short of blocks."""
    shape = rng.choice(("one", "two", "ranks", "disaggregated", "fan", "helper", "prefill ranks"))
    run_ahead, members = rng.randint(0, 2), rng.choice((2, 4, 8))
    host = rng.choice((0, 12, 60))
    size = rng.choice((1, 4, 8))

    def blocks() -> int:
        return rng.choice((8, 12, 20, 40)) * (4 if size == 1 else 1)

    def lane(name: str, *ranks: str) -> Lane:
        return Lane(name, ranks, run_ahead, members, rng.choice((8, 16, 64)))

    links: list[Link] = []
    if shape in ("one", "two", "ranks"):
        devices = [Device("g0", Role.BOTH, blocks()), *([Device("g1", Role.BOTH, blocks())] if shape != "one" else [])]
        lanes = [lane("l0", "g0"), *([lane("l1", "g1")] if shape == "two" else [])]
        if shape == "ranks":
            lanes = [lane("l0", "g0", "g1")]
        if len(devices) == 2 and rng.random() < 0.7:
            links += both_ways("g0", "g1")
    else:
        staging = rng.choice((0, 10)) if shape != "helper" else 12
        devices = [Device("p0", Role.PREFILL, blocks(), staging), Device("g0", Role.DECODE, blocks())]
        lanes = [lane("p", "p0"), lane("l0", "g0")]
        links += both_ways("p0", "g0")
        if shape == "fan":
            devices.append(Device("g1", Role.DECODE, blocks()))
            lanes.append(lane("l1", "g1"))
            links += both_ways("p0", "g1")
        elif shape == "prefill ranks":
            devices += [Device("p1", Role.PREFILL, blocks()), Device("g1", Role.DECODE, blocks())]
            lanes = [lane("p", "p0", "p1"), lane("l0", "g0", "g1")]
            links += [*both_ways("p0", "g1"), *both_ways("p1", "g0"), *both_ways("p1", "g1")]
        elif shape == "helper":
            devices.append(Device("h0", Role.HELPER, 0, rng.choice((6, 30))))
            links += [*both_ways("h0", "g0"), *(both_ways("h0", HOST) if host else ())]
    if host:
        for device in devices:
            if device.role is not Role.HELPER:
                links += both_ways(device.id, HOST)
    layout = KVLayout(size, 1000)
    return Cluster(tuple(devices), tuple(lanes), host, tuple(links), layout, rng.choice((64, 400)))


def random_policy(rng: Random) -> tuple[Policy, Erratic | None]:
    kind = rng.choice(("fcfs", "swap", "density", "erratic", "erratic"))
    if kind == "erratic":
        erratic = Erratic(rng.randint(0, 1 << 30))
        return Policy("erratic", erratic, erratic, erratic), erratic
    if kind == "density":
        return policies.density_first(), None
    return policies.fcfs(swap=kind == "swap"), None


class World:
    """One scheduler, one adversary, and everything that may happen between them."""

    def __init__(self, seed: int, trouble: bool = True) -> None:
        rng = Random(seed)
        self.seed = seed
        self.trouble = trouble
        self.cluster = random_cluster(rng)
        self.policy, self.erratic = random_policy(rng)
        self.max_kinds = rng.choice((None, None, 1, 2))
        self.lease = rng.choice((None, 1.0)) if trouble else None
        self.copies_end = rng.choice((0.6, 0.6, 0.05))
        self.scheduler = Scheduler(
            self.cluster,
            self.policy,
            max_horizon=rng.choice((1, 4, 32)),
            max_kinds=self.max_kinds,
            copy_lease_s=self.lease,
        )
        self.adversary = Adversary(self.cluster, self.max_kinds)
        self.now = 0.0
        self.arrived = 0
        self.wake: float | None = None
        self.paused = self.draining = False
        self.shrunk: dict[str, int] = {}  # tiers whose memory is still over a smaller capacity
        self.lost_devices: set[str] = set()
        self.log: deque[str] = deque(maxlen=60)
        self.told: deque[Event] = deque(maxlen=20)

    # -- calling the scheduler

    def call(self, *events: Event) -> Plan:
        """Hand events over, carry the plan out, verify everything."""
        self.now += 0.25
        self.log.append(f"t={self.now} {events}")
        for event in events:
            if isinstance(event, WeightsChanged):
                self.adversary.change_weights()
        plan = self._handle(events)
        self.log.append(f"   -> {plan}")
        self.told.extend(events)
        self.wake = plan.wake_at
        self.adversary.submit(plan)
        self.scheduler.check()
        self._compare_memory()
        return plan

    def _handle(self, events: tuple[Event, ...]) -> Plan:
        while True:
            try:
                return self.scheduler.handle(self.now, *events)
            except PolicyError:
                events = ()  # they are taken in already, and what was decided comes with the next plan

    def _compare_memory(self) -> None:
        """What the scheduler charges covers what is there; a shrunken tier is cleared before it is smaller."""
        view = self.scheduler.view(self.cluster.lanes[0].id)
        for name, wanted in tuple(self.shrunk.items()):
            if view.free(name) >= 0:
                self.adversary.capacity[name] = wanted
                del self.shrunk[name]
        for tier in self.cluster.tiers.values():
            if tier.device in self.lost_devices:
                continue
            capacity = self.shrunk.get(tier.id, self.adversary.capacity[tier.id])
            charged = capacity - view.free(tier.id)
            used = self.adversary.used(tier.id)
            assert used <= charged, f"tier {tier.id!r}: {used} blocks are in use, {charged} charged"

    # -- actions

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
        for number in list(self.adversary.copies):
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

    def calm(self) -> list[tuple[int, Callable[[Random], list[Event]]]]:
        """What may happen at any time, with how often."""
        return [(6, self.arrive), (3, self.cancel), (30, self.step), (5, self.repeat)]

    def troubles(self) -> list[tuple[int, Callable[[Random], list[Event]]]]:
        """What goes wrong now and then."""
        return [
            (2, self.fail_step), (1, self.lane_trouble), (1, self.device_trouble), (1, self.capacity),
            (1, self.link), (1, self.staged), (1, self.weights), (1, self.wish),
        ]  # fmt: skip

    def act(self, rng: Random) -> None:
        """A few random actions, then one call with what they tell."""
        choices = [*self.calm(), *(self.troubles() if self.trouble else ())]
        actions = [action for _, action in choices]
        weights = [weight for weight, _ in choices]
        events: list[Event] = []
        for action in rng.choices(actions, weights, k=rng.randint(1, 2)):
            events += action(rng)
        self.settle(events, rng)

    def settle(self, events: list[Event], rng: Random) -> None:
        """Add reports and ends of copies that happen to be ready, and call."""
        names = [e.request.id for e in events if isinstance(e, Arrived)]
        if len(set(names)) != len(names):
            events = [e for i, e in enumerate(events) if not isinstance(e, Arrived) or names.index(e.request.id) == i]
        if rng.random() < 0.6:
            events += self.end_copies(rng)
        if rng.random() < 0.7:
            events += self.report(rng)
        self.call(*events)

    # -- the end

    def recover(self, rng: Random) -> None:
        """Whatever is broken is repaired."""
        if self.erratic is not None:
            self.erratic.sane = True
        for device in sorted(self.lost_devices):
            self.call(*self._device_back(device, rng))
        events: list[Event] = []
        for model in self.adversary.lanes.values():
            if model.lost:
                events.append(LaneBack(model.lane.id, self.adversary.lane_back(model, 1)))
        for tier in self.cluster.tiers.values():
            events.append(self._resize(tier.id, tier.blocks))
        events += [LinkChanged(link.source, link.target, link.bytes_per_s) for link in self.cluster.links]
        self.call(*events)
        self.paused = self.draining = False
        self.call(Resumed())

    def finish(self, rng: Random) -> None:
        """Everything may end now, so it must; then nothing is left anywhere."""
        self.recover(rng)
        adversary, scheduler = self.adversary, self.scheduler
        for _ in range(PATIENCE):
            if scheduler.idle():
                break
            for model in adversary.lanes.values():
                if adversary.may_launch(model):
                    adversary.launch(model)
                if model.done < model.launched:
                    adversary.complete(model)
            events: list[Event] = [adversary.end_copy(number, True) for number in list(adversary.copies)]
            for model in adversary.lanes.values():
                events += adversary.reports(model, rng, everything=True)
            if not events and self.wake is not None:
                self.now = max(self.now, self.wake)
            assert events or self.wake is not None or adversary.outstanding(), "deadlock: work, but nothing under way"
            self.call(*events)
        else:
            raise AssertionError(f"not finished after {PATIENCE} calls")
        self._all_over()

    def _all_over(self) -> None:
        adversary, counts = self.adversary, self.scheduler.counts
        assert set(adversary.released) == set(adversary.requests), "requests without their last word"
        assert counts["arrived"] == sum(counts[outcome.value] for outcome in Outcome)
        view = self.scheduler.view(self.cluster.lanes[0].id)
        for tier in self.cluster.tiers.values():
            assert not adversary.used(tier.id), f"KV is left in {tier.id!r}: {adversary.kv}"
            assert view.free(tier.id) == tier.blocks, f"{tier.id!r}: {view.free(tier.id)} of {tier.blocks} free"


def walk(seed: int, events: int, trouble: bool = True) -> World:
    """A whole life of ``events`` calls. Raises whatever is wrong; ``world.log`` tells the last calls."""
    world = World(seed, trouble)
    rng = Random(seed ^ 0x5EED)
    try:
        for _ in range(events):
            world.act(rng)
        world.finish(rng)
    except Exception as error:
        error.add_note(f"seed {seed}, policy {world.policy.name}, {world.cluster}")
        books = world.scheduler._books
        for line in [*world.log, *world.adversary.state(), *map(str, books.live.values()), *map(str, books.queue)]:
            error.add_note(line)
        raise
    return world
