"""Residency, the direct way: joining requests come over the shortest route, what the pool keeps may go to the host.

A joining request's KV is copied straight to its lane's device: over the peer link from the device that prefilled it,
or from the host. ``to_host`` says which pooled KV leaves a device: nothing (``never``), or everything (``always``:
the paper's pool in CPU memory), or only while the device is short of blocks (``short``).
"""

from __future__ import annotations

from collections.abc import Iterator

from attrs import field, frozen

from ..cluster import HOST
from ..request import RequestId
from ..views import LaneView
from .options import number, one_of
from .protocols import Evict, Transfer

TO_HOST = ("never", "short", "always")


@frozen
class DirectResidency:
    """Direct copies only. O(joining + resident requests) a call."""

    to_host: str = field(default="short", validator=one_of(TO_HOST))
    short_share: float = field(
        default=0.1, validator=number(0.0, 1.0)
    )  # a device is short below this share of free blocks

    def place(self, view: LaneView) -> Iterator[Transfer | Evict]:
        yield from fetch_joining(view)
        if self.to_host == "always" or (self.to_host == "short" and is_short(view, self.short_share)):
            yield from write_out(view)


def fetch_joining(view: LaneView) -> Iterator[Transfer]:
    """Joining requests to a device of the lane: the rank with most room, in the order chosen."""
    joining = view.joining
    if not joining:
        return
    free = {rank.tier: rank.free for rank in view.ranks}
    for request in joining:
        if not view.flying(request) and not (len(free) > 1 and _has_come(view, request)):
            tier = max(free, key=lambda t: (free[t], t))
            free[tier] -= view.layout.blocks(view.entry(request).context_length)
            yield Transfer(request, tier, why="wanted in the running batch")


def _has_come(view: LaneView, request: RequestId) -> bool:
    """Whether a rank holds all of a request's KV: it waits for a seat there, and is sent to no other rank."""
    entry = view.entry(request)
    return any(entry.tiers.get(rank.tier, 0) >= entry.stored for rank in view.ranks)


def is_short(view: LaneView, share: float) -> bool:
    """Whether a device of the lane has less than this share of its blocks free."""
    return any(rank.free < share * rank.capacity for rank in view.ranks)


def write_out(view: LaneView) -> Iterator[Transfer]:
    """Pooled KV that lies in the lane's devices to the host, oldest first, while the host has room."""
    if HOST not in view.cluster.tiers:
        return
    room = view.free(HOST)
    for request in view.resident:
        if view.flying(request):
            continue
        need = view.layout.blocks(view.entry(request).stored)
        if need > room:
            return
        room -= need
        yield Transfer(request, HOST, why=_WRITE_OUT)


_WRITE_OUT = "the pool's KV is kept in host memory"
