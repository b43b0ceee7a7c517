"""A measured table from below: a plane that lies nowhere above it, so that the bound holds for measured costs too.

Between its points a table is linear in the mean length and in the members, and ``n``, ``total = n · mean`` are too: a
plane ``a + b·n + c·total`` that is not above the corners (those that the extension beyond the measured points goes
through included) is not above anything in between. It is the plane that fits best, lowered by the factor that takes.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from ..arrays import FloatArray
from ..cost_sheet import Interpolated
from ..cost_table import TableCosts


def decode_plane(costs: TableCosts) -> tuple[float, float, float]:
    """(a, b, c) of ``a + b·n + c·total`` seconds, all at least 0, at most a decode step of up to the most measured
    members. O(points).
    """  # fmt: skip
    inner = [
        (sheet.n, mean, seconds)
        for sheet in costs.sheets for mean, row in zip(sheet.means, sheet.seconds, strict=True) for seconds in row
    ]  # fmt: skip
    plane = _fitted(inner)
    corners = list(inner)
    for sheet in costs.sheets:
        read = Interpolated(sheet)
        corners += [
            (sheet.n, mean, seconds) for mean, row in zip(read.means, read.rows, strict=True) for seconds in row
        ]
    rows = np.array([(1.0, n, n * mean) for n, mean, _ in corners])
    seconds = np.array([value for _, _, value in corners])
    with np.errstate(divide="ignore"):
        lowered = min(1.0, float(np.min(seconds / (rows @ plane)))) * (1 - 1e-12)
    a, b, c = (lowered * plane).tolist()
    return a, b, c


def _fitted(points: list[tuple[int, float, float]]) -> FloatArray:
    """Non-negative coefficients of 1, n and total with small relative errors: negative ones are left out one by one."""
    rows = np.array([(1.0, n, n * mean) for n, mean, _ in points])
    seconds = np.array([value for _, _, value in points])
    scaled, kept = rows / seconds[:, None], [0, 1, 2]
    while True:
        found = np.linalg.lstsq(scaled[:, kept], np.ones(len(points)), rcond=None)[0]
        if len(kept) == 1 or (found >= 0).all():
            break
        kept.pop(int(np.argmin(found)))
    plane = np.zeros(3)
    plane[kept] = np.maximum(found, 0.0)
    return plane


def per_chunk_row(costs: TableCosts) -> tuple[float, float]:
    """Least seconds of each prefill token in any step, and what a step without members costs beside those."""
    prefill = costs.prefill
    row, fixed = prefill.per_token + prefill.per_context, prefill.t0  # each token is read at least once
    if prefill.rows is not None:
        curve = prefill.rows
        points = list(zip(curve.rows, curve.seconds, strict=True))
        slopes = [(high - low) / (to - at) for (at, low), (to, high) in pairwise(points)]
        flattest = min([*slopes, curve.seconds[0]]) if curve.rows[0] <= 1 and slopes else 0.0
        row += flattest
        fixed += curve.seconds[0] - flattest
    return row, fixed
