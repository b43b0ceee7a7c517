"""The running batch: members that all grow by one token a step, so that a step changes nothing.

Every member of a decode batch gains one token per step. Their differences, their order and the spread therefore
stay what they were when the last of them joined, and so does the phase at which each needs its next block. We keep

    base = context length - step of the lane

per member, fixed at its join. Before step ``t`` the member's context length is ``base + t``, and after that step so
many tokens of it are stored. Then, with ``n`` members and block size ``B``,

    total(t)    = sum(base) + n * t
    longest(t)  = max(base) + t
    blocks(t)   = sum over members of ceil((base + t) / B)

The last is closed too: write ``base = B * q + r`` and ``t = B * u + v`` with ``0 <= r, v < B``. A member needs
``q + u + ceil((r + v) / B)`` blocks, and that ceiling is 0 only for ``r = v = 0``, 2 for ``r > B - v``, else 1. So a
histogram of ``r`` answers for every ``t`` in O(B), whatever the number of members. A step without join or leave costs
nothing here; a join or leave costs O(log n).

Deliberately absent: who joins, where blocks come from, what a finished member leaves behind.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator

from sortedcontainers import SortedList

from .errors import InvariantError


class RunningBatch:
    """Members of one rank's running batch and the closed forms over them."""

    __slots__ = (
        "_bases",
        "_block_quotients",
        "_block_size",
        "_blocks",
        "_blocks_step",
        "_by_base",
        "_limit_of",
        "_limits",
        "_phases",
        "_total_base",
    )

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._bases: dict[str, int] = {}
        self._by_base: SortedList[tuple[int, str]] = SortedList()
        self._total_base = 0
        self._block_quotients = 0
        self._phases = [0] * block_size
        self._blocks_step: int | None = None  # the step asked for last, and the answer
        self._blocks = 0
        # A heap of (step that gives the last allowed token, member); an entry counts if `_limit_of` agrees with it.
        self._limits: list[tuple[int, str]] = []
        self._limit_of: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._bases)

    def __contains__(self, request: object) -> bool:
        return request in self._bases

    def __iter__(self) -> Iterator[str]:
        """Members by (context length, id)."""
        return (request for _, request in self._by_base)

    def longest_first(self) -> Iterator[str]:
        """Members by falling (context length, id)."""
        return (request for _, request in reversed(self._by_base))

    def base(self, request: str) -> int:
        """A member's context length minus the lane's step. Raises KeyError for no member."""
        return self._bases[request]

    def add(self, request: str, base: int, limit_step: int | None = None) -> None:
        """Add a member; ``limit_step`` is the step that gives it its last allowed token. O(log n)."""
        if request in self._bases:
            raise InvariantError("single_owner", f"request {request!r} joined a batch it is in")
        self._blocks_step = None
        self._bases[request] = base
        self._by_base.add((base, request))
        self._total_base += base
        quotient, phase = divmod(base, self._block_size)
        self._block_quotients += quotient
        self._phases[phase] += 1
        if limit_step is not None:
            self._limit_of[request] = limit_step
            heapq.heappush(self._limits, (limit_step, request))

    def remove(self, request: str) -> int:
        """Take a member out and return its base. O(log n). Raises KeyError for no member."""
        base = self._bases.pop(request)
        self._blocks_step = None
        self._by_base.remove((base, request))
        self._total_base -= base
        quotient, phase = divmod(base, self._block_size)
        self._block_quotients -= quotient
        self._phases[phase] -= 1
        self._limit_of.pop(request, None)
        if len(self._limits) > 64 and len(self._limits) > 2 * len(self._bases):
            self._limits = [(step, member) for member, step in self._limit_of.items()]
            heapq.heapify(self._limits)
        return base

    def total(self, step: int) -> int:
        """Sum of the context lengths before ``step``. O(1)."""
        return self._total_base + len(self._bases) * step

    def longest(self, step: int) -> int:
        """The greatest context length before ``step``; 0 without members. O(1)."""
        return self._by_base[-1][0] + step if self._bases else 0

    def shortest(self, step: int) -> int:
        """The smallest context length before ``step``; 0 without members. O(1)."""
        return self._by_base[0][0] + step if self._bases else 0

    def spread(self) -> int:
        """Longest minus shortest context length: the same at every step until somebody joins or leaves. O(1)."""
        return self._by_base[-1][0] - self._by_base[0][0] if self._bases else 0

    def blocks(self, step: int) -> int:
        """Blocks that hold every member's KV after ``step``. O(block size), O(1) when asked for the same step again."""
        if step == self._blocks_step:
            return self._blocks
        cycles, phase = divmod(step, self._block_size)
        blocks = self._block_quotients + len(self._bases) * (cycles + 1)
        if phase == 0:
            blocks -= self._phases[0]
        else:
            blocks += sum(self._phases[self._block_size - phase + 1 :])
        self._blocks_step, self._blocks = step, blocks
        return blocks

    def growth(self, step: int) -> int:
        """Blocks that ``step`` adds: of members whose KV fills its blocks exactly before it. O(1)."""
        return self._phases[(1 - step) % self._block_size]

    def last_step_within(self, blocks: int, start: int, most: int) -> int:
        """The last of steps ``start`` to ``start + most - 1`` whose KV fits in ``blocks``; ``start - 1`` if none does.

        O(block size + log most): whole cycles of B steps add exactly one block a member, the rest is bisected.
        """
        last = start + most - 1
        if not self._bases or most <= 0 or self.blocks(last) <= blocks:
            return last
        low, high = start - 1, last  # low fits (or is the step before), high does not
        while high - low > 1:
            middle = (low + high) // 2
            if self.blocks(middle) <= blocks:
                low = middle
            else:
                high = middle
        return low

    def next_limit(self) -> tuple[int, str] | None:
        """The first (step, member) to reach its limit, or None. Amortised O(log n)."""
        limits = self._limits
        while limits:
            if self._limit_of.get(limits[0][1]) == limits[0][0]:
                return limits[0]
            heapq.heappop(limits)
        return None
