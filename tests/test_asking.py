"""A policy that answers nonsense, and a hook that raises: each is blamed by name, and nothing is lost by it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from random import Random
from typing import Any

import pytest
from attrs import evolve

from alignedsched.adapters.hooks import Hooks, Resident
from alignedsched.cluster import Cluster, Device, KVLayout, Lane, Role
from alignedsched.costs import AffineCosts
from alignedsched.driver import drive
from alignedsched.errors import HookError, PolicyError
from alignedsched.events import Arrived, Event, StepsDone
from alignedsched.plan import Plan
from alignedsched.policies import fcfs
from alignedsched.policies.admission import ArrivalOrder
from alignedsched.policies.fcfs import ContinuousBatching
from alignedsched.policies.protocols import Composition, Evict, PlainData, Policy, Sacrifice, Take, Transfer
from alignedsched.policies.residency import DirectResidency
from alignedsched.request import Request
from alignedsched.scheduler import Scheduler
from alignedsched.sim.executor import SimulatedExecutor
from alignedsched.testing.world import World
from alignedsched.views import LaneView

Spoil = Callable[[Any], Any]


class Odd:
    """First come, first served, but for one method: while ``on``, ``spoil`` makes its answers something else."""

    def __init__(self, method: str, spoil: Spoil) -> None:
        self.method, self.spoil, self.on = method, spoil, True
        self.order, self.good, self.direct = ArrivalOrder(), ContinuousBatching(), DirectResidency()

    def _said(self, method: str, answer: Any) -> Any:
        return self.spoil(answer) if self.on and method == self.method else answer

    def rank(self, request: Request) -> float:
        return 0.0

    def admit(self, view: LaneView) -> Any:
        return self._said("admit", list(self.order.admit(view)))

    def compose(self, view: LaneView) -> Any:
        return self._said("compose", self.good.compose(view))

    def victims(self, view: LaneView, rank: int, blocks: int) -> Any:
        return self._said("victims", list(self.good.victims(view, rank, blocks)))

    def place(self, view: LaneView) -> Any:
        return self._said("place", list(self.direct.place(view)))

    def taken(self, view: LaneView, composition: Composition) -> None:
        """Nothing to remember."""

    def state(self) -> PlainData:
        return None

    def load(self, state: PlainData) -> None:
        """Nothing to restore."""

    def policy(self) -> Policy:
        return Policy("odd", self, self, self)


def composed(**change: Any) -> Spoil:
    return lambda answer: evolve(answer, **change)


def and_then(*more: Any) -> Spoil:
    return lambda answer: [*answer, *more]


BAD: list[tuple[str, Spoil, str]] = [
    ("admit", lambda answer: None, "raised TypeError"),
    ("admit", and_then(None), "admit must give a Take each time, got None"),
    ("admit", and_then(("a", 3)), "admit must give a Take each time, got a tuple of 2"),
    ("admit", and_then(Take("a", 2.5)), r"Take\.tokens must be an integer, got 2\.5"),  # type: ignore[arg-type]
    ("admit", and_then(Take("a", True)), r"Take\.tokens must be an integer, got True"),
    ("admit", and_then(Take("a", 1, 0.0)), r"Take\.rank must be an integer, got 0\.0"),  # type: ignore[arg-type]
    ("admit", and_then(Take(["a"], 1)), r"Take\.request must be a string, got a list"),  # type: ignore[arg-type]
    ("compose", lambda answer: None, "compose must return a Composition, got None"),
    ("compose", lambda answer: ["a"], "compose must return a Composition, got a list of 1"),
    ("compose", composed(joins=None), "joins must be a sequence of ids, got None"),
    ("compose", composed(joins="ab"), "joins must be a sequence of ids, got 'ab'"),
    ("compose", composed(parks=[["a"]]), "parks must name requests by their ids, got a list of 1"),
    ("compose", composed(unclaims=[3]), "unclaims must name requests by their ids, got 3"),
    ("compose", composed(candidates=iter(())), "candidates must be a sequence of ids, got tuple_iterator"),
    ("compose", composed(wake_at="soon"), "wake_at must be finite seconds or None, got 'soon'"),
    ("compose", composed(wake_at=math.nan), "wake_at must be finite seconds or None, got nan"),
    ("compose", composed(look_at=math.inf), "look_at must be finite seconds or None, got inf"),
    ("compose", composed(why=None), "why must be a string, got None"),
    ("place", and_then(None), "place must give a Transfer or Evict each time, got None"),
    ("place", and_then(Transfer("a", ["g0"])), r"Transfer\.target must be a string"),  # type: ignore[arg-type]
    ("place", and_then(Transfer("a", "g0", math.nan)), r"Transfer\.deadline must be finite seconds or None, got nan"),
    ("place", and_then(Transfer("a", "g0", keep=1)), r"Transfer\.keep must be True or False, got 1"),  # type: ignore[arg-type]
    ("place", and_then(Evict("a", ["g0"])), r"Evict\.tier must be a string"),  # type: ignore[arg-type]
    ("victims", and_then(None), r"victims must give \(id, Sacrifice\) each time, got None"),
    ("victims", and_then(("a", "park")), r"victims must give .*got a tuple of 2 'a', 'park'"),
    ("victims", and_then(("a", Sacrifice.PARK, 1)), r"victims must give .*got a tuple of 3"),
]
SAID = [f"{method}-{at}" for at, (method, *_) in enumerate(BAD)]


def small(blocks: int = 100) -> Cluster:
    """One device of four tokens a block."""
    return Cluster(
        (Device("g0", Role.BOTH, blocks),), (Lane("l0", ("g0",), max_members=4, max_tokens=32),), layout=KVLayout(4, 10)
    )


def prefilled(scheduler: Scheduler, odd: Odd) -> StepsDone:
    """``a`` and ``b`` are prefilled by answers that are none too odd; the report of it, which has still to be told."""
    odd.on = False
    scheduler.handle(0.0, *(Arrived(Request(name, 6, 9)) for name in "ab"))
    odd.on = True
    return StepsDone("l0", 0, 0, 0, prefilled=("a", "b"))


def steps(scheduler: Scheduler, *told: Event) -> None:
    """Eight steps of one order each; victims are asked for when the room is used up."""
    for step in range(1, 9):
        plan = scheduler.handle(float(step), *told)
        told = (StepsDone("l0", plan.steps[-1].order, step, step),)


@pytest.mark.parametrize(("method", "spoil", "says"), BAD, ids=SAID)
def test_what_is_no_answer_is_named_and_nothing_of_it_is_taken(method: str, spoil: Spoil, says: str) -> None:
    odd = Odd(method, spoil)
    scheduler = Scheduler(small(5), odd.policy(), max_horizon=1)
    told = prefilled(scheduler, odd)
    with pytest.raises(PolicyError, match=f"^policy 'odd': .*{says}"):
        steps(scheduler, told, Arrived(Request("c", 4, 2)))
    scheduler.check()
    odd.on = False
    assert scheduler.handle(9.0).steps, "asked anew, the lane goes on"
    scheduler.check()


@pytest.mark.parametrize(("method", "spoil", "says"), BAD, ids=SAID)
def test_a_policy_that_answers_nonsense_now_and_then_loses_nobody(method: str, spoil: Spoil, says: str) -> None:
    """Whole lives, verified after every call; in the end everybody has to end (see ``World``)."""
    for seed in range(3):
        rng = Random(seed)
        odd = Odd(method, lambda answer, rng=rng: spoil(answer) if rng.random() < 0.3 else answer)  # type: ignore[misc]
        world = World(seed, policy=odd.policy())
        for _ in range(40):
            world.act(rng)
        world.finish(rng)


def test_chunks_of_a_refused_answer_are_still_to_be_ordered() -> None:
    odd = Odd("admit", and_then(None))
    scheduler = Scheduler(small(), odd.policy())
    with pytest.raises(PolicyError):
        scheduler.handle(0.0, Arrived(Request("a", 10, 5)))
    scheduler.check()
    assert (scheduler.queued, scheduler.live) == (1, 0)
    odd.on = False
    assert [chunk.request for chunk in scheduler.handle(1.0).steps[0].chunks] == ["a"]


def test_whatever_ends_a_plan_what_was_taken_is_ordered_and_the_rest_is_asked_anew() -> None:
    def interrupt(answer: object) -> object:
        raise KeyboardInterrupt

    odd = Odd("admit", interrupt)
    odd.on = False
    scheduler = Scheduler(small(), odd.policy())
    scheduler.handle(0.0, Arrived(Request("a", 10, 5)))
    odd.on = True
    with pytest.raises(KeyboardInterrupt):
        scheduler.handle(1.0, StepsDone("l0", 0, 0, 0, prefilled=("a",)), Arrived(Request("b", 4, 5)))
    scheduler.check()
    odd.on = False
    plan = scheduler.handle(2.0)
    assert [join.request for step in plan.steps for join in step.joins] == ["a"]
    assert [chunk.request for step in plan.steps for chunk in step.chunks] == ["b"]


@pytest.mark.parametrize("name", ["wake_at", "look_at"])
def test_a_moment_that_was_asked_for_is_not_forgotten_when_the_answer_is_nonsense(name: str) -> None:
    asked: list[float] = []

    def compose(answer: Composition) -> Any:
        asked.append(scheduler.now)
        return None if scheduler.now == 5.0 else composed(**{name: 5.0 if scheduler.now < 5.0 else None})(answer)

    scheduler = Scheduler(small(), Odd("compose", compose).policy())
    scheduler.handle(0.0, Arrived(Request("a", 10, None)))
    assert scheduler.handle(1.0, StepsDone("l0", 0, 0, 0, prefilled=("a",))).wake_at == 5.0
    with pytest.raises(PolicyError):
        scheduler.handle(5.0)
    scheduler.handle(6.0, StepsDone("l0", 1, 1, 1))
    assert asked[-2:] == [5.0, 6.0]
    scheduler.handle(7.0, StepsDone("l0", 1, 1, 2))
    assert asked[-1] == 6.0


@pytest.mark.parametrize("name", ["wake_at", "look_at"])
@pytest.mark.parametrize("before", [0.0, 5.0])
def test_who_always_wants_to_be_asked_at_once_does_not_stop_the_clock(name: str, before: float) -> None:
    costs, calls = AffineCosts(0.01, 1e-5, 1e-7), [0]

    def at_once(answer: Composition) -> Any:
        return composed(**{name: scheduler.now - before})(answer)

    def observe(now: float, events: tuple[Event, ...], plan: Plan) -> None:
        calls[0] += 1
        assert calls[0] < 1000, f"the loop stands at {now}"

    scheduler = Scheduler(small(), Odd("compose", at_once).policy(), costs)
    executor = SimulatedExecutor(small(), costs)
    for request in "abc":
        executor.expect(request, 20)
    arrivals = [(0.1 * at, Arrived(Request(name, 8, 30))) for at, name in enumerate("abc")]
    drive(scheduler, executor, arrivals, observe=observe)
    assert scheduler.counts["finished"] == 3


class Chooses(ArrivalOrder):
    """Takes the first who queues without asking who may begin."""

    def admit(self, view: LaneView) -> Iterable[Take]:  # type: ignore[override]
        return [Take(waiting.request.id, 4) for waiting in view.queue]


@pytest.mark.parametrize("admission", [ArrivalOrder(), Chooses()], ids=["the policy asks", "the scheduler asks"])
def test_a_hook_that_raises_is_named_and_not_the_policy(admission: ArrivalOrder) -> None:
    broken = [True]

    def eligible(request: Request) -> bool:
        if broken[0]:
            raise KeyError("tenant")
        return True

    scheduler = Scheduler(small(), evolve(fcfs(), admission=admission), eligible=eligible)
    with pytest.raises(HookError, match=r"^the `eligible` hook raised KeyError: 'tenant', asked about request 'a'$"):
        scheduler.handle(0.0, Arrived(Request("a", 4, 5)))
    scheduler.check()
    broken[0] = False
    assert [chunk.request for chunk in scheduler.handle(1.0).steps[0].chunks] == ["a"]


def test_hooks_refuse_nonsense_by_the_same_names() -> None:
    odd = Odd("compose", composed(wake_at="soon"))
    hooks = Hooks(odd.policy(), block_size=4, capacity_blocks=100, max_members=4)
    resident = Resident(ids=["a"], lengths=[10], left=[0], places=["device"])
    hooks.enqueue(Request("b", 10, 5))
    with pytest.raises(PolicyError, match="policy 'odd': compose: wake_at must be finite seconds or None, got 'soon'"):
        hooks.decide(0.0, resident, free_blocks=97)
    odd.on = False
    assert [take.request for take in hooks.decide(0.1, resident, free_blocks=97).prefill] == ["b"]
