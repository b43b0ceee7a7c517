"""What of all that waits is a lane's to take: what it can hold, and as many that all lanes end with an even load.

Devices may be of different sizes, and become smaller while they run. So whoever is too large for a lane as it is now
is passed over there and blocks nobody, and lanes too small for a request do not count where its lane's share is told:
they would never come to take theirs.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence

from attrs import frozen

from ..request import RequestId
from ..views import LaneView


def room(view: LaneView) -> int:
    """Blocks the lane could hold of one request, as large as it is now. O(lanes)."""
    return view.rooms.get(view.lane.id, 0)


def largest(view: LaneView) -> int:
    """Tokens of the longest context that a lane which decodes could hold now. O(lanes)."""
    return max(view.rooms.values(), default=0) * view.layout.block_size


def fitting(view: LaneView, pooled: Iterable[RequestId]) -> Iterator[RequestId]:
    """Those of some pooled requests that are not too large for the lane as it is now, in their order."""
    most, length = room(view) * view.layout.block_size, view.pool.length
    return (request for request in pooled if length(request) <= most)


def gives_way(view: LaneView) -> bool:
    """Whether anybody is pooled who has to go on before somebody new begins: not who is too large for now. O(log n)."""
    shortest = next(view.pool.by_length(), None)
    return shortest is not None and view.pool.blocks(shortest) <= room(view)


@frozen
class EvenShare:
    """How many requests a lane may take, by what the next of them needs, for all lanes to end with an even load."""

    smaller: Sequence[int]  # blocks of the lanes that are smaller than this one, ascending
    shares: Sequence[int]  # of requests that need no more than each of them, and of those that need more than all
    mine: int  # blocks of this lane

    @staticmethod
    def of(view: LaneView, waiting: int) -> EvenShare:
        """The lane's shares of so many requests that wait. O(lanes), times the sizes of lanes."""
        rooms, loads, lane = view.rooms, view.loads, view.lane.id
        mine = rooms.get(lane, 0)
        smaller = _smaller(rooms, mine)
        shares = [_share(lane, loads, waiting)]
        shares += [_share(lane, _of_at_least(loads, rooms, blocks + 1), waiting) for blocks in smaller]
        return EvenShare(smaller, shares, mine)

    @property
    def most(self) -> int:
        """The share of whatever has the largest."""
        return max(self.shares)

    def need(self, blocks: int) -> int:
        """The share where the next request needs so many blocks; of what the lane cannot hold any may be passed."""
        return self.shares[bisect_left(self.smaller, blocks)] if blocks <= self.mine else self.most


def pooled_share(view: LaneView) -> int:
    """The lane's share of what is pooled. Where anybody is, some lane that could hold them has one of at least one."""
    rooms, loads, lane, block = view.rooms, view.loads, view.lane.id, view.layout.block_size
    shares = [_share(lane, loads, len(view.pool))]
    for blocks in _smaller(rooms, rooms.get(lane, 0)):
        only = view.pool.longer(blocks * block)  # for this lane and its like
        if only:
            shares.append(_share(lane, _of_at_least(loads, rooms, blocks + 1), only))
    return max(shares)


def _smaller(rooms: Mapping[str, int], mine: int) -> list[int]:
    """The different sizes of lanes that are smaller than one of ``mine`` blocks, ascending."""
    return sorted({blocks for blocks in rooms.values() if blocks < mine})


def _of_at_least(loads: Mapping[str, int], rooms: Mapping[str, int], least: int) -> dict[str, int]:
    """The loads of lanes of at least so many blocks."""
    return {lane: load for lane, load in loads.items() if rooms[lane] >= least}


def _share(lane: str, loads: Mapping[str, int], waiting: int) -> int:
    """A lane's share of so many requests among lanes of these loads. O(lanes)."""
    target = -(-(sum(loads.values()) + waiting) // max(1, len(loads)))
    return max(0, target - loads.get(lane, 0))
