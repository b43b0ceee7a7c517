"""A step in parts: whoever would take part in one step runs in several, where that takes less time in all.

On a packed surface (``transformers_costs``) a step pays for its rows times its keys. Few rows that read many keys (long
decodes) and many rows that read few (a prompt) cost least apart. Everybody advances as far as in the common step, so
nobody waits longer for it; only the fixed cost of a step is paid once a part. Sorted by keys per row, the best parts
are intervals: by exchange, as for any sum of products.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

from .transformers_costs import PackedCosts

SAVING = 0.03  # parts save at least this share of the common step
CUTS = 24  # places looked at for an end of a part, at most twice so many


def parts(rows: Sequence[int], keys: Sequence[int], costs: PackedCosts) -> list[list[int]]:
    """Indexes of requests, part by part; row i has ``rows[i]`` queries that read ``keys[i]`` tokens.

    One part holds all if that is fastest within ``SAVING``. Ascending by keys per row. O(n log n), and O(n) where the
    product costs less than another step would.
    """
    n = len(rows)
    all_rows, all_keys = sum(rows), sum(keys)
    if n < 2 or costs.per_pair * all_rows * all_keys <= costs.t0:
        return [list(range(n))]
    order = sorted(range(n), key=lambda i: (keys[i] / rows[i], i))
    r = [0, *accumulate(rows[i] for i in order)]
    k = [0, *accumulate(keys[i] for i in order)]
    cuts = _cuts(r, k)
    least, back = [0.0], [0]
    for j in range(1, len(cuts)):
        end_r, end_k = r[cuts[j]], k[cuts[j]]
        best, start = min(
            (least[i] + costs.per_pair * (end_r - r[cuts[i]]) * (end_k - k[cuts[i]]), -i) for i in range(j)
        )
        least.append(best + costs.t0)
        back.append(-start)
    saved = costs.t0 + costs.per_pair * all_rows * all_keys - least[-1]
    if saved < SAVING * costs.packed_seconds(all_rows, all_keys):
        return [list(range(n))]
    ends, at = [n], back[-1]
    while at > 0:
        ends.append(cuts[at])
        at = back[at]
    return [order[low:high] for low, high in pairwise([0, *reversed(ends)])]


def _cuts(rows: Sequence[int], keys: Sequence[int]) -> list[int]:
    """Where a part may end: everywhere, or where another share of all rows, or of all keys, is full."""
    n = len(rows) - 1
    if n <= 2 * CUTS:
        return list(range(n + 1))
    cuts = {0, n}
    for sums in (rows, keys):
        share, full = sums[-1] / CUTS, 1
        for i in range(1, n):
            if sums[i] >= full * share:
                cuts.add(i)
                full = int(sums[i] / share) + 1
    return sorted(cuts)
