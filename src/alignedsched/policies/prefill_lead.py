"""How far prefill goes ahead of decode, where they are apart and tokens should come fast.

Where prefill is the faster of both it fills its devices with requests whose first token is made and whose second is
not to come for long: their time per token is that of a wait. Given a target for it, prefill stays just ahead instead,
and who would have waited behind the first token waits before it. By Little's law the wait is to the time in decode as
what waits is to what decodes, so a lead of a share of the decode devices' room costs about that share of the time per
token. It is also what decoding lives on while a prompt is computed, so it must not be none.
"""

from __future__ import annotations

from attrs import frozen

from ..views import LaneView
from .lane_share import largest

SHARE = 0.125  # of the room and seats that decode


@frozen
class PrefillLead:
    """``bounded``: whether there is a bound at all."""

    bounded: bool = False

    def blocks(self, view: LaneView) -> int | None:
        """Blocks that new prefill on this lane, of one rank, may take; None: as many as are free.

        Where nothing is ahead, at least as many as one request may ever need: one is always begun. O(requests ahead +
        lanes).
        """
        if not self.bounded or view.role.decodes:
            return None
        cluster = view.cluster
        decoding = [lane for lane in cluster.lanes if cluster.role(lane).decodes]
        prefilling = sum(1 for lane in cluster.lanes if cluster.role(lane).prefills)
        most = largest(view)  # who is longer waits for capacity to come back, and holds nobody up
        ahead = [request for request in view.resident if view.pool.length(request) <= most]
        room = sum(cluster.device[device].kv_blocks for lane in decoding for device in lane.ranks)
        seats = sum(lane.max_members * len(lane.ranks) for lane in decoding)
        if len(ahead) + len(view.prefilling) >= max(1.0, SHARE * seats / prefilling):
            return 0
        held = sum(view.pool.blocks(request) for request in ahead)
        held += sum(view.layout.blocks(begun.remaining) for begun in view.prefilling)
        left = int(SHARE * room / prefilling) - held
        return left if ahead or view.prefilling else max(left, view.layout.blocks(cluster.max_positions))
