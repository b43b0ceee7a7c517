"""Amounts over time in bounded memory: bins of equal width, twice as wide each time the run outgrows them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

BINS = 128
FloatArray = npt.NDArray[np.float64]


class Series:
    """Sums of several amounts (the columns) by time. ``add`` is O(columns) for what falls into one bin."""

    def __init__(self, columns: Sequence[str], narrowest: float = 1 / 64) -> None:
        self.columns = tuple(columns)
        self.width = narrowest  # seconds
        self._sums = np.zeros((BINS, len(self.columns)))
        self._origin: float | None = None
        self._end = 0.0

    def add(self, begin: float, end: float, amounts: Sequence[float]) -> None:
        """Spread ``amounts``, one for each column, evenly over the time from ``begin`` to ``end`` (seconds).

        The first call sets where time begins; what is earlier is counted there.
        """
        if self._origin is None:
            self._origin = begin
        begin, end = max(0.0, begin - self._origin), max(0.0, end - self._origin)
        self._end = max(self._end, end)
        while end >= self.width * BINS:
            self._sums = np.concatenate((self._sums.reshape(BINS // 2, 2, -1).sum(axis=1), np.zeros_like(self._sums)))
            self._sums = self._sums[:BINS]
            self.width *= 2
        first, last = int(begin / self.width), int(end / self.width)
        if first == last or end <= begin:
            self._sums[last] += amounts
            return
        edges = np.arange(first, last + 2) * self.width
        shares = np.diff(np.clip(edges, begin, end)) / (end - begin)
        self._sums[first : last + 1] += np.outer(shares, amounts)

    def ends(self) -> FloatArray:
        """When each bin that is in use ends, the last of them where the run does; shape (bins,)."""
        count = min(BINS, int(self._end / self.width) + 1)
        ends: FloatArray = (self._origin or 0.0) + np.minimum(np.arange(1, count + 1) * self.width, self._end)
        return ends

    def sums(self, column: str) -> FloatArray:
        """One column's sum of each bin in use; shape (bins,)."""
        sums: FloatArray = self._sums[: len(self.ends()), self.columns.index(column)].copy()
        return sums
