"""The legal states of requests, copies and orders, and how each may follow another: one table, read by everybody.

The diagrams in the docs are made from these tables; an illegal transition raises with both names.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType

from .errors import InvariantError


class RequestState(enum.Enum):
    """Where a live request stands. Ended requests are forgotten once nothing may touch their KV any more."""

    QUEUED = "queued"  # waits for prefill (again, after a preemption by recompute)
    PREFILLING = "prefilling"  # its KV is being written, chunk by chunk
    POOLED = "pooled"  # prefilled, KV kept, does not decode
    CANDIDATE = "candidate"  # pooled and chosen for a lane's next batch: its KV may be staged
    JOINING = "joining"  # wanted in a lane's running batch as soon as its KV is there
    RUNNING = "running"  # member of a running batch
    LEAVING = "leaving"  # on its way out of a batch or off a tier: steps or copies may still touch its KV
    ENDED = "ended"  # its outcome is fixed; copies or steps may still be under way


class CopyState(enum.Enum):
    """A copy between tiers. Cancelling is a state, not a deletion: the space stays reserved until the completion."""

    FLYING = "flying"
    UNWANTED = "unwanted"  # nobody wants it any more; its completion is awaited all the same
    DONE = "done"
    FAILED = "failed"


class OrderState(enum.Enum):
    """A standing order of a lane."""

    ISSUED = "issued"  # the executor has it; the step at which it took effect is not known yet
    STANDING = "standing"  # took effect
    REPLACED = "replaced"  # a later order took effect


_R, _C, _O = RequestState, CopyState, OrderState

REQUEST_TRANSITIONS: Mapping[RequestState, frozenset[RequestState]] = MappingProxyType(
    {
        _R.QUEUED: frozenset({_R.PREFILLING, _R.ENDED}),
        _R.PREFILLING: frozenset({_R.POOLED, _R.RUNNING, _R.LEAVING, _R.ENDED}),
        _R.POOLED: frozenset({_R.CANDIDATE, _R.JOINING, _R.RUNNING, _R.LEAVING, _R.ENDED}),
        _R.CANDIDATE: frozenset({_R.POOLED, _R.JOINING, _R.RUNNING, _R.LEAVING, _R.ENDED}),
        _R.JOINING: frozenset({_R.POOLED, _R.RUNNING, _R.LEAVING, _R.ENDED}),
        # back to prefilling only when the step that held its last chunk failed after it was ordered to join
        _R.RUNNING: frozenset({_R.LEAVING, _R.POOLED, _R.PREFILLING, _R.ENDED}),
        _R.LEAVING: frozenset({_R.POOLED, _R.QUEUED, _R.ENDED}),
        _R.ENDED: frozenset(),
    }
)
COPY_TRANSITIONS: Mapping[CopyState, frozenset[CopyState]] = MappingProxyType(
    {
        _C.FLYING: frozenset({_C.UNWANTED, _C.DONE, _C.FAILED}),
        _C.UNWANTED: frozenset({_C.FLYING, _C.DONE, _C.FAILED}),
        _C.DONE: frozenset(),
        _C.FAILED: frozenset(),
    }
)
ORDER_TRANSITIONS: Mapping[OrderState, frozenset[OrderState]] = MappingProxyType(
    {
        _O.ISSUED: frozenset({_O.STANDING, _O.REPLACED}),
        _O.STANDING: frozenset({_O.REPLACED}),
        _O.REPLACED: frozenset(),
    }
)


# By value: hashing an enum's member is a Python call, and this is asked several times a request.
_NEXT = {old.value: frozenset(new.value for new in news) for old, news in REQUEST_TRANSITIONS.items()}


def check_transition(request: str, old: RequestState, new: RequestState) -> None:
    """Raise InvariantError unless a request may go from ``old`` to ``new``. O(1)."""
    if new._value_ not in _NEXT[old._value_]:
        raise InvariantError("legal_transition", f"request {request!r} cannot go from {old.value} to {new.value}")
