"""Which of the host's blocks hold which requests' KV: what to copy out, what to copy back, who gives room up.

A request's KV up to ``tokens`` never changes, so what was saved once is not saved again: a later park copies only the
blocks written since, and what lies in the host stays there while the request runs, until room is wanted.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from attrs import define, field

from ...errors import CallerError

Pair = tuple[int, int]  # a block of the device, a block of the host


@define
class Extent:
    """The first ``tokens`` of a request's KV, in ``blocks`` of the host, its first block first."""

    tokens: int = 0
    blocks: list[int] = field(factory=list)


class HostRoom:
    """The host's blocks: ``capacity`` of them, each as large as a block of the device (``block_size`` tokens)."""

    def __init__(self, capacity: int, block_size: int) -> None:
        if capacity < 1 or block_size < 1:
            raise CallerError(f"HostRoom: needs at least one block and token, got {capacity} and {block_size}")
        self.capacity = capacity
        self.block_size = block_size
        self._unused = list(range(capacity))  # a heap: lowest first, so that what is saved together lies together
        self._extents: dict[str, Extent] = {}
        self._spare: dict[str, None] = {}  # back in the device; longest back first

    @property
    def free(self) -> int:
        """Blocks that a save may take: unused, or of requests that are back in the device. O(requests back)."""
        return len(self._unused) + sum(len(self._extents[request].blocks) for request in self._spare)

    def saved(self, request: str) -> int:
        """Tokens of a request whose KV the host holds."""
        extent = self._extents.get(request)
        return 0 if extent is None else extent.tokens

    def fits(self, request: str, tokens: int) -> bool:
        """Whether the host could hold a request's first ``tokens``. O(requests back) at worst."""
        need = self._blocks(tokens) - self._held(request)
        if need <= len(self._unused):
            return True
        return need <= self.free - (self._held(request) if request in self._spare else 0)

    def save(self, request: str, device: Sequence[int], tokens: int) -> list[Pair]:
        """The copies out that bring the host's extent to ``tokens``; it counts as saved from now on.

        ``device`` are the request's blocks in the device, its first first. O(blocks copied). Raises CallerError where
        it does not fit, and then changes nothing.
        """
        if not self.fits(request, tokens):
            raise CallerError(f"HostRoom: no room for {tokens:,} tokens of request {request!r}")
        self._spare.pop(request, None)
        extent = self._extents.setdefault(request, Extent())
        if tokens <= extent.tokens:
            return []
        self._make_room(self._blocks(tokens) - len(extent.blocks))
        first = extent.tokens // self.block_size  # a last block that was saved in part is saved again
        while len(extent.blocks) < self._blocks(tokens):
            extent.blocks.append(heapq.heappop(self._unused))
        extent.tokens = tokens
        return [(device[at], extent.blocks[at]) for at in range(first, len(extent.blocks))]

    def load(self, request: str, device: Sequence[int], start: int, end: int) -> list[Pair]:
        """The copies back of tokens ``start`` to ``end``: the request is back in the device. O(blocks copied).

        Raises CallerError where the host does not hold them, and then changes nothing.
        """
        if not 0 <= start <= end <= self.saved(request):
            held = self.saved(request)
            raise CallerError(f"HostRoom: request {request!r} has {held:,} tokens here, not {start:,} to {end:,}")
        if request not in self._extents:
            return []
        self._spare[request] = None
        blocks = self._extents[request].blocks
        return [(device[at], blocks[at]) for at in range(start // self.block_size, self._blocks(end))]

    def back(self, request: str) -> None:
        """A request is in the device again, without a copy: its blocks here are given up when room is wanted."""
        if request in self._extents:
            self._spare[request] = None

    def forget(self, request: str) -> None:
        """A request has ended, or its KV is void."""
        self._spare.pop(request, None)
        extent = self._extents.pop(request, None)
        for block in extent.blocks if extent is not None else ():
            heapq.heappush(self._unused, block)

    def clear(self) -> None:
        """All KV is void."""
        for request in list(self._extents):
            self.forget(request)

    def _held(self, request: str) -> int:
        extent = self._extents.get(request)
        return 0 if extent is None else len(extent.blocks)

    def _blocks(self, tokens: int) -> int:
        return -(-tokens // self.block_size)

    def _make_room(self, blocks: int) -> None:
        while len(self._unused) < blocks:
            self.forget(next(iter(self._spare)))


def runs(pairs: Sequence[Pair]) -> list[tuple[list[int], int]]:
    """Copies of neighbouring host blocks taken together: (device blocks, first host block). O(pairs).

    >>> runs([(9, 4), (2, 5), (7, 8)])
    [([9, 2], 4), ([7], 8)]
    """
    found: list[tuple[list[int], int]] = []
    for device, host in pairs:
        if found and found[-1][1] + len(found[-1][0]) == host:
            found[-1][0].append(device)
        else:
            found.append(([device], host))
    return found
