"""What a lane can still take: blocks by device, seats, and which requests it can get at all.

Counted down while a composition is made, so that it proposes no more than fits. Members keep one free block each, so
that a batch does not run out in its first steps.
"""

from __future__ import annotations

from itertools import islice

from attrs import define, field

from ..cluster import TierId
from ..request import RequestId
from ..views import Entry, LaneView, RankView
from .lane_share import pooled_share
from .lane_share import room as room_of


@define(eq=False)
class LaneRoom:
    """The room of one lane during one decision. Counts are of blocks and requests."""

    view: LaneView
    ranks: tuple[RankView, ...]
    candidates: list[RequestId]
    batch_blocks: int  # of one batch
    capacity: int
    most: int  # blocks of one request
    members: int
    used: int  # blocks of members and of joining requests
    seats_in_all: int
    seats: int
    share: int  # of what is pooled, for this lane
    free: dict[TierId, int] = field(factory=dict)
    rank_seats: dict[TierId, int] = field(factory=dict)
    joining: int = 0
    lost: list[RequestId] = field(factory=list)  # joining requests that cannot come (no way, or no room for ever)

    @staticmethod
    def of(view: LaneView, batch_share: float) -> LaneRoom:
        """Look at the lane. O(joining + ranks)."""
        ranks = tuple(view.ranks)
        members = sum(len(rank.batch) for rank in ranks)
        capacity = sum(rank.capacity for rank in ranks)
        cap = view.lane.max_members * len(ranks)
        room = LaneRoom(
            view=view,
            ranks=ranks,
            candidates=list(view.candidates),
            batch_blocks=max(1, int(batch_share * capacity)),
            capacity=capacity,
            most=room_of(view),
            members=members,
            used=sum(rank.batch.blocks for rank in ranks),
            seats_in_all=cap,
            seats=cap - members,
            share=pooled_share(view),
            free={rank.tier: rank.free - len(rank.batch) for rank in ranks},
            rank_seats={rank.tier: view.lane.max_members - len(rank.batch) for rank in ranks},
        )
        room._expect()
        return room

    def _expect(self) -> None:
        """Count joining requests in, and find those that cannot come."""
        waiting: list[RequestId] = []
        flying = 0
        for request in self.view.joining:
            if self.view.flying(request):
                flying += 1
                self.used += self.view.layout.blocks(self.view.entry(request).context_length)
            elif self.usable(request):
                waiting.append(request)
            else:
                self.lost.append(request)
        hopeless = not self.members and not flying and all(self.need(r) > max(self.free.values()) for r in waiting)
        if hopeless:
            self.lost += waiting
            waiting = []
        for request in waiting:
            entry = self.view.entry(request)
            tier = self._tier(entry)
            self.free[tier] -= self._need(entry, tier)
            self.used += self.view.layout.blocks(entry.context_length)
        self.joining = flying + len(waiting)
        self.seats -= self.joining
        if len(self.ranks) == 1:
            self.rank_seats[self.ranks[0].tier] -= self.joining

    @property
    def idle(self) -> bool:
        """Whether the lane runs nothing and expects nobody."""
        return not self.members and not self.joining

    @property
    def fullness(self) -> float:
        """The larger of the shares of a batch's blocks and of the seats that are taken."""
        seats = (self.seats_in_all - self.seats) / self.seats_in_all
        return max(seats, self.used / self.batch_blocks)

    def usable(self, request: RequestId) -> bool:
        """Whether the lane can get a request's KV, and hold it: it is here, or whole in a place with a way here.

        What another decode device holds is that device's to run.
        """
        view = self.view
        entry = view.entry(request)
        if view.layout.blocks(entry.context_length) > self.most:
            return False
        for tier, tokens in entry.tiers.items():
            if tokens < entry.stored:
                continue
            if tier in self.free:
                return True
            place = view.cluster.tiers.get(tier)
            if place is None:
                continue
            others = place.device is not None and not place.staged and view.cluster.device[place.device].role.decodes
            if not others and any(view.route(tier, target) is not None for target in self.free):
                return True
        return False

    def need(self, request: RequestId) -> int:
        """Blocks still to be found for a request's next step."""
        entry = self.view.entry(request)
        return self._need(entry, self._tier(entry))

    def _tier(self, entry: Entry) -> TierId:
        """Where a request would run: on the device that has its KV, else where there is most room."""
        for tier in self.free:
            if entry.tiers.get(tier, 0) >= entry.stored:
                return tier
        return max(self.free, key=lambda tier: (self.rank_seats[tier] > 0, self.free[tier], tier))

    def _need(self, entry: Entry, tier: TierId) -> int:
        blocks = self.view.layout.blocks
        return max(0, blocks(entry.context_length) - blocks(entry.tiers.get(tier, 0)))

    def take(self, request: RequestId) -> bool:
        """Give a request its seat and blocks. False, and nothing changed, if there is none or not enough."""
        entry = self.view.entry(request)
        tier = self._tier(entry)
        need = self._need(entry, tier)
        if self.seats <= 0 or self.rank_seats[tier] <= 0 or need > self.free[tier]:
            return False
        self.free[tier] -= need + 1
        self.rank_seats[tier] -= 1
        self.seats -= 1
        self.used += self.view.layout.blocks(entry.context_length)
        return True

    def median(self, without: frozenset[RequestId]) -> int | None:
        """The median context length of the fullest rank's members that are not in ``without``. O(members)."""
        fullest = max(self.ranks, key=lambda rank: (len(rank.batch), -rank.rank)).batch
        if not without:
            middle = next(islice(fullest, len(fullest) // 2, None), None)
        else:
            members = [member for member in fullest if member not in without]
            middle = members[len(members) // 2] if members else None
        return None if middle is None else fullest.context_length(middle)
