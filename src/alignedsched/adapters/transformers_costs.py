"""What a step of transformers costs where attention is *packed*, and how that is learned from the steps themselves.

With ``sdpa`` or ``eager`` attention, continuous batching lays the query rows of a step side by side, and all keys that
any of them reads; every row is multiplied with every key, and a mask throws away what is not its own. So a step pays
for rows times keys: who decodes beside a prompt of 512 tokens has his keys read 512 times.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import numpy as np
from attrs import define, field, frozen

from ..load import Load, check_uniform
from ..policies.options import number

if TYPE_CHECKING:
    from ..arrays import FloatArray

KEPT = 256  # steps a fit rests on
FIRST = 8  # steps before the first fit
EVERY = 32  # steps between later ones
GOOD = 0.25  # the median relative error of a fit that is believed
LEAST = 0.25  # a step never costs less beside its rows and keys than this share of the shortest step seen


@frozen
class PackedCosts:
    """``t0 + per_row·rows + per_key·keys + per_pair·rows·keys``, in seconds: the costs of packed attention.

    Rows are members plus tokens of chunks, keys all tokens that any of them reads. Raises ConfigError for a number
    below 0.
    """

    t0: float = field(validator=number(0.0))
    per_row: float = field(validator=number(0.0))
    per_key: float = field(validator=number(0.0))
    per_pair: float = field(validator=number(0.0))
    surface: str = field(default="packed", init=False)

    def packed_seconds(self, rows: int, keys: int) -> float:
        """One step of so many query rows over so many keys. O(1)."""
        return self.t0 + self.per_row * rows + self.per_key * keys + self.per_pair * rows * keys

    def step_seconds(self, load: Load) -> float:
        """See Costs. O(chunks)."""
        if not (load.n or load.chunks):
            return 0.0
        return self.packed_seconds(*_packed(load))

    def balanced_seconds(self, load: Load) -> float:
        """See Costs: every row reads the keys of its own request only. O(chunks)."""
        if not (load.n or load.chunks):
            return 0.0
        rows, keys = _packed(load)
        own = load.total + sum((end - start) * end for start, end in load.chunks)
        return self.t0 + self.per_row * rows + self.per_key * keys + self.per_pair * own

    def finishing_times(self, load: Load, steps: int) -> FloatArray:
        """See Costs. O(steps)."""
        check_uniform(steps, load)
        if not load.n:
            return np.zeros(steps)
        keys = load.total + load.n * np.arange(steps, dtype=np.float64)
        return np.cumsum(self.t0 + self.per_row * load.n + (self.per_key + self.per_pair * load.n) * keys)


def _packed(load: Load) -> tuple[int, int]:
    """Rows and keys of a step."""
    rows = load.n + sum(end - start for start, end in load.chunks)
    return rows, load.total + sum(end for _, end in load.chunks)


@define(eq=False)
class PackedFit:
    """Learns ``PackedCosts`` from steps as they are measured; ``costs`` is None until the steps are explained.

    Least squares of the relative error over the last ``KEPT`` steps, no factor below 0. A step costs 1 µs, a fit
    about 0.2 ms: the first after ``FIRST`` steps, then at twice as many, at last every ``EVERY`` steps.
    """

    costs: PackedCosts | None = None
    _facts: deque[tuple[int, int, float]] = field(init=False, factory=lambda: deque(maxlen=KEPT))
    _seen: int = field(init=False, default=0)
    _next: int = field(init=False, default=FIRST)

    def add(self, rows: int, keys: int, seconds: float) -> None:
        """A step of so many query rows over so many keys has taken so long."""
        if seconds <= 0.0:
            return
        self._facts.append((rows, keys, seconds))
        self._seen += 1
        if self._seen >= self._next:
            self._next = self._seen + min(self._seen, EVERY)
            self.costs = self._fit()

    def _fit(self) -> PackedCosts | None:
        rows, keys, seconds = np.array(self._facts, dtype=np.float64).T
        parts = np.stack([np.ones_like(rows), rows, keys, rows * keys]) / seconds
        weights = np.ones_like(rows)
        factors = _not_negative(parts, weights)
        for _ in range(2):  # steps that something else held up count for less
            errors = np.abs(factors @ parts - 1.0)
            weights = np.minimum(1.0, 2.0 * np.median(errors) / np.maximum(errors, 1e-9))
            factors = _not_negative(parts, weights)
        if np.median(np.abs(factors @ parts - 1.0)) > GOOD:
            return None
        t0, per_row, per_key, per_pair = map(float, factors)
        return PackedCosts(max(t0, LEAST * float(seconds.min())), per_row, per_key, per_pair)


def _not_negative(parts: FloatArray, weights: FloatArray) -> FloatArray:
    """Factors of at least 0 with ``factors @ parts`` near 1; the most negative one is left out until none is."""
    factors, used = np.zeros(len(parts)), list(range(len(parts)))
    scale = np.abs(parts).max(axis=1)
    while used:
        some = parts[used] / scale[used, None] * weights
        solved = np.linalg.lstsq(some.T, weights, rcond=1e-6)[0] / scale[used]
        worst = int(np.argmin(solved * scale[used]))
        if solved[worst] >= 0.0:
            factors[used] = solved
            return factors
        del used[worst]
    return factors
