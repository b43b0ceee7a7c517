"""What ``cost_aligned`` remembers, and the same as plain data."""

from __future__ import annotations

from attrs import evolve, field, frozen

from ..errors import CallerError
from ..outside import is_count, is_number, show
from .protocols import PlainData
from .rank_migration import RankMemory
from .rounds import Turn
from .sorted_waves import Wave


@frozen
class Backlog:
    """The order of what waits: the wave (None: order of arrival), when the gate was asked last, and when the first of
    the waves that are on, or that this belief has stopped, began (seconds). ``belief``: which belief about costs the
    gate was asked with. ``follows``: the wave is on only as long as the queue goes in waves; what is left of it then
    (``began`` is None) goes first, as it was handed over. ``overtook``: waves have let later requests go before earlier
    ones since all fitted last.
    """

    wave: Wave | None = None
    asked: float | None = None
    began: float | None = None
    belief: int = 0
    follows: bool = False
    overtook: bool = False

    @property
    def grouped(self) -> bool:
        """Whether neighbours go together, and not only who is left of them."""
        return self.wave is not None and self.began is not None


@frozen
class LaneMemory:
    """Of a lane: whose turn it is (None: all run together), and when that was last looked at (seconds).

    ``returning``: rounds are over, and somebody who sat out still waits for room. ``cramped``: rounds would pay, had
    residents room to grow by meanwhile; until they have, nobody new takes it.
    """

    turn: Turn | None = None
    looked: float | None = None
    returning: bool = False
    cramped: bool = False


@frozen
class Memory:
    """Backlogs by what waits ("queue", "pool"), and lanes by id; ``on_ranks``: of lanes of several ranks."""

    backlogs: dict[str, Backlog] = field(factory=dict)
    lanes: dict[str, LaneMemory] = field(factory=dict)
    on_ranks: dict[str, RankMemory] = field(factory=dict)

    def backlog(self, name: str) -> Backlog:
        return self.backlogs.get(name, _NO_BACKLOG)

    def lane(self, lane: str) -> LaneMemory:
        return self.lanes.get(lane, _NO_LANE)

    def ranks(self, lane: str) -> RankMemory:
        return self.on_ranks.get(lane, _NO_RANKS)

    @property
    def waves(self) -> bool:
        """Whether a backlog goes in waves."""
        return any(backlog.grouped for backlog in self.backlogs.values())

    @property
    def overtook(self) -> bool:
        """Whether later requests went before earlier ones since all fitted last."""
        return any(backlog.overtook for backlog in self.backlogs.values())

    def with_backlog(self, name: str, backlog: Backlog) -> Memory:
        return self if backlog is self.backlog(name) else evolve(self, backlogs={**self.backlogs, name: backlog})

    def with_lane(self, lane: str, kept: LaneMemory) -> Memory:
        return self if kept is self.lane(lane) else evolve(self, lanes={**self.lanes, lane: kept})

    def with_ranks(self, lane: str, kept: RankMemory) -> Memory:
        return self if kept is self.ranks(lane) else evolve(self, on_ranks={**self.on_ranks, lane: kept})

    def plain(self) -> PlainData:
        """As plain data. O(requests of the waves + lanes)."""
        backlogs: dict[str, PlainData] = {
            name: [
                [
                    None if backlog.wave is None else backlog.wave.plain(),
                    backlog.began,
                    backlog.belief,
                    backlog.follows,
                    backlog.overtook,
                ],
                backlog.asked,
            ]
            for name, backlog in self.backlogs.items()
        }
        lanes: dict[str, PlainData] = {
            lane: [[None if kept.turn is None else kept.turn.plain(), kept.returning, kept.cramped], kept.looked]
            for lane, kept in self.lanes.items()
        }
        state: dict[str, PlainData] = {"backlogs": backlogs, "lanes": lanes}
        if self.on_ranks:
            state["ranks"] = {lane: kept.plain() for lane, kept in self.on_ranks.items()}
        return state

    @staticmethod
    def from_plain(plain: PlainData) -> Memory:
        """Raises CallerError naming what is no such state."""
        if not isinstance(plain, dict) or plain.keys() - {"ranks"} != {"backlogs", "lanes"}:
            raise CallerError(f"cost_aligned: its state is a dict of 'backlogs' and 'lanes', got {show(plain)}")
        backlogs = {
            name: Backlog(*_wave(name, first, second))
            for name, (first, second) in _pairs("backlogs", plain["backlogs"]).items()
        }
        lanes = {
            lane: LaneMemory(*_turn(lane, first, second))
            for lane, (first, second) in _pairs("lanes", plain["lanes"]).items()
        }
        on_ranks = plain.get("ranks", {})
        if not isinstance(on_ranks, dict):
            raise CallerError(f"cost_aligned: 'ranks' of its state must be a dict, got {show(on_ranks)}")
        return Memory(backlogs, lanes, {lane: RankMemory.from_plain(kept) for lane, kept in on_ranks.items()})


_NO_BACKLOG, _NO_LANE, _NO_RANKS = Backlog(), LaneMemory(), RankMemory()


def _pairs(what: str, plain: PlainData) -> dict[str, tuple[PlainData, float | None]]:
    if not isinstance(plain, dict):
        raise CallerError(f"cost_aligned: {what!r} of its state must be a dict, got {show(plain)}")
    pairs: dict[str, tuple[PlainData, float | None]] = {}
    for name, pair in plain.items():
        if not isinstance(pair, list) or len(pair) != 2 or not (pair[1] is None or is_number(pair[1])):
            raise CallerError(f"cost_aligned: {what}[{name!r}] of its state: a pair with seconds, got {show(pair)}")
        pairs[name] = (pair[0], pair[1])
    return pairs


def _wave(
    name: str, plain: PlainData, asked: float | None
) -> tuple[Wave | None, float | None, float | None, int, bool, bool]:
    if isinstance(plain, list) and len(plain) == 5:
        wave, began, belief, follows, overtook = plain
        if (
            (began is None or is_number(began))
            and is_count(belief)
            and isinstance(follows, bool)
            and isinstance(overtook, bool)
        ):
            return None if wave is None else Wave.from_plain(wave), asked, began, belief, follows, overtook
    what = "a wave, seconds, a count and two flags"
    raise CallerError(f"cost_aligned: backlogs[{name!r}] of its state: {what}, got {show(plain)}")


def _turn(lane: str, plain: PlainData, looked: float | None) -> tuple[Turn | None, float | None, bool, bool]:
    if isinstance(plain, list) and len(plain) == 3:
        turn, returning, cramped = plain
        if isinstance(returning, bool) and isinstance(cramped, bool):
            return None if turn is None else Turn.from_plain(turn), looked, returning, cramped
    raise CallerError(f"cost_aligned: lanes[{lane!r}] of its state: a turn and two flags, got {show(plain)}")
