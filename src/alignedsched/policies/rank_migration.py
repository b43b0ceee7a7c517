"""Members on their way from rank to rank of a lane: parked, claimed, copied, joined; or home again.

A member goes over in four compositions: it is *parked*; when it has left it becomes a *candidate* of its own lane, so
that nobody else takes it; residency copies its KV, which reserves its room at the target; and when that has arrived it
joins where its KV now lies. What stands in the way (no room, no link, a failed copy, more than ``patience_s`` seconds)
sends it home, where its KV is until the copy has arrived; pooled requests go before whoever begins.

Nobody goes to and fro without making tokens: the core takes no park of a member that has made none since it joined.
Members go over in groups, the next when nobody is under way any more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import inf

from attrs import evolve, field, frozen

from ..errors import CallerError
from ..load import Costs
from ..outside import is_count, is_number, show
from ..request import RequestId
from ..views import LaneView
from .predict import Predictor
from .protocols import Composition, PlainData, Transfer
from .rank_moves import MoveSettings, lane_seconds, linked, moves_that_pay, room_for


@frozen
class UnderWay:
    """The rank a member goes to, and since when (seconds)."""

    target: int
    began: float


@frozen
class RankMemory:
    """Of a lane: who is under way, and when its ranks are looked at next (seconds; None: when asked)."""

    moves: Mapping[RequestId, UnderWay] = field(factory=dict)
    look_at: float | None = None

    def plain(self) -> PlainData:
        """As plain data, in the order in which they set out. O(under way)."""
        moves: list[PlainData] = [[request, way.target, way.began] for request, way in self.moves.items()]
        return [moves, self.look_at]

    @staticmethod
    def from_plain(plain: PlainData) -> RankMemory:
        """Raises CallerError naming what is no such state."""
        if isinstance(plain, list) and len(plain) == 2:
            moves, look_at = plain
            if isinstance(moves, list) and (look_at is None or is_number(look_at)):
                return RankMemory(dict(map(_under_way, moves)), look_at)
        raise CallerError(f"cost_aligned: of ranks its state has who is under way and seconds, got {show(plain)}")


def _under_way(plain: PlainData) -> tuple[RequestId, UnderWay]:
    if isinstance(plain, list) and len(plain) == 3:
        request, target, began = plain
        if isinstance(request, str) and is_count(target) and is_number(began):
            return request, UnderWay(target, began)
    raise CallerError(f"cost_aligned: of who is under way its state has an id, a rank and seconds, got {show(plain)}")


@frozen
class _Sorted:
    """Those under way by what they do next; whoever is none of these stays at home or has ended."""

    going: dict[RequestId, UnderWay] = field(factory=dict)
    claims: list[RequestId] = field(factory=list)
    joins: list[RequestId] = field(factory=list)
    home: list[RequestId] = field(factory=list)


@frozen
class Migration:
    """Adds moves between ranks to what batching proposes for a lane of several ranks.

    ``predictor`` says how long a member will live. O(joins + under way) a call, beside a look every so many steps.
    """

    predictor: Predictor
    settings: MoveSettings = field(factory=MoveSettings)

    def compose(
        self, view: LaneView, costs: Costs, plain: Composition, memory: RankMemory
    ) -> tuple[Composition, RankMemory]:
        """The composition with moves, and what to remember if it is taken."""
        found = self._under_way(view, memory)
        parks: list[RequestId] = []
        look_at = memory.look_at
        if not found.going and (look_at is None or view.now >= look_at):
            for move in moves_that_pay(view, costs, lambda request: self._left(view, request), self.settings):
                parks.append(move.request)
                found.going[move.request] = UnderWay(move.target, view.now)
            pace = lane_seconds(view, costs)
            look_at = view.now + self.settings.every * pace if pace else None
        if found.going != memory.moves or look_at != memory.look_at:
            memory = RankMemory(found.going, look_at)
        # While something waits, composition is asked for often enough; to be woken besides would have admission begin
        # prefill bit by bit.
        look_at = None if found.going or len(view.queue) or len(view.pool) or view.prefilling else memory.look_at
        if not (memory.moves or found.joins or found.home):
            return (plain if look_at is None else evolve(plain, look_at=look_at)), memory
        others = [request for request in plain.joins if request not in found.going]
        others = others[: self._seats(view, len(found.going) - len(parks))]
        moved = Composition(
            joins=list(dict.fromkeys((*found.joins, *found.home, *others))),
            candidates=found.claims,
            parks=parks,
            unclaims=found.home,
            wake_at=min((way.began + self.settings.patience_s for way in found.going.values()), default=None),
            look_at=look_at,
            why="members go over to lighter ranks",
        )
        return moved, memory

    @staticmethod
    def _seats(view: LaneView, under_way: int) -> int:
        """Seats left to others: whoever is under way keeps one."""
        taken = sum(len(rank.batch) for rank in view.ranks) + len(view.joining) + under_way
        return max(0, view.lane.max_members * len(view.ranks) - taken)

    def place(self, view: LaneView, memory: RankMemory) -> Iterator[Transfer]:
        """Copies of those who have left to where they go. O(under way)."""
        for request in view.candidates if memory.moves else ():
            way = memory.moves.get(request)
            if way is not None and not view.flying(request):
                tier = view.ranks[way.target].tier
                yield Transfer(request, tier, way.began + self.settings.patience_s, why="its rank is the slowest")

    def _under_way(self, view: LaneView, memory: RankMemory) -> _Sorted:
        """Who goes on, and who joins where its KV lies: there, or at home."""
        found, claimed = _Sorted(), view.candidates
        for request in claimed:
            if request not in memory.moves:
                found.home.append(request)  # it found no seat where it went, or is not known any more
        for request, way in memory.moves.items():
            pooled, in_time = request in view.pool, view.now < way.began + self.settings.patience_s
            if request in claimed or pooled:
                if _arrived(view, request, way.target):
                    found.joins.append(request)
                elif in_time and _may_go(view, request, way.target):
                    found.going[request] = way
                    if pooled:
                        found.claims.append(request)
                elif not pooled:
                    found.home.append(request)
            elif in_time and not any(request in rank.batch for rank in view.ranks):
                found.going[request] = way  # it is leaving (or has ended: then it is forgotten in time)
        return found

    def _left(self, view: LaneView, request: RequestId) -> float:
        """Tokens that a member is expected to make from here on."""
        entry = view.entry(request)
        prompt = entry.context_length - entry.produced
        known = self.predictor.remaining(request, prompt, entry.produced, entry.kind)
        limit = entry.tokens_left
        return min(inf if known is None else known, inf if limit is None else limit)


def _arrived(view: LaneView, request: RequestId, target: int) -> bool:
    entry = view.entry(request)
    return entry.tiers.get(view.ranks[target].tier, 0) >= entry.stored


def _may_go(view: LaneView, request: RequestId, target: int) -> bool:
    """Whether it is being copied, or can be now."""
    if view.flying(request):
        return True
    entry = view.entry(request)
    a_way = any(rank.tier in entry.tiers and linked(view, rank.rank, target) for rank in view.ranks)
    return a_way and room_for(view, target, entry.context_length)
