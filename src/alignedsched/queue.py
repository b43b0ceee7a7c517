"""The queue: requests that wait for prefill, in the order in which admission takes them.

A million requests may queue here. Each is kept as a plain tuple of plain values, which Python's garbage collector
stops tracking, so that a full collection does not have to walk over the whole queue; the ``Request`` record is made
again when it is its turn. Adding, removing and finding the first cost O(log n).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from attrs import frozen
from sortedcontainers import SortedDict

from .errors import InvariantError
from .lengths import Histogram
from .request import Request

Packed = tuple[Any, ...]
MADE_AT_MOST = 64


@frozen
class Waiting:
    """A queued request: what it asks for, its arrival number, and the tokens it had made when it was preempted."""

    request: Request
    order: int
    produced: int = 0
    preemptions: int = 0
    since: float = 0.0

    @property
    def prefill_tokens(self) -> int:
        """Tokens to prefill before it can decode: the prompt and, after a preemption, what it had produced."""
        return self.request.prompt_tokens + self.produced


def _pack(waiting: Waiting) -> Packed:
    r = waiting.request
    rare = (r.priority, r.tenant, r.deadline, r.ttft_target, r.tpot_target, r.block_hashes, r.session, r.kind)
    common = (r.id, r.prompt_tokens, r.output_limit, r.arrival, waiting.order)
    if waiting.produced or waiting.preemptions or rare != _PLAIN:
        return (*common, waiting.since, waiting.produced, waiting.preemptions, rare)
    return (*common, waiting.since)


_PLAIN = (0, None, None, None, None, (), None, None)


def _unpack(packed: Packed) -> Waiting:
    id_, prompt, limit, arrival, order, since = packed[:6]
    produced, preemptions, rare = packed[6:] or (0, 0, _PLAIN)
    return Waiting(Request(id_, prompt, limit, arrival, *rare), order, produced, preemptions, since)


def _prefill_tokens(packed: Packed) -> int:
    return int(packed[1] + packed[6]) if len(packed) > 6 else int(packed[1])


class Queue:
    """Waiting requests by (rank, arrival number); the rank is what the admission policy says of a request."""

    __slots__ = ("_keys", "_made", "_rows", "again", "sizes")

    def __init__(self) -> None:
        self._rows: SortedDict[tuple[float, int], Packed] = SortedDict()
        self._keys: dict[str, tuple[float, int]] = {}
        self.again: dict[str, None] = {}  # who had begun before (preempted), longest here first
        self.sizes = Histogram()  # of the prefill tokens of all that wait
        # Records made lately, by id: admission looks at the first few again and again, then the scheduler takes them.
        self._made: dict[str, Waiting] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, request: object) -> bool:
        return request in self._keys

    def add(self, waiting: Waiting, rank: float = 0.0) -> None:
        key = (rank, waiting.order)
        if waiting.request.id in self._keys or key in self._rows:
            raise InvariantError("single_owner", f"request {waiting.request.id!r} queues twice")
        self._keys[waiting.request.id] = key
        self._rows[key] = _pack(waiting)
        self.sizes.add(waiting.prefill_tokens)
        if waiting.preemptions:
            self.again[waiting.request.id] = None
        if len(self._made) < MADE_AT_MOST:
            self._made[waiting.request.id] = waiting

    def get(self, request: str) -> Waiting:
        """The waiting request of an id. Raises KeyError if it does not queue."""
        return self._record(self._rows[self._keys[request]])

    def remove(self, request: str) -> None:
        """Take a request out. Raises KeyError if it does not queue."""
        row = self._rows.pop(self._keys.pop(request))
        self.sizes.add(_prefill_tokens(row), -1)
        self._made.pop(request, None)
        self.again.pop(request, None)

    def _record(self, row: Packed) -> Waiting:
        made = self._made
        waiting = made.get(row[0])
        if waiting is None:
            if len(made) >= MADE_AT_MOST:
                made.clear()
            waiting = made[row[0]] = _unpack(row)
        return waiting

    def __iter__(self) -> Iterator[Waiting]:
        """Waiting requests in order; made one at a time, as a policy looks at them."""
        return map(self._record, self._rows.values())

    def position(self, request: str) -> int:
        """How many queue before a request. O(log n). Raises KeyError if it does not queue."""
        return int(self._rows.index(self._keys[request]))

    def lengths(self) -> Iterator[tuple[int, int, str]]:
        """(prefill tokens, arrival number, id) of every waiting request, in order; makes no records."""
        return ((_prefill_tokens(row), key[1], row[0]) for key, row in self._rows.items())

    def entered(self) -> Iterator[tuple[float, Waiting]]:
        """(rank, request) of all that wait, in the order in which they came in here: added so, they make the same."""
        return ((rank, self.get(request)) for request, (rank, _) in self._keys.items())

    def rows(self) -> Iterator[tuple[tuple[float, int], str]]:
        """(key, id) of every waiting request in order, for checking."""
        return ((key, str(row[0])) for key, row in self._rows.items())
