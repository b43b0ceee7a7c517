"""What steps cost on this machine, fitted to the steps of the run itself: five numbers by least squares.

A step is taken to cost so much by itself, so much a row, a token read, a token of imbalance (the padding a batch would
need: members times the longest, less the sum) and a query-key pair of prefill; none of them below 0. It is an estimate
for this run's figures, no calibration: it says nothing of batches that were not seen.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from alignedsched.costs import AffineCosts
from alignedsched.load import Load

ENOUGH = 16  # reports, before anything is said
Floats = npt.NDArray[np.float64]


def uneven(load: Load, steps: int) -> float:
    """Tokens of imbalance in ``steps`` steps: they stay the same while all members grow together."""
    return float(steps * (load.n * load.longest - load.total))


def _features(load: Load, steps: int) -> Floats:
    """[steps, rows, tokens read, tokens of imbalance, pairs] of ``steps`` steps that begin with this load."""
    rows = load.n * steps + sum(end - start for start, end in load.chunks)
    total = load.total * steps + load.n * steps * (steps - 1) // 2
    pairs = sum((end - start) * (start + end + 1) / 2 for start, end in load.chunks)
    return np.array([steps, rows, total, uneven(load, steps), pairs], dtype=np.float64)


class OwnSurface:
    """Fed with reports, asked at the end. Memory O(1), a report O(1)."""

    def __init__(self) -> None:
        self._reports = 0
        self._seconds = 0.0
        self._sums: Floats = np.zeros(5)
        self._products: Any = np.zeros((5, 5))
        self._right: Floats = np.zeros(5)

    def add(self, load: Load, steps: int, seconds: float) -> None:
        """``steps`` steps took ``seconds``. Each report weighs as one step of its mean."""
        features = _features(load, steps)
        self._reports += 1
        self._seconds += seconds
        self._sums += features
        self._products += np.outer(features, features) / steps
        self._right += features * seconds / steps

    def fitted(self) -> tuple[AffineCosts, float] | None:
        """The balanced surface, and seconds a token of imbalance; None while too little was seen.

        Scaled so that it gives the run's steps together the seconds they took.
        """
        if self._reports < ENOUGH:
            return None
        found = self._least_squares()
        told = float(found @ self._sums)
        if not told > 0:
            return None
        t0, row, token, imbalance, pair = (found * (self._seconds / told)).tolist()
        return AffineCosts(t0, row, token, per_pair=pair), imbalance

    def _least_squares(self) -> Floats:
        """Of the numbers that come out below 0 the worst is left out, until none does."""
        scale = np.sqrt(np.diag(self._products))
        kept = [k for k in range(5) if scale[k] > 0]
        while kept:
            s = scale[kept]
            matrix = self._products[np.ix_(kept, kept)] / np.outer(s, s) + 1e-9 * np.eye(len(kept))
            found = np.linalg.solve(matrix, self._right[kept] / s)
            if found.min() >= 0:
                every = np.zeros(5)
                every[kept] = found / s
                return every
            del kept[int(found.argmin())]
        return np.zeros(5)
