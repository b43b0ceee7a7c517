"""Many measurements in turn, as often as time allows: a disturbance then falls on a few of each and on none wholly."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from statistics import median
from typing import TypeVar

import numpy as np

LEAST = 3  # repetitions of each, whatever it takes
Told = Callable[[str, int, int], None]  # what is measured, how many are done, of how many
Key = TypeVar("Key", bound=Hashable)


def quiet(what: str, done: int, of: int) -> None:
    """Tell nobody."""


class Rounds:
    """Repeats measurements until ``seconds`` of real time are over, each at least ``LEAST`` times."""

    def __init__(self, what: str, seconds: float, rng: np.random.Generator, told: Told = quiet) -> None:
        self._what = what
        self._until = time.monotonic() + seconds
        self.rng = rng
        self._told = told

    def left(self) -> float:
        return self._until - time.monotonic()

    def run(self, keys: Sequence[Key], measure: Callable[[Key], float]) -> dict[Key, list[float]]:
        """Every key's measurements; each round takes the keys in another order."""
        found: dict[Key, list[float]] = {key: [] for key in keys}
        turn, longest = 0, 0.0
        while turn < LEAST or self.left() > longest:
            began = time.monotonic()
            for number, place in enumerate(self.rng.permutation(len(keys)).tolist()):
                found[keys[place]].append(measure(keys[place]))
                self._told(f"{self._what}, round {turn + 1}", number + 1, len(keys))
            longest = max(longest, time.monotonic() - began)
            turn += 1
        return found

    def medians(self, keys: Sequence[Key], measure: Callable[[Key], float]) -> dict[Key, float]:
        """The median of each key's measurements."""
        return {key: median(found) for key, found in self.run(keys, measure).items()}
