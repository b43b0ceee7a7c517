"""GPU-Prefetch-For-GPU: what is staged on a helper device, and what may be done with it when.

A helper (the prefill GPU) pulls KV from host memory over its own link ahead of time; at the switch the decoding GPU
pulls it over the peer link. Truth stays in host memory: what is staged may be taken back at any moment, which costs
time and never a token (the contract of Harvest and AQUA; AlignedServe, arXiv 2605.23389, section on GPU prefetch).

Each request's staged pages are one *slot*:

    free ── fill ──▶ filling ── filled ──▶ ready ── drain ──▶ draining ── drained ──▶ ready ── free ──▶ free

A slot that is filling or draining is touched by a copy, so taking it back has to wait for that copy to end; it is
*revoked* until then, and nobody begins to read it. ``generation`` tells one use of the same request's slot from the
next, so that a completion that comes late is not taken for one of the present use.
"""

from __future__ import annotations

import enum

from attrs import define

from alignedsched.errors import ExecutorError
from alignedsched.request import RequestId


class SlotState(enum.Enum):
    """What happens to a slot now."""

    FILLING = "filling"
    READY = "ready"
    DRAINING = "draining"


@define(eq=False)
class Slot:
    """One request's staged KV."""

    request: RequestId
    generation: int
    state: SlotState = SlotState.FILLING
    drains: int = 0  # copies that read it now
    revoked: bool = False


class StagingRing:
    """The slots of one helper's staging memory. Every operation is O(1); it moves no byte itself."""

    def __init__(self, device: str) -> None:
        self.device = device
        self._slots: dict[RequestId, Slot] = {}
        self._generation = 0

    def __len__(self) -> int:
        return len(self._slots)

    def slot(self, request: RequestId) -> Slot | None:
        return self._slots.get(request)

    def readable(self, request: RequestId) -> bool:
        """Whether a copy out of a request's slot may begin."""
        slot = self._slots.get(request)
        return slot is not None and not slot.revoked and slot.state is not SlotState.FILLING

    def check_fill(self, request: RequestId) -> None:
        """Raises ExecutorError, naming what happens to the slot, if no copy into it may begin."""
        slot = self._slots.get(request)
        if slot is not None and slot.state is not SlotState.READY:
            raise ExecutorError(f"{self.device!r} stages {request!r} again while its slot is {self._is(slot)}")

    def fill(self, request: RequestId) -> int:
        """A copy into the slot begins; returns the generation its end has to name. Raises as ``check_fill``."""
        self.check_fill(request)
        self._generation += 1
        self._slots[request] = Slot(request, self._generation)
        return self._generation

    def filled(self, request: RequestId, generation: int, arrived: bool) -> bool:
        """The copy into the slot has ended. True if the slot is readable now; else it is gone."""
        slot = self._mine(request, generation)
        if slot is None:
            return False
        slot.state = SlotState.READY
        if slot.revoked or not arrived:
            del self._slots[request]
            return False
        return True

    def drain(self, request: RequestId) -> int:
        """A copy out of the slot begins; returns the generation its end has to name."""
        slot = self._slots.get(request)
        if slot is None or not self.readable(request):
            raise ExecutorError(f"{self.device!r} is asked for {request!r}, whose slot is {self._is(slot)}")
        slot.state = SlotState.DRAINING
        slot.drains += 1
        return slot.generation

    def drained(self, request: RequestId, generation: int) -> None:
        """A copy out of the slot has ended, whether it arrived or not."""
        slot = self._mine(request, generation)
        if slot is None:
            return
        slot.drains -= 1
        if not slot.drains:
            slot.state = SlotState.READY
            if slot.revoked:
                del self._slots[request]

    def free(self, request: RequestId) -> None:
        """Nobody needs the slot any more. One that a copy touches goes when that copy has ended."""
        self.revoke(request)

    def revoke(self, request: RequestId) -> bool:
        """Take a slot back. True if it is free at once; False if a copy still touches it, or there is none."""
        slot = self._slots.get(request)
        if slot is None:
            return False
        slot.revoked = True
        if slot.state is SlotState.READY:
            del self._slots[request]
            return True
        return False

    def _mine(self, request: RequestId, generation: int) -> Slot | None:
        slot = self._slots.get(request)
        return slot if slot is not None and slot.generation == generation else None

    @staticmethod
    def _is(slot: Slot | None) -> str:
        return "free" if slot is None else "revoked" if slot.revoked else slot.state.value
