"""Group sizes that fit captured CUDA graphs: rows that would be padding are given to who sits out."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence


def fill(members: int, longest: int, parked: Iterable[tuple[int, str]], sizes: Sequence[int]) -> list[str]:
    """Who of ``parked`` (context length, id) decodes along with ``members`` requests, the longest of which has length
    ``longest``.

    A replayed graph computes as many rows as the next captured size (``sizes``, ascending) has; without riders the rest
    of them is padding. Riders are no longer than the group's longest, the longest of them first, so that the group
    stays what it is; there may be fewer of them than rows. O(parked log parked).

    >>> fill(5, 100, [(90, "a"), (300, "b"), (40, "c"), (100, "d")], [1, 2, 4, 8, 16])
    ['d', 'a', 'c']
    """
    at = bisect_left(sizes, members)
    room = sizes[at] - members if at < len(sizes) else 0
    if not room:
        return []
    near = sorted((request for request in parked if request[0] <= longest), key=lambda row: (-row[0], row[1]))
    return [request for _, request in near[:room]]
