"""Lives of schedulers that can be looked at from outside: each plan kept as bytes, the scheduler replaced at will."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any, cast

from alignedsched.costs import AffineCosts
from alignedsched.events import Event
from alignedsched.plan import Plan
from alignedsched.policies.protocols import PlainData, Policy
from alignedsched.registry import policy, policy_names
from alignedsched.scheduler import Scheduler
from alignedsched.story.codec import plan_bytes
from alignedsched.testing.erratic import Erratic
from alignedsched.testing.world import World

SMALL: dict[str, dict[str, Any]] = {"density_first": {"k_min": 2, "guard_s": 2.0, "patience_s": 3.0}}
"""Options with which a policy does in a small world what it does in a large one."""
NEEDS_MORE = ("sjf_oracle",)  # to be told what only the simulator knows
COSTS = AffineCosts(1e-3, 1e-5, 1e-6, surface="padded")


def _maker(name: str, **options: Any) -> Callable[[], Policy]:
    return lambda: policy(name, **options)


POLICIES: dict[str, Callable[[], Policy]] = {
    name: _maker(name, **SMALL.get(name, {})) for name in policy_names() if name not in NEEDS_MORE
}
POLICIES["swap"] = _maker("fcfs", swap=True)


class Chaos(Erratic):
    """Proposes anything, raises now and then, and remembers where its random numbers were."""

    def state(self) -> PlainData:
        version, words, gauss = self.rng.getstate()
        return [version, list(words), gauss, self.sane, sorted(self.cleaned)]

    def load(self, state: PlainData) -> None:
        version, words, gauss, self.sane, cleaned = cast(Any, state)
        self.cleaned = set(cleaned)
        self.rng.setstate((version, tuple(words), gauss))


def chaos(seed: int = 7) -> Policy:
    erratic = Chaos(seed)
    erratic.raises = 0.02
    return Policy("chaos", erratic, erratic, erratic)


POLICIES["chaos"] = chaos


class Whoever:
    """Stands for the scheduler of the moment; ``before`` is asked before each of its calls."""

    def __init__(self, scheduler: Scheduler, before: Callable[[], None]) -> None:
        self.present = scheduler
        self.before = before

    def handle(self, now: float, *events: Event) -> Plan:
        self.before()
        return self.present.handle(now, *events)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.present, name)


class Life(World):
    """A World that keeps every plan as bytes. ``make`` makes its scheduler, ``before`` is asked before each call."""

    def __init__(
        self,
        seed: int,
        policy: Policy,
        make: Callable[..., Scheduler] = Scheduler,
        before: Callable[[Life], None] = lambda life: None,
    ) -> None:
        super().__init__(seed, policy=policy)
        self.plans: list[bytes] = []
        self.present = Whoever(self.scheduler, lambda: before(self))
        self.bring(make(self.cluster, policy, COSTS, **self.scheduler.settings))

    def bring(self, scheduler: Scheduler) -> None:
        """From now on this scheduler is asked."""
        self.present.present = scheduler
        self.scheduler = cast(Scheduler, self.present)
        self.policy = scheduler.policy
        batching = self.policy.batching
        self.erratic = batching if isinstance(batching, Erratic) else None

    def _handle(self, events: tuple[Event, ...]) -> Plan:
        plan = super()._handle(events)
        self.plans.append(plan_bytes(plan))
        return plan

    def live(self, calls: int = 60, to_the_end: bool = True) -> list[bytes]:
        """The end tells an erratic policy to be sane, which is no event: a log of it does not replay."""
        rng = Random(self.seed)
        for _ in range(calls):
            self.act(rng)
        if to_the_end:
            self.finish(rng)
        return self.plans
