"""Straight fits to what was measured, and how far off they are on what they did not see."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from statistics import median

import numpy as np
import numpy.typing as npt

from alignedsched.measured import Errors

Floats = npt.NDArray[np.float64]


def least_squares(features: Sequence[Sequence[float]], seconds: Sequence[float], scale: Sequence[float]) -> Floats:
    """Coefficients of at least 0 that explain ``seconds``, errors weighed by 1 / ``scale``; shape (features,).

    Exact: the best non-negative solution solves the plain problem on some subset of the features, and they are few.
    O(2^features · rows · features²).
    """
    weights = 1.0 / np.asarray(scale, dtype=np.float64)
    a = np.asarray(features, dtype=np.float64) * weights[:, None]
    b = np.asarray(seconds, dtype=np.float64) * weights
    size = np.abs(a).max(axis=0)
    size[size == 0] = 1.0
    a = a / size  # columns of one size: lengths squared stand beside ones
    count = a.shape[1]
    best, error = np.zeros(count), float(b @ b)
    for chosen in (c for k in range(1, count + 1) for c in combinations(range(count), k)):
        found = np.linalg.lstsq(a[:, chosen], b, rcond=None)[0]
        if (found < 0).any():
            continue
        left = b - a[:, chosen] @ found
        if float(left @ left) < error * (1 - 1e-9):
            error, best = float(left @ left), np.zeros(count)
            best[list(chosen)] = found
    return np.asarray(best / size)


def errors(predicted: Sequence[float], measured: Sequence[float]) -> Errors:
    """How far predictions are off. At least one of each."""
    ratios = np.asarray(predicted, dtype=np.float64) / np.asarray(measured, dtype=np.float64) - 1
    off = np.abs(ratios)
    return Errors(len(ratios), float(np.median(off)), float(np.quantile(off, 0.9)), float(median(ratios.tolist())))
