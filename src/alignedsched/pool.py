"""The pool: prefilled requests that do not decode now, in order of context length and of arrival.

A pooled request does not grow, so its keys do not move. Beside the two orders the pool keeps, for a hierarchy of
length classes, how many requests and blocks fall in each: level 0 is one class of all lengths, and each level cuts
every class into four, down to classes of 16 tokens (a 4-ary interval tree over lengths 1 to 65,536, kept as arrays).
Adding or removing costs O(log n + levels); reading a class O(1).
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator

from sortedcontainers import SortedDict, SortedList

from .errors import InvariantError

FANOUT = 4
LEVELS = 6  # levels 0..6: 4**6 = 4,096 classes of 16 tokens at the bottom
LONGEST = 65_536  # longer context lengths count in the last class


def class_width(level: int) -> int:
    """Tokens a class of a level spans."""
    return LONGEST >> (2 * level)


def class_of(length: int, level: int) -> int:
    """The class of a level that a context length falls in (class i spans i * width + 1 to (i + 1) * width). O(1)."""
    return (min(length, LONGEST) - 1) // class_width(level)


class Pool:
    """Pooled requests by context length and by arrival order, with class aggregates."""

    __slots__ = ("_again", "_blocks", "_by_length", "_by_order", "_counts", "_keys", "_upwards")

    def __init__(self) -> None:
        self._keys: dict[str, tuple[int, int, int]] = {}  # id -> (length, order, blocks)
        self._by_length: SortedList[tuple[int, int, str]] = SortedList()  # (length, order, id)
        self._by_order: SortedDict[int, str] = SortedDict()
        self._again: set[str] = set()
        self._counts = [array("q", bytes(8 * FANOUT**level)) for level in range(LEVELS + 1)]
        self._blocks = [array("q", bytes(8 * FANOUT**level)) for level in range(LEVELS + 1)]
        self._upwards = tuple(zip(self._counts, self._blocks, strict=True))[::-1]  # the narrowest classes first

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, request: object) -> bool:
        return request in self._keys

    def add(self, request: str, length: int, order: int, blocks: int, again: bool = False) -> None:
        """Add a request with its context length, arrival order (unique) and the blocks its next step needs.

        ``again``: whether it was preempted, and had to be computed anew.
        """
        if request in self._keys or order in self._by_order:
            raise InvariantError("single_owner", f"request {request!r} (order {order}) is in the pool already")
        self._keys[request] = (length, order, blocks)
        self._by_length.add((length, order, request))
        self._by_order[order] = request
        if again:
            self._again.add(request)
        self._count(length, 1, blocks)

    def remove(self, request: str) -> None:
        """Take a request out. Raises KeyError if it is not there."""
        length, order, blocks = self._keys.pop(request)
        self._by_length.remove((length, order, request))
        del self._by_order[order]
        self._again.discard(request)
        self._count(length, -1, -blocks)

    def _count(self, length: int, count: int, blocks: int) -> None:
        index = (min(length, LONGEST) - 1) // class_width(LEVELS)
        for counts, needs in self._upwards:
            counts[index] += count
            needs[index] += blocks
            index //= FANOUT

    def length(self, request: str) -> int:
        return self._keys[request][0]

    def blocks(self, request: str) -> int:
        return self._keys[request][2]

    def order(self, request: str) -> int:
        return self._keys[request][1]

    def class_count(self, level: int, index: int) -> int:
        """Requests in a class. O(1)."""
        return self._counts[level][index]

    def class_blocks(self, level: int, index: int) -> int:
        """Blocks the requests of a class need. O(1)."""
        return self._blocks[level][index]

    def longer(self, length: int) -> int:
        """Requests with a context length above ``length``. O(log n)."""
        return len(self._by_length) - self._by_length.bisect_left((length + 1, -1, ""))

    def again(self) -> tuple[str, ...]:
        """Ids of those that were preempted and computed anew, in order of arrival. O(their number, times its log)."""
        return tuple(sorted(self._again, key=self.order))

    def by_order(self) -> Iterator[str]:
        """Ids in order of arrival."""
        return iter(self._by_order.values())

    def by_length(self, low: int = 1, high: int | None = None) -> Iterator[str]:
        """Ids with low <= context length < high, by (length, order). O(log n) to start."""
        upper = None if high is None else (high, -1, "")
        return (request for _, _, request in self._by_length.irange((low, -1, ""), upper))

    def nearest(self, low: int, high: int) -> Iterator[str]:
        """Ids by growing distance of their context length from the range low..high; ties take the shorter."""
        inside = self._by_length.irange((low, -1, ""), (high + 1, -1, ""))
        yield from (request for _, _, request in inside)
        below = self._by_length.irange(None, (low, -1, ""), reverse=True)
        above = self._by_length.irange((high + 1, -1, ""), None)
        down, up = next(below, None), next(above, None)
        while down is not None or up is not None:
            if up is None or (down is not None and low - down[0] <= up[0] - high):
                assert down is not None
                yield down[2]
                down = next(below, None)
            else:
                yield up[2]
                up = next(above, None)
