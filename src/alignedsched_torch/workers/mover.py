"""Copies between a worker's own pages and memory it shares with others: the far side's pages are told, not looked up.

Each copy is queued on the copy stream in pieces of neighbouring pages and ends when its event has fired. Copies of one
worker go in the order in which they came. One whose device or link fails ends too, and says so.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

import torch
from attrs import define

from alignedsched.errors import ExecutorError
from alignedsched.request import RequestId

from ..devices import Device, Piece
from ..memory import KVPool
from ..memory.pages import runs
from ..memory.pool import Holding
from ..memory.ways import Flight
from .messages import Lend, Move, Moved


@define(eq=False)
class _Flying:
    move: Move
    flight: Flight
    held: list[tuple[KVPool, Holding]]  # the pages it touches in this worker's own tiers


class Mover:
    """Carries out moves and lends pages. ``pools``: the worker's own tiers; ``shared``: the data of the others'."""

    def __init__(
        self, rank: int, device: Device, pools: Mapping[str, KVPool], shared: Mapping[str, torch.Tensor]
    ) -> None:
        self._rank = rank
        self._stream = device.stream("copies")
        self._pools = pools
        self._shared = shared
        self._flying: deque[_Flying] = deque()
        self._lent: dict[int, tuple[KVPool, Holding]] = {}

    def __len__(self) -> int:
        return len(self._flying)

    def start(self, move: Move) -> None:
        """Queue a copy. Raises ExecutorError when a side's pages are not there."""
        if move.target in self._pools:
            self._pools[move.target].hold(move.request, move.end)
        pieces = []
        there, source = self._side(move, move.source)
        here, target = self._side(move, move.target)
        for first, into, length in runs(there, here):
            pieces.append(Piece(target[into : into + length], source[first : first + length]))
        mine = [self._pools[tier] for tier in (move.source, move.target) if tier in self._pools]
        held = [(pool, pool.touch(move.request, 1, move.end)) for pool in mine]
        self._flying.append(_Flying(move, Flight.begin(self._stream, pieces, f"{move.source}->{move.target}"), held))

    def _side(self, move: Move, tier: str) -> tuple[list[int], torch.Tensor]:
        """The pages of one side, and the memory they are in."""
        if tier not in self._pools:
            return list(move.pages[self._rank]), self._shared[tier]
        pool = self._pools[tier]
        return self._pages(pool, move.request, move.start, move.end), pool.data

    @staticmethod
    def _pages(pool: KVPool, request: RequestId, start: int, end: int) -> list[int]:
        size = pool.shape.page_size
        pages = pool.pages(request)
        if len(pages) * size < end:
            raise ExecutorError(f"{end} tokens of {request!r} are wanted, {len(pages)} pages are in {pool.tier!r}")
        return pages[start // size : pool.shape.pages(end)]

    def ended(self) -> list[Moved]:
        """Copies that have ended since the last call."""
        ended = []
        while self._flying and self._flying[0].flight.ended():
            ended.append(self._end(self._flying.popleft()))
        return ended

    def _end(self, flying: _Flying) -> Moved:
        move, error = flying.move, flying.flight.error
        for pool, held in flying.held:
            pool.leave(held)
            if error and pool.tier == move.target:
                pool.undo(move.request, held, move.start)
        return Moved(move.copy, f"{move.source}->{move.target}: {error}" if error else "")

    # -- pages that others read

    def lend(self, lend: Lend) -> tuple[int, ...]:
        """The pages of a lend; they stay as they are until ``returned``."""
        pool = self._pools[lend.source]
        pages = self._pages(pool, lend.request, lend.start, lend.end)
        self._lent[lend.copy] = pool, pool.touch(lend.request, 1, lend.end)
        return tuple(pages)

    def returned(self, copy: int) -> None:
        """Nobody reads them any more."""
        pool, held = self._lent.pop(copy)
        pool.leave(held)
