"""One life of the swarm: a world in which a random part of everything that can go wrong does go wrong.

A life follows from its seed and its acts. An act is one call of the scheduler: some actions by name, and the seed of
the choices they make; so a life can be written to a file, cut down and played again. Besides what every world checks
(each plan by the contract, every invariant, memory, one last word for every request) a life checks that

* work that can go on is never left without an order and without a time to wake up;
* a preemption raises what is free or coming free on its device.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from random import Random

from .. import registry
from ..errors import ExecutorError
from ..events import (
    CapacityChanged,
    CopyDone,
    Event,
    LaneLost,
    StepsDone,
)
from ..lane_book import LaneBook
from ..plan import Plan
from ..policies.protocols import Policy, Sacrifice
from ..scheduler import Scheduler
from ..states import CopyState
from .clusters import random_cluster
from .erratic import Erratic
from .misfortunes import Misfortunes
from .policy_lives import costs_of
from .sometimes import TICK_S, Sometimes
from .stager import stager

Act = tuple[int, tuple[str, ...]]

ALWAYS = {"arrive": 8, "step": 40, "mend": 8}
FEATURES = {
    "cancel": 3, "cancel_copied": 2, "fail_copy": 1, "repeat": 5, "burst": 2, "storm": 1, "fail_step": 2,
    "fail_output": 2, "lane_trouble": 1, "device_trouble": 1, "capacity": 1, "no_capacity": 1, "link": 1, "no_links": 1,
    "staged": 2, "weights": 1, "wish": 1, "silence": 1, "lose_copy": 3, "late_copy": 1, "stand_still": 1, "jump": 1,
    "turn_back": 1, "unknown": 1,
}  # fmt: skip
ACTIONS = {*ALWAYS, *FEATURES, "promise_less"}
VARIANTS: dict[str, dict[str, object]] = {"fcfs": {"swap": True}, "density_first": {"guard_s": 2.0, "k_min": 3}}
STAGING = ("density_first ", "stager", "stager")  # what makes use of staging memory
STAGED = ("cancel_copied", "fail_copy", "lose_copy", "staged")  # what should meet it there


@lru_cache(maxsize=1)
def subjects() -> tuple[str, ...]:
    """What a life may be led by: every policy there is, and an erratic one twice as often."""
    return (*registry.policy_names(), *(f"{name} " for name in VARIANTS), "erratic", "erratic")


def _policy(name: str, rng: Random) -> tuple[Policy, Erratic | None]:
    seed = rng.randint(0, 1 << 30)
    if name == "erratic":
        erratic = Erratic(seed)
        return Policy("erratic", erratic, erratic, erratic), erratic
    if name == "stager":
        return stager(), None
    return registry.policy(name.strip(), **(VARIANTS[name.strip()] if name.endswith(" ") else {})), None


class Life(Misfortunes):
    """One life; ``lead`` it, or ``play`` acts recorded before. ``sometimes`` counts what happened."""

    def __init__(self, seed: int, sometimes: Sometimes | None = None) -> None:
        rng = Random(seed ^ 0x11FE)
        staging = any(device.staging_blocks for device in random_cluster(Random(seed)).devices)  # as the world draws it
        self.subject = rng.choice(STAGING if staging and rng.random() < 0.5 else subjects())
        policy, erratic = _policy(self.subject, rng)
        super().__init__(seed, True, policy=policy, costs=costs_of(seed))
        self.erratic = erratic
        self.features = [name for name in FEATURES if rng.random() < 0.4 or (staging and name in STAGED)]
        self.lease = self.adversary.copy_lease_s = rng.choice((None, 1.0, 3.0))
        self.step_lease = rng.choice((None, 4.0, 12.0))
        self.scheduler = self._scheduler(rng)
        room = self.scheduler._planner._room
        self._sacrifice, room._sacrifice = room._sacrifice, self._watched  # type: ignore[method-assign]
        self.sometimes = sometimes or Sometimes()
        self.acts: list[Act] = []
        self.events = self.calls = 0
        self._names = [*ALWAYS, *self.features]
        self._often = [(ALWAYS | FEATURES)[name] for name in self._names]

    def _scheduler(self, rng: Random) -> Scheduler:
        return Scheduler(
            self.cluster,
            self.policy,
            costs_of(self.seed),
            max_horizon=rng.choice((1, 4, 32)),
            max_kinds=self.max_kinds,
            copy_retries=rng.choice((0, 1, 3)),
            step_retries=rng.choice((0, 1, 3)),
            copy_lease_s=self.lease,
            step_lease_s=self.step_lease,
        )

    # -- leading it

    def lead(self, calls: int) -> None:
        """Live for so many calls, then let everything end. Raises what is wrong."""
        rng = Random(self.seed ^ 0x5EED)
        if rng.random() < 0.2:
            self._do((rng.getrandbits(32), ("promise_less",)))
        for _ in range(calls):
            names = rng.choices(self._names, self._often, k=rng.randint(1, 4))
            self._do((rng.getrandbits(32), tuple(names)))
        self.finish(Random(self.seed))

    def play(self, acts: Iterable[Act]) -> None:
        """Do recorded acts, then let everything end. Raises what is wrong."""
        for act in acts:
            self._do(act)
        self.finish(Random(self.seed))

    def _do(self, act: Act) -> None:
        self.acts.append(act)
        seed, names = act
        rng = Random(seed)
        events: list[Event] = []
        for name in names:
            events += getattr(self, name)(rng)
        self.settle(events, rng)

    def call(self, *events: Event) -> Plan:
        """As every world, and with what a life checks besides."""
        self.events += len(events)
        self.calls += 1
        if self.still:
            self.still -= 1
            self.now -= TICK_S
        back, self.back = self.back, 0.0
        self.now -= back
        self.sometimes.before(self, events)
        plan = super().call(*events)
        self.now += back
        self.sometimes.after(self, events, plan)
        self._check_progress(plan)
        return plan

    def _check_progress(self, plan: Plan) -> None:
        books = self.scheduler._books
        if self.scheduler.idle() or plan.wake_at is not None or books.paused or books.draining:
            return
        if books.flights or self.adversary.outstanding():
            return
        for tier in self.cluster.tiers.values():
            lane = books.lanes.get(books.lane_of_device.get(tier.id, ""))
            cleared = books.ledger.free(tier.id) + books.ledger.quarantined(tier.id) >= 0
            lost = tier.device in books.lost or (lane is not None and lane.state.lost)
            assert cleared or lost, f"{tier.id!r} is over-full, and nothing will clear it"
        well = not self.lost_devices and not books.quarantine and all(books.links.values())
        well = well and all(books.ledger.capacity(tier.id) >= tier.blocks for tier in self.cluster.tiers.values())
        if well and not any(lane.state.lost for lane in books.lanes.values()):
            raise AssertionError(f"standstill: work, nothing under way, and no time to wake up after {plan}")

    def _watched(self, lane: LaneBook, rank: int, request: str, how: Sacrifice, latest: int, leaves: list[str]) -> None:
        """A sacrifice, held against what it gains: blocks free, coming free, or about to be copied out."""
        books, tier = self.scheduler._books, lane.tiers[rank]
        room = self.scheduler._planner._room

        def usable() -> int:
            return books.ledger.free(tier) + room._coming(lane, tier)

        before, counted = usable(), len(leaves)
        states = books.live[request].state if request in books.live else None
        self._sacrifice(lane, rank, request, how, latest, leaves)
        books.ledger.set_growth(tier, lane.state.batches[rank].blocks(latest))
        live = books.live.get(request)
        if len(leaves) == counted and (live.state if live is not None else None) is states:
            return
        parked = books.ledger.extents(request).get(tier) if request in books.pool else None
        after = usable() + (parked.blocks if parked is not None else 0)
        assert after > before, f"preempting {request!r} frees nothing of {tier!r}: {before} blocks before, {after} now"

    def unknown(self, rng: Random) -> list[Event]:
        """Reports of what never was are refused, and nothing is changed."""
        lane = rng.choice(self.cluster.lanes).id
        events: tuple[Event, ...] = (
            CopyDone(1 << 40), StepsDone(lane, 1 << 40, 0, 0), StepsDone("nowhere", 0, 0, 0), LaneLost("nowhere"),
            CapacityChanged("nowhere", 3),
        )  # fmt: skip
        event, counts = rng.choice(events), dict(self.scheduler.counts)
        if isinstance(event, StepsDone) and event.lane == lane and self.scheduler._books.lanes[lane].state.lost:
            return []  # what a lost lane says is ignored
        self.adversary.now = max(self.adversary.now, self.now)
        try:
            self.scheduler.handle(self.now, event)
        except ExecutorError:
            self.scheduler.check()
            assert counts == dict(self.scheduler.counts) | {"late_now": counts["late_now"]}, (
                f"{event} changed something"
            )
            self.sometimes.count("unknown report refused")
            return []
        raise AssertionError(f"{event} was not refused")

    # -- the end

    def recover(self, rng: Random) -> None:
        self.still, self.back = 0, 0.0
        for model in self.adversary.lanes.values():
            model.silent = False
        super().recover(rng)

    def help(self) -> bool:
        """What all wait for may be a lane given up, or space in quarantine: the executor vouches for either."""
        rng = Random(self.seed)
        back = [event for model in self.adversary.lanes.values() for event in self._lane_back(model, rng)]
        if back:
            self.call(*back)
        elif self.adversary.astray:
            self.sometimes.count("quarantine held work up")
            self._vouch()
        else:
            return False
        return True

    def _vouch(self) -> None:
        """The executor says of every copy that was given up that it has ended."""
        self.call(*(self.adversary.end_copy(number, False) for number in sorted(self.adversary.astray)))

    def _all_over(self) -> None:
        """All requests have ended; all that is not free is quarantine, and free once the executor vouches for it."""
        books = self.scheduler._books
        for tier, capacity in ((tier.id, books.ledger.capacity(tier.id)) for tier in self.cluster.tiers.values()):
            assert books.ledger.free(tier) + books.ledger.quarantined(tier) == capacity, f"{tier!r} leaks blocks"
        assert set(books.quarantine) == set(self.adversary.astray), "quarantine nobody can explain"
        assert all(flight.state is not CopyState.FLYING for flight in books.quarantine.values())
        if self.adversary.astray:
            self._vouch()
        super()._all_over()
