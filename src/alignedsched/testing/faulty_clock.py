"""The clock of a ``FaultyExecutor``: ahead of the one inside by stalls and jumps; it may stand, or turn back once."""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random

from ..driver import Executor
from ..events import ExecutorEvent
from .faults import Fault


class FaultyClock:
    """Time as the scheduler is told it. ``strikes`` says whether a family of faults strikes now."""

    def __init__(self, inner: Executor, rng: Random, strikes: Callable[[str], Fault | None]) -> None:
        self._inner = inner
        self._rng = rng
        self._strikes = strikes
        self.lag = 0.0  # how far it is ahead of the one inside
        self._stalled_to = -math.inf
        self._standing = 0  # readings for which it stands still
        self._at = 0.0
        self._behind = 0.0

    def now(self) -> float:
        """The time it is."""
        return self._inner.now() + self.lag

    def read(self) -> float:
        """The time it says it is."""
        if self._standing:
            self._standing -= 1
            return self._at
        self._at = self.now()
        behind, self._behind = self._behind, 0.0
        return self._at - behind

    def pass_time(self, now: float, until: float | None) -> list[ExecutorEvent] | None:
        """Let time pass in which nothing goes on: an empty report at ``until``, or None when it goes on."""
        fault = self._strikes("stall")
        if fault is not None:
            self._stalled_to = max(self._stalled_to, now + fault.seconds * self._rng.random())
        if (fault := self._strikes("clock_jumps")) is not None:
            self.lag += fault.seconds
        if (fault := self._strikes("clock_stands")) is not None:
            self._at, self._standing = now, self._rng.randint(1, 4)
        if (fault := self._strikes("clock_turns_back")) is not None:
            self._behind = min(now, fault.seconds)
        if now >= self._stalled_to:
            return None
        ends = self._stalled_to if until is None else min(self._stalled_to, until)
        self.lag += max(0.0, ends - now)
        return [] if ends < self._stalled_to else None
