"""Whole lives of a policy under test: among every kind of trouble, examined; and lived again, to be compared."""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Callable
from random import Random

from ..costs import AffineCosts, Costs
from ..errors import InvariantError, PolicyError
from ..events import Event
from ..plan import Plan
from ..policies.protocols import Policy
from .probe import Probe, SpoiledError, overruled
from .results import Findings
from .served import Served, crowded
from .world import UnfinishedError, World

Make = Callable[[], Policy]


def costs_of(seed: int) -> Costs | None:
    """What a life's policy is told about costs: nothing, or one of the surfaces."""
    surface = (None, "balanced", "padded", "gated", "unsplit")[seed % 5]
    if surface is None:
        return None
    return AffineCosts(0.01, 1e-4, 1e-6, 3e-5, surface, 4.0, 1e-9)


class WatchedWorld(World):
    """A world that counts its calls, keeps a digest of every plan, and looks for what only plans show."""

    def __init__(self, seed: int, probe: Probe, findings: Findings) -> None:
        super().__init__(seed, seed % 4 != 0, policy=probe.policy(), costs=costs_of(seed))
        self._probe = probe
        self._findings = findings
        self.digests: list[str] = []  # one a call, each over all plans so far
        self._digest = hashlib.sha256()

    def call(self, *events: Event) -> Plan:
        self._findings.calls += 1
        before = self.scheduler.counts["overruled"]
        plan = super().call(*events)
        if self.scheduler.counts["overruled"] > before:
            self._findings.note("chooses_something", overruled(plan))
        self._digest.update(repr((self.now, events, plan)).encode())
        self.digests.append(self._digest.hexdigest())
        if self._probe.spoiled:
            raise SpoiledError
        return plan


def adversarial(seed: int, calls: int, probe: Probe, findings: Findings) -> list[str]:
    """One life among every kind of trouble; returns the digests of its plans. What is wrong is noted, not raised."""
    world = WatchedWorld(seed, probe, findings)
    rng = Random(seed ^ 0x5EED)
    try:
        for _ in range(calls):
            world.act(rng)
        world.finish(rng)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is a finding
        if not probe.spoiled:
            findings.note(*_named(error))
    return world.digests


def _named(error: Exception) -> tuple[str, str]:
    """Which check an error in a life breaks, and what to say of it."""
    if isinstance(error, PolicyError):
        return "raises_nothing", f"raised whenever it was asked: {error}"
    if isinstance(error, UnfinishedError):
        return "everything_ends", str(error)
    if isinstance(error, AssertionError) and not isinstance(error, InvariantError):
        return "plans_are_legal", str(error)
    return "invariants", f"{type(error).__name__}: {error}"


def lived(make: Make, seed: int, calls: int, *, restore: float = 0.0) -> list[str]:
    """Digests of every plan of two lives, one among trouble and one in a crowd; nobody looks at single answers.

    ``restore``: with this probability, before each question, a fresh policy loaded with ``state()`` takes over.
    """
    unseen = Findings.anything()
    digests = adversarial(seed, calls, Probe(make, unseen, examine=0.0, restore=restore), unseen)
    crowd = Served(crowded(seed), Probe(make, unseen, examine=0.0, restore=restore), unseen)
    crowd.run(seed, calls // 2)
    return digests + crowd.digests


def lived_among_clutter(make: Make, seed: int, calls: int) -> list[str]:
    """The same lives in a process that looks different: other objects alive, policies made before, no collections."""
    others = [make() for _ in range(3)]
    clutter = [str(number) * (number % 7) for number in range(1000 + seed % 1000)]
    collects = gc.isenabled()
    gc.disable()
    try:
        return lived(make, seed, calls)
    finally:
        if collects:
            gc.enable()
        del others, clutter
