"""Staged residency: the next batch's KV waits on a helper device, and joins from there over the peer link.

AlignedServe's "GPU-prefetch-for-GPU" (arXiv 2605.23389): while a batch runs, the candidates' KV goes from the host to
staging memory of another device, over that device's own host link; at the switch it goes on over the faster link
between the devices. Staged KV is revocable: its source stays, and where it vanishes, or there never was a helper, a
route or room, the request is copied straight from the host when it joins. Pooled KV is written out to the host.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence

from attrs import field, frozen

from ..cluster import HOST, TierId
from ..request import RequestId
from ..views import LaneView
from .options import flag, number, one_of
from .protocols import Evict, Transfer
from .residency import TO_HOST, fetch_joining, is_short


@frozen
class StagedResidency:
    """Joining requests in, candidates staged in the order chosen, pooled KV out.

    ``to_host`` and ``short_share`` as in DirectResidency; without ``staging`` it is that, with the paper's default.
    O(joining + resident + requests to stage + log candidates) a call.
    """

    to_host: str = field(default="always", validator=one_of(TO_HOST))
    # a device is short below this share of free blocks; above what admission leaves free
    short_share: float = field(default=0.5, validator=number(0.0, 1.0))
    staging: bool = field(default=True, validator=flag())
    # a running lane is expected to want its candidates so many seconds from now
    lead_s: float = field(default=1.0, validator=number(0.0))

    def place(self, view: LaneView) -> Iterator[Transfer | Evict]:
        """See Residency."""
        yield from fetch_joining(view)
        if self.staging:
            yield from self._stage(view)
        out = self.to_host == "always" or (self.to_host == "short" and is_short(view, self.short_share))
        yield from _clear(view, out)

    def _stage(self, view: LaneView) -> Iterator[Transfer]:
        """Candidates whose KV is only in the host, to the staging tier with most room, while there is room.

        Candidates are staged in their order, so the first one left over is found by bisection: a call that has
        nothing to stage costs O(log candidates). What a bisection misses after staged KV vanished is fetched directly.
        """
        candidates = view.candidates
        if not candidates or HOST not in view.cluster.tiers:
            return
        room = self._staging_room(view)
        if not room:
            return
        first = bisect_left(candidates, True, key=lambda request: _waits_in_host(view, request))
        deadline: float | None = None
        for request in candidates[first:]:
            if not _waits_in_host(view, request):
                continue
            need = view.layout.blocks(view.entry(request).stored)
            tier = max(room, key=lambda t: (room[t], t))
            if need > room[tier]:
                return
            room[tier] -= need
            deadline = self._wanted_at(view) if deadline is None else deadline
            yield Transfer(request, tier, deadline, keep=True, why="staged ahead of the next batch")

    @staticmethod
    def _staging_room(view: LaneView) -> dict[TierId, int]:
        """Free blocks of the staging tiers that lie on a way from the host to the lane's devices."""
        targets = [rank.tier for rank in view.ranks]
        return {
            tier.id: view.free(tier.id)
            for tier in view.cluster.tiers.values()
            if tier.staged
            and tier.device not in targets
            and view.route(HOST, tier.id) is not None
            and all(view.route(tier.id, target) is not None for target in targets)
        }

    def _wanted_at(self, view: LaneView) -> float:
        """When the lane is expected to want its candidates: at once if it runs nothing, else ``lead_s`` from now."""
        return view.now + (self.lead_s if any(len(rank.batch) for rank in view.ranks) else 0.0)


def _waits_in_host(view: LaneView, request: RequestId) -> bool:
    """Whether the host is the only place of a request's KV, and no copy of it is under way."""
    return tuple(view.entry(request).tiers) == (HOST,) and not view.flying(request)


def _clear(view: LaneView, out: bool) -> Iterator[Transfer | Evict]:
    """Of pooled requests: staged KV dropped, device KV dropped that the host has too, and else written out if ``out``.

    Oldest first, while the host has room.
    """
    staged = {tier.id for tier in view.cluster.tiers.values() if tier.staged}
    targets: Sequence[TierId] = [rank.tier for rank in view.ranks]
    room = view.free(HOST) if HOST in view.cluster.tiers else -1
    for request in view.resident:
        entry = view.entry(request)
        if view.flying(request):
            continue
        held = entry.tiers
        for tier in held:
            if tier in staged:
                yield Evict(request, tier)
        if out and held.get(HOST, 0) >= entry.stored:
            for tier in targets:
                if tier in held:
                    yield Evict(request, tier)
        elif out and room >= 0:
            need = view.layout.blocks(entry.stored) - view.layout.blocks(held.get(HOST, 0))
            room -= need
            if room >= 0:
                yield Transfer(request, HOST, why="the pool's KV is kept in host memory")
