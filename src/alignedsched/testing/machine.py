"""A ready Hypothesis state machine around one scheduler, to subclass: say which policy, on which cluster.

    class MyMachine(SchedulerMachine):
        def policy(self) -> Policy:
            return my_policy()

    TestMine = MyMachine.TestCase

Single actions come in any order, each told to the scheduler at once; after each, every invariant is verified and the
plan is carried out, and checked, by the adversary. In the end everything has to end. See ``World`` for the actions.
"""

from __future__ import annotations

from random import Random

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from ..cluster import Cluster
from ..events import Event
from ..load import Costs
from ..policies.protocols import Policy
from .happenings import Action
from .world import World

CHANCE = st.randoms(use_true_random=False)


class SchedulerMachine(RuleBasedStateMachine):
    """Override ``policy``, ``cluster``, ``costs`` or ``trouble`` to fix them; what is not fixed is drawn."""

    world: World

    def policy(self) -> Policy | None:
        """A fresh policy; None: a shipped or an erratic one is drawn."""
        return None

    def cluster(self) -> Cluster | None:
        """The cluster; None: a small one is drawn."""
        return None

    def costs(self) -> Costs | None:
        """What the policy is told about costs."""
        return None

    def trouble(self) -> bool:
        """Whether steps and copies fail, devices vanish, links break."""
        return True

    @initialize(seed=st.integers(0, 1 << 20))
    def begin(self, seed: int) -> None:
        self.world = World(seed, self.trouble(), cluster=self.cluster(), policy=self.policy(), costs=self.costs())

    def _do(self, rng: Random, *actions: Action) -> None:
        events: list[Event] = []
        for action in actions:
            events += action(rng)
        self.world.call(*events)

    @rule(rng=CHANCE)
    def arrive(self, rng: Random) -> None:
        self._do(rng, self.world.arrive)

    @rule(rng=CHANCE)
    def cancel(self, rng: Random) -> None:
        self._do(rng, self.world.cancel)

    @rule(rng=CHANCE)
    def steps_in_silence(self, rng: Random) -> None:
        self.world.step(rng)

    @rule(rng=CHANCE)
    def steps_and_reports(self, rng: Random) -> None:
        self._do(rng, self.world.step, self.world.report)

    @rule(rng=CHANCE)
    def copies_end(self, rng: Random) -> None:
        self._do(rng, self.world.end_copies)

    @rule(rng=CHANCE)
    def reports_come_twice(self, rng: Random) -> None:
        self._do(rng, self.world.repeat)

    @rule(rng=CHANCE)
    def something_goes_wrong(self, rng: Random) -> None:
        if self.trouble():
            _, action = rng.choice(self.world.troubles())
            self._do(rng, action)

    @rule(rng=CHANCE)
    def several_at_once(self, rng: Random) -> None:
        self.world.act(rng)

    @invariant()
    def all_invariants_hold(self) -> None:
        if hasattr(self, "world"):
            self.world.scheduler.check()

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.finish(Random(0))
