"""A random world around one scheduler: clusters, policies and every event that may happen, at any moment.

``World`` holds the scheduler and its adversary. After every call the plan is carried out (and checked) by the
adversary, every invariant is verified, and the scheduler's account of memory is compared with what is physically
there. ``finish`` lets everything end, and demands that it does.
"""

from __future__ import annotations

from collections import deque
from random import Random

from ..cluster import Cluster
from ..errors import PolicyError
from ..events import Arrived, Event, LaneBack, LinkChanged, Resumed, WeightsChanged
from ..load import Costs
from ..plan import Outcome, Plan
from ..policies.protocols import Policy
from ..scheduler import Scheduler
from .adversary import Adversary
from .clusters import random_cluster
from .erratic import random_policy
from .happenings import Happenings

PATIENCE = 5000  # calls in which everything has to end
ATTEMPTS = 200  # times in a row that a policy may raise


class UnfinishedError(AssertionError):
    """Work does not end although nothing stands in its way any more."""


class World(Happenings):
    """One scheduler, one adversary, and everything that may happen between them.

    All that is not given is drawn from the seed: ``cluster``, ``policy`` (shipped or erratic), options. ``trouble``
    says whether steps and copies fail, devices vanish, links break. What is drawn does not depend on what is given.
    """

    def __init__(
        self,
        seed: int,
        trouble: bool = True,
        *,
        cluster: Cluster | None = None,
        policy: Policy | None = None,
        costs: Costs | None = None,
    ) -> None:
        rng = Random(seed)
        self.seed = seed
        drawn = random_cluster(rng)
        self.policy, self.erratic = random_policy(rng)
        cluster = cluster or drawn
        if policy is not None:
            self.policy, self.erratic = policy, None
        self.max_kinds = rng.choice((None, None, 1, 2))
        self.lease = rng.choice((None, 1.0)) if trouble else None
        super().__init__(cluster, Adversary(cluster, self.max_kinds), trouble, rng.choice((0.6, 0.6, 0.05)))
        self.scheduler = Scheduler(
            cluster,
            self.policy,
            costs,
            max_horizon=rng.choice((1, 4, 32)),
            max_kinds=self.max_kinds,
            copy_lease_s=self.lease,
        )
        self.adversary.copy_lease_s = self.lease
        self.wake: float | None = None
        self.log: deque[str] = deque(maxlen=60)

    # -- calling the scheduler

    def call(self, *events: Event) -> Plan:
        """Hand events over, carry the plan out, verify everything."""
        self.now += 0.25
        self.adversary.now = max(self.adversary.now, self.now)
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
        for attempt in range(ATTEMPTS):
            try:
                return self.scheduler.handle(self.now, *events)
            except PolicyError:
                if attempt == ATTEMPTS - 1:
                    raise
                events = ()  # they are taken in already, and what was decided comes with the next plan
        raise AssertionError("unreachable")

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
            events: list[Event] = [adversary.end_copy(number, True) for number in adversary.endable()]
            for model in adversary.lanes.values():
                events += adversary.reports(model, rng, everything=True)
            if not events and self.wake is not None:
                self.now = max(self.now, self.wake)
            if not (events or self.wake is not None or adversary.outstanding() or self.help()):
                raise UnfinishedError("deadlock: work, but nothing under way")
            self.call(*events)
        else:
            raise UnfinishedError(f"not finished after {PATIENCE} calls")
        self._all_over()

    def help(self) -> bool:
        """Do what only somebody outside can do about a standstill; True if something could be done."""
        return False

    def _all_over(self) -> None:
        adversary, counts = self.adversary, self.scheduler.counts
        if set(adversary.released) != set(adversary.requests):
            raise UnfinishedError("requests without their last word")
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
