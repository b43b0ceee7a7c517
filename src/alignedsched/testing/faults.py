"""Fault plans: which families of faults, how often, when, where, and from which seed; plain data.

``docs/faults.md`` says for each family what the core answers and which test shows it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from random import Random
from typing import Any

from attrs import field, frozen

from ..errors import ConfigError
from ..events import Arrived, CallerEvent, Cancelled

FAMILIES: dict[str, str] = {
    "step_failed": "an order fails before its first step; now and then one request is named as the cause",
    "copy_failed": "a copy fails, with nothing, some or all of it written",
    "copy_delayed": "a completion comes late, so after others",
    "copy_lost": "a completion comes after ``seconds``, or never (inf)",
    "duplicate": "a report comes again",
    "capacity": "a tier gets smaller, down to nothing, and is whole again after ``seconds``",
    "less_promised": "a tier is smaller than promised from the start",
    "link_down": "a link is down for ``seconds``; copies over it fail",
    "staged_lost": "a helper takes its staging memory back",
    "lane_lost": "a lane stops between two steps, and is back after ``seconds`` (inf: never)",
    "device_lost": "a device is lost with its KV, and is back, empty, after ``seconds`` (inf: never)",
    "stall": "nothing goes on for up to ``seconds``: slow and stuck steps",
    "clock_stands": "the clock stands still for a few calls",
    "clock_jumps": "the clock jumps forward by ``seconds``",
    "clock_turns_back": "the clock is behind for one call",
}
VIRTUAL_TIME = {"stall", "clock_stands", "clock_jumps", "clock_turns_back"}  # need an executor in virtual time


def _family(instance: Any, attribute: Any, value: str) -> None:
    if value not in FAMILIES:
        raise ConfigError(f"Fault.family must be one of {', '.join(FAMILIES)}, got {value!r}")


def _share(instance: Any, attribute: Any, value: float) -> None:
    if not 0 <= value <= 1:
        raise ConfigError(f"Fault.{attribute.name} must lie between 0 and 1, got {value!r}")


def _length(instance: Any, attribute: Any, value: float) -> None:
    if math.isnan(value) or value < 0:
        raise ConfigError(f"Fault.{attribute.name} must be seconds of at least 0, got {value!r}")


@frozen
class Fault:
    """One family of faults: at each occasion between ``start`` and ``end`` (seconds) with this ``probability``.

    ``target`` names the lane, device or tier it strikes, or a link as ``"a->b"`` (None: whichever comes along).
    ``seconds`` is how long it lasts. Raises ConfigError naming the field that is out of range.
    """

    family: str = field(validator=_family)
    probability: float = field(default=0.05, validator=_share)
    start: float = field(default=0.0, validator=_length)
    end: float = field(default=math.inf, validator=_length)
    target: str | None = None
    seconds: float = field(default=1.0, validator=_length)


@frozen
class FaultPlan:
    """Faults and the seed of all chances in them: the same plan over the same executor does the same."""

    seed: int
    faults: tuple[Fault, ...] = ()

    @classmethod
    def drawn(cls, seed: int, families: Iterable[str] = tuple(FAMILIES), *, seconds: float = 1.0) -> FaultPlan:
        """A random part of the families, each with its own probability (swarm testing: most runs lack most faults)."""
        rng = Random(seed)
        chosen = [family for family in families if rng.random() < 0.5]
        shares = (0.02, 0.1, 0.4)
        return cls(seed, tuple(Fault(family, rng.choice(shares), seconds=seconds) for family in chosen))


class Chances:
    """Says whether a fault strikes now. All chances come from one seed, in the order they are asked for."""

    def __init__(self, plan: FaultPlan) -> None:
        self.rng = Random(plan.seed)
        self._of: dict[str, list[Fault]] = {}
        for fault in plan.faults:
            self._of.setdefault(fault.family, []).append(fault)

    def strikes(self, family: str, now: float, target: str | None = None) -> Fault | None:
        """The fault of a family that strikes a target now, or None. O(faults of the family)."""
        for fault in self._of.get(family, ()):
            fits = fault.target is None or target is None or fault.target == target
            if fits and fault.start <= now <= fault.end and self.rng.random() < fault.probability:
                return fault
        return None


def cancel_storm(
    arrivals: Iterable[tuple[float, CallerEvent]], at: float, *, share: float = 1.0, seed: int = 0
) -> Iterator[tuple[float, CallerEvent]]:
    """Arrivals, and at time ``at`` cancels of this share of all that arrived until then, all at once."""
    rng, names, due = Random(seed), list[str](), True
    for time, event in arrivals:
        if due and time >= at:
            due = False
            yield from ((time, Cancelled(name)) for name in names if rng.random() < share)
        if isinstance(event, Arrived):
            names.append(event.request.id)
        yield time, event
    if due:
        yield from ((at, Cancelled(name)) for name in names if rng.random() < share)
