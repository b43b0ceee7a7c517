"""The ways KV takes between two places: straight over their link, or through a slot on a helper device.

A copy is cut into chunks, and any way that has room takes the next one. A helper that has a link of its own to the
host and one to the target makes a second way beside the target's own link (MMA, arXiv 2512.16056, pulls over all of
them at once): host -> slot on the helper -> target, a chunk at a time. Back-pressure alone shares the chunks out: each
way takes as many as it gets through.

A slot of a relay follows the protocol of ``staging``, and what is in it may be taken back at any moment: its chunk goes
another way then. So does a chunk whose relay failed; only an error of the straight way ends the copy.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

import torch
from attrs import define, frozen

from ..devices import Device, Event, Piece, Stream
from .staging import StagingRing

IN_FLIGHT = 2  # chunks queued on a link at a time: an abort waits for these and not for the rest

Chunk = list[Piece]
Owner = TypeVar("Owner")  # whose chunk it is: the ways hand it back and never look


@define(eq=False)
class Flight:
    """Pieces queued on a stream, and what became of them. They touch their memory until ``ended`` says so."""

    event: Event | None = None
    error: str = ""

    @classmethod
    def begin(cls, stream: Stream, pieces: Chunk, link: str) -> Flight:
        """Queue pieces; an error at once is kept, and what was queued before it is still waited for."""
        flight = cls()
        try:
            stream.copy(pieces, link)
        except RuntimeError as error:
            flight._failed(error)
        try:
            flight.event = stream.record()
        except RuntimeError as error:
            flight._failed(error)
        return flight

    def ended(self) -> bool:
        """Whether nothing of it is under way any more; ``error`` says then whether it failed."""
        try:
            return self.event is None or self.event.done()
        except RuntimeError as error:
            self._failed(error)
            return True

    def _failed(self, error: RuntimeError) -> None:
        self.error = self.error or str(error) or type(error).__name__


@frozen(eq=False)
class Landed(Generic[Owner]):
    """A chunk that is on no way any more: it arrived, it failed (``error``), or it goes another way (``again``)."""

    owner: Owner
    chunk: Chunk
    error: str = ""
    again: bool = False


class Direct(Generic[Owner]):
    """One link, its chunks in order."""

    def __init__(self, device: Device, link: str) -> None:
        self.link = link
        self._device = device
        self._flying: list[tuple[Owner, Chunk, Flight]] = []

    def has_room(self) -> bool:
        return len(self._flying) < IN_FLIGHT

    def take(self, owner: Owner, chunk: Chunk) -> None:
        self._flying.append((owner, chunk, Flight.begin(self._device.stream(self.link), chunk, self.link)))

    def poll(self) -> Iterator[Landed[Owner]]:
        """Chunks that have landed since the last call."""
        while self._flying and self._flying[0][2].ended():
            owner, chunk, flight = self._flying.pop(0)
            yield Landed(owner, chunk, f"{self.link}: {flight.error}" if flight.error else "")


@define(eq=False)
class _Carried(Generic[Owner]):
    """What is in one slot of a relay."""

    owner: Owner
    chunk: Chunk
    slot: torch.Tensor
    generation: int
    flight: Flight
    draining: bool = False

    def pieces(self, fill: bool) -> Chunk:
        """Into the slot, or out of it: the chunk's pages, or the layers of one, lie behind each other there."""
        pieces, at = [], 0
        for piece in self.chunk:
            here = self.slot[at : at + len(piece.source), : piece.source.shape[1]]
            pieces.append(Piece(here, piece.source) if fill else Piece(piece.target, here, piece.fresh))
            at += len(piece.source)
        return pieces


class Relay(Generic[Owner]):
    """A helper's few slots on the way from the host to one target. ``buffer``: [slots, pages of a chunk, *page].

    ``fill`` and ``drain`` are the links into and out of the helper, each with the device whose stream it is driven by.
    """

    def __init__(self, helper: str, buffer: torch.Tensor, fill: tuple[Device, str], drain: tuple[Device, str]) -> None:
        self.helper = helper
        self.ring = StagingRing(helper)
        self.broken = ""  # why it takes no chunk any more
        self.bytes = 0  # that arrived this way
        self._buffer = buffer
        self._fill, self._drain = fill, drain
        self._carried: dict[str, _Carried[Owner]] = {}  # by slot

    def __len__(self) -> int:
        """Slots in use."""
        return len(self._carried)

    def has_room(self) -> bool:
        return not self.broken and len(self._carried) < len(self._buffer)

    def take(self, owner: Owner, chunk: Chunk) -> None:
        """Begin to fill a free slot."""
        number = next(n for n in range(len(self._buffer)) if str(n) not in self._carried)
        carried = _Carried(owner, chunk, self._buffer[number], self.ring.fill(str(number)), Flight())
        carried.flight = self._begin(carried.pieces(fill=True), *self._fill)
        self._carried[str(number)] = carried

    @staticmethod
    def _begin(pieces: Chunk, device: Device, link: str) -> Flight:
        return Flight.begin(device.stream(link), pieces, link)

    def revoke(self, owner: Owner | None = None) -> None:
        """Slots are wanted back (an owner's, or all): what is not on its way out of them goes no further."""
        for slot, carried in self._carried.items():
            if owner is None or carried.owner is owner:
                self.ring.revoke(slot)

    def poll(self) -> Iterator[Landed[Owner]]:
        """Chunks that have landed since the last call; slots that have filled begin to drain."""
        for slot, carried in tuple(self._carried.items()):
            if not carried.flight.ended():
                continue
            if carried.flight.error:
                self.broken = self.broken or carried.flight.error
            if carried.draining:
                yield self._drained(slot, carried)
            elif self.ring.filled(slot, carried.generation, not self.broken):
                carried.generation, carried.draining = self.ring.drain(slot), True
                carried.flight = self._begin(carried.pieces(fill=False), *self._drain)
            else:
                del self._carried[slot]
                yield Landed(carried.owner, carried.chunk, again=True)

    def _drained(self, slot: str, carried: _Carried[Owner]) -> Landed[Owner]:
        self.ring.drained(slot, carried.generation)
        self.ring.free(slot)
        del self._carried[slot]
        failed = bool(carried.flight.error)
        self.bytes += 0 if failed else sum(piece.bytes for piece in carried.chunk)
        return Landed(carried.owner, carried.chunk, again=failed)
