"""A weighted histogram with log-spaced bins: quantiles of hundreds of millions of gaps in one small array.

Bin ``i`` holds the values from ``LEAST * RATIO**i`` up to ``RATIO`` times that, RATIO = 1.002. A quantile is answered
with the middle of its bin (geometric, and never outside the observed least and greatest value), so its relative error
is at most sqrt(1.002) - 1 < 0.1 % for values within [LEAST, MOST); smaller values, zero among them, answer as the
least value seen, larger ones as the greatest. Count and greatest value are exact, the mean is exact up to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from ..errors import CallerError

FloatArray = npt.NDArray[np.float64]
Summary = Mapping[str, float | None]

RATIO = 1.002
LEAST = 1e-9
MOST = 1e9
QUANTILES = (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))
_LOG_RATIO = math.log(RATIO)
_BINS = math.ceil(math.log(MOST / LEAST) / _LOG_RATIO)
_BUFFER = 8192


def rank_of(quantile: float, count: int) -> int:
    """The 1-based rank that answers a quantile among ``count`` values: nearest rank, ``ceil(quantile * count)``.

    A product that rounding alone lifts above a whole number counts as that number (0.9 of 10 is rank 9).
    """
    return min(count, max(1, math.ceil(quantile * count * (1.0 - 1e-12))))


def summarize(values: FloatArray) -> dict[str, float | None]:
    """``mean``, ``p50``, ``p90``, ``p99``, ``max`` of raw values, shape (n,); all None without values. O(n log n).

    Quantiles are nearest-rank: always one of the values. Raises CallerError for a value that is not finite.
    """
    if not len(values):
        return dict.fromkeys(("mean", *(name for name, _ in QUANTILES), "max"))
    if not np.isfinite(values).all():
        raise CallerError("summarize: values must be finite")
    ordered = np.sort(values)
    picked = {name: float(ordered[rank_of(q, len(ordered)) - 1]) for name, q in QUANTILES}
    # A mean computed by summation may fall a rounding error outside its values.
    mean = min(max(float(ordered.mean()), float(ordered[0])), float(ordered[-1]))
    return {"mean": mean, **picked, "max": float(ordered[-1])}


class LogHistogram:
    """Non-negative values with whole weights. ``add`` is O(1) amortised; memory is constant (some 200 kB)."""

    __slots__ = (
        "_counts",
        "_least",
        "_low",
        "_most",
        "_sum",
        "_values",
        "_weights",
    )

    def __init__(self) -> None:
        self._counts = np.zeros(_BINS + 1, dtype=np.int64)  # the last bin holds everything from MOST on
        self._low = 0  # weight of values below LEAST, zero among them
        self._sum = 0.0
        self._least = math.inf
        self._most = 0.0
        self._values: list[float] = []
        self._weights: list[int] = []

    def add(self, value: float, weight: int = 1) -> None:
        """Count ``value`` (at least 0, finite) ``weight`` times. Raises CallerError for anything else."""
        if not 0.0 <= value < math.inf or weight < 0:
            raise CallerError(f"a histogram counts finite values of at least 0 with weights of at least 0, got "
                              f"value {value!r}, weight {weight!r}")  # fmt: skip
        if weight:
            self._values.append(value)
            self._weights.append(weight)
            if len(self._values) >= _BUFFER:
                self._flush()

    def add_many(self, values: Sequence[float] | FloatArray, weight: int = 1) -> None:
        """Count each of ``values``, k of them, ``weight`` times. O(k). Raises CallerError as ``add`` does.

        A list is the quicker form for the few values between two events, an array is taken as well.
        """
        each: Sequence[float] = values.tolist() if isinstance(values, np.ndarray) else values
        if not each:
            return
        # A sum is finite only if all of its values are, and tells a NaN, which a least value may not.
        if weight < 0 or not (min(each) >= 0.0 and sum(each) < math.inf):
            raise CallerError("a histogram counts finite values of at least 0 with weights of at least 0")
        if weight:
            self._values.extend(each)
            self._weights.extend([weight] * len(each))
            if len(self._values) >= _BUFFER:
                self._flush()

    def _flush(self) -> None:
        if self._values:
            self._count(np.array(self._values), np.array(self._weights, dtype=np.int64))
            self._values.clear()
            self._weights.clear()

    def _count(self, values: FloatArray, weights: npt.NDArray[np.int64]) -> None:
        self._sum += float(np.dot(values, weights))
        self._least = min(self._least, float(values.min()))
        self._most = max(self._most, float(values.max()))
        low = values < LEAST
        if low.any():
            self._low += int(weights[low].sum())
            values, weights = values[~low], weights[~low]
        bins = np.log(values / LEAST)
        bins /= _LOG_RATIO
        # np.add.at keeps whole weights exact; bincount would pass them through floats.
        np.add.at(self._counts, np.minimum(bins.astype(np.int64), _BINS), weights)

    @property
    def count(self) -> int:
        """The sum of all weights, exact."""
        self._flush()
        return self._low + int(self._counts.sum())

    @property
    def mean(self) -> float | None:
        """Weighted mean, exact up to rounding; None without values."""
        count = self.count
        return min(max(self._sum / count, self._least), self._most) if count else None

    @property
    def max(self) -> float | None:
        """The greatest value, exact; None without values."""
        return self._most if self.count else None

    def quantile(self, quantile: float) -> float | None:
        """The value of nearest rank, within 0.1 % (see above); None without values. O(bins).

        Raises CallerError unless ``quantile`` is in [0, 1].
        """
        if not 0.0 <= quantile <= 1.0:
            raise CallerError(f"quantile must be within [0, 1], got {quantile!r}")
        count = self.count
        if not count:
            return None
        rank = rank_of(quantile, count)
        if rank == count:
            return self._most
        if rank <= self._low:
            return self._least
        index = int(np.searchsorted(np.cumsum(self._counts), rank - self._low))
        if index == _BINS:
            return self._most
        middle = LEAST * math.exp((index + 0.5) * _LOG_RATIO)
        return min(max(middle, self._least), self._most)

    def summary(self) -> dict[str, float | None]:
        """``mean``, ``p50``, ``p90``, ``p99``, ``max``; all None without values."""
        return {"mean": self.mean, **{name: self.quantile(q) for name, q in QUANTILES}, "max": self.max}
