"""Batching of ``cost_aligned``: continuous, in rounds where that is shorter, and out of sorted waves while they are on.

Every decision that is not that of continuous batching is asked of the cost surface, and remembered (``Memory``) only
when the scheduler has taken it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, islice

from attrs import evolve

from ..load import Costs, Load
from ..request import RequestId
from ..views import LaneView
from .aligned_memory import LaneMemory, Memory
from .backlog_order import BacklogOrder
from .fcfs import ContinuousBatching
from .lane_share import fitting
from .predict import NoPrediction
from .protocols import Composition, PlainData, Sacrifice
from .rank_migration import Migration, RankMemory
from .rounds import RoundSettings, Turn, next_turn
from .setting_aside import without_the_longest
from .sorted_waves import Wave
from .surface_fit import SurfaceFit

LOOK = 256  # pooled requests outside the device looked at for a turn

_NOTHING = Composition()


class CostAligned:
    """Batching: continuous, or in rounds. It also decides the order of admission, which its admission follows.

    ``compose`` costs what it costs in ``fcfs`` plus O(1); at the end of a turn O(residents log residents) and a few
    hundred prices; when a wave begins O(n log n) in what waits.
    """

    def __init__(
        self,
        rounds: RoundSettings,
        order: BacklogOrder,
        costs: Costs | None = None,
        fit: SurfaceFit | None = None,
        plain: ContinuousBatching | None = None,
        migration: Migration | None = None,
    ) -> None:
        self.rounds = rounds
        self.order = order
        self.memory = Memory()
        self._proposed: tuple[PlainData, Memory] = (None, self.memory)
        self._costs = costs
        self._fit = fit
        self._plain = plain or ContinuousBatching()
        self.migration = migration or Migration(NoPrediction())

    def grows(self, view: LaneView) -> int:
        """Blocks kept for each resident while requests are grouped: half of what it is expected to grow by."""
        return self.order.grows(view)

    def sitting_out(self, view: LaneView) -> int:
        """Requests in the lane's devices whose turn it is not, or who come back now that all may run together."""
        lane = self.memory.lane(view.lane.id)
        sits = view.role.decodes and (lane.turn is not None or lane.returning)
        return len(view.resident) + view.leaving if sits else 0

    # -- Batching

    def compose(self, view: LaneView) -> Composition:
        """The lane's next change; see Batching."""
        costs = view.costs or self._costs
        if costs is None:
            return self._plain.compose(view)
        if len(view.ranks) > 1:
            return self._on_ranks(view, costs)
        belief = 0
        if self._fit is not None:
            costs = self._fit.costs(costs)
            belief = self._fit.beliefs
        memory = self.order.after(view, costs, self.memory, self.sitting_out(view), belief)
        composition = _NOTHING
        if view.role.decodes:
            lane = self._look(view, costs, memory.lane(view.lane.id), memory.waves)
            memory = memory.with_lane(view.lane.id, lane)
            composition = self._compose(view, memory, lane is not self.memory.lane(view.lane.id))
            if lane.turn is None and lane.looked is not None and self._uneven(view, costs, composition.joins):
                composition = evolve(composition, look_at=max(view.now, lane.looked) + self.rounds.round_s)
        return self._remembering(composition, memory)

    def _on_ranks(self, view: LaneView, costs: Costs) -> Composition:
        """Ranks that step together: continuous batching, and members who even them out go from rank to rank."""
        composition = self._plain.compose(view)
        if not view.role.decodes:
            return composition
        before = self.on_ranks(view.lane.id)
        composition, after = self.migration.compose(view, costs, composition, before)
        return self._remembering(composition, self.memory.with_ranks(view.lane.id, after))

    def on_ranks(self, lane: str) -> RankMemory:
        """Who goes from rank to rank of a lane; see Migrating."""
        return self.memory.ranks(lane)

    def _remembering(self, composition: Composition, memory: Memory) -> Composition:
        if memory is self.memory:
            return composition
        plain = memory.plain()
        self._proposed = (plain, memory)
        return evolve(composition, memory=plain)

    def _compose(self, view: LaneView, memory: Memory, fresh: bool) -> Composition:
        lane, pool = memory.lane(view.lane.id), memory.backlog("pool")
        turn, wave = lane.turn, pool.wave
        plain = wave is None and not (memory.overtook and view.pool.again())
        together = turn is None and not lane.returning
        if together and ((plain and not lane.cramped) or view.role.prefills):
            return self._plain.compose(view)
        rank = view.ranks[0]
        parks = self._parks(view, turn, fresh) if turn is not None else []
        seats = view.lane.max_members - len(rank.batch) + len(parks) - len(view.joining)
        grouped = not together or lane.cramped or pool.grouped
        keeps = self.grows(view) * (len(rank.batch) + len(view.resident) + view.leaving) if grouped else 0
        waiting = self._waiting(view, wave, turn)
        if turn is not None:
            waiting = (request for request in waiting if turn.holds(view.pool.length(request)))
        return Composition(
            joins=list(self._plain.from_pool(view, view.ranks, seats, waiting, keeps)),
            parks=parks,
            wake_at=None if turn is None else self._wake_at(view, turn, lane.looked),
            why=_why(turn),
        )

    def _wake_at(self, view: LaneView, turn: Turn, looked: float | None) -> float:
        """When the turn should be over, or, if its steps are slow, somebody has sat out for half of what is allowed."""
        began = view.now if looked is None else looked
        out = (view.entry(request).since for request in view.resident if not turn.holds(view.pool.length(request)))
        since = min(began, next(out, began))  # who is sent out by this turn is so from its beginning
        overdue = max(view.now + turn.pace, since + turn.wait / 2)
        return min(turn.wake_at(view.step, view.now), overdue)

    @staticmethod
    def _parks(view: LaneView, turn: Turn, fresh: bool) -> list[RequestId]:
        """Members whose turn it is not; at first, where its group has more than seats, some who ran before, too."""
        batch, seats = view.ranks[0].batch, view.lane.max_members
        parks = turn.strays(batch, view.step)
        if not fresh or len(batch) + len(view.resident) <= seats:
            return parks
        due = sum(1 for request in view.resident if turn.holds(view.pool.length(request)))
        over = len(batch) - len(parks) + min(due, seats) - seats
        if over <= 0:
            return parks
        gone = frozenset(parks)
        return [*parks, *islice((member for member in batch if member not in gone), over)]

    def _waiting(self, view: LaneView, wave: Wave | None, turn: Turn | None) -> Iterator[RequestId]:
        """Who might join: from this device, longest out first, then from elsewhere, in order, while seats last.

        Before the others goes who was preempted: one that had begun before its time would start over behind all that it
        overtook.
        """
        here, again = frozenset(view.resident), dict.fromkeys(fitting(view, view.pool.again()))
        others = fitting(view, view.pool.by_order() if wave is None else wave.pooled(view.pool))
        fresh = (request for request in islice(others, len(here) + len(again) + LOOK) if request not in again)
        elsewhere = (request for request in chain(again, fresh) if request not in here)
        residents = len(view.ranks[0].batch) + len(here) + view.leaving + len(view.joining)
        seats = view.lane.max_members - residents
        if not view.role.prefills:  # who sits out on one that prefills, too, keeps its seat
            share = (len(view.pool) - len(here)) // max(1, len(view.loads))
            seats = max(seats, min(self.rounds.residents(view.lane.max_members, turn) - residents, share))
        return chain(view.resident, islice(elsewhere, max(0, seats)))

    def victims(self, view: LaneView, rank: int, blocks: int) -> Iterator[tuple[RequestId, Sacrifice]]:
        """Newest arrival first, whether it runs or sits out its turn."""
        return self._plain.victims(view, rank, blocks)

    def taken(self, view: LaneView, composition: Composition) -> None:
        """Remember what the composition rests on."""
        if composition.memory is not None:
            plain, memory = self._proposed  # spares reading a long wave again
            self.memory = memory if composition.memory is plain else Memory.from_plain(composition.memory)

    def state(self) -> PlainData:
        return self.memory.plain()

    def load(self, state: PlainData) -> None:
        """Restore ``state()``. Raises CallerError for anything else, and then changes nothing."""
        self.memory = Memory.from_plain(state)

    # -- rounds

    def _look(self, view: LaneView, costs: Costs, lane: LaneMemory, waves: bool) -> LaneMemory:
        """Whose turn it is now."""
        turn, now, batch, pool = lane.turn, view.now, view.ranks[0].batch, view.pool
        urgent = self._urgent(view, turn) if turn is not None else None
        seats = view.lane.max_members
        if turn is None:
            if lane.returning and not view.resident and not view.leaving:
                return LaneMemory(None, lane.looked)
            soon = lane.cramped and self._steps_of_room(view) >= self.rounds.least
            if lane.looked is not None and now < lane.looked + self.rounds.round_s and not soon:
                return lane
        elif view.step < turn.until and len(batch) and (urgent is None or turn.holds(urgent)):
            return lane
        elif view.leaving and len(batch) + len(view.resident) + view.leaving > seats:
            return lane  # whoever is leaving is in the next group or not: it is told in a step or two
        lengths = sorted([*(batch.context_length(member) for member in batch), *map(pool.length, view.resident)])
        curious = self._fit is not None and self._fit.curious
        last = None if turn is not None and turn.sets_aside else turn
        must = turn is not None and len(lengths) > seats and not view.role.prefills
        settings = self.rounds if must else self._as_room_allows(view)
        deep = lengths if must else self._with_pooled(view, costs, lengths)
        after = next_turn(costs, deep, last, view.step, now, settings, urgent, curious, seats, must)
        if after is None and deep is not lengths:
            after = next_turn(costs, lengths, last, view.step, now, settings, urgent, curious, seats)
        if after is None and waves and lengths:
            after = self._without_the_longest(view, costs, lengths, urgent is not None)
        cramped = after is not None and not must and len(lengths) * _growth(view, after) > view.ranks[0].free
        if cramped:
            after = None  # whoever sits out must find a block when its turn comes
        return LaneMemory(after, now, after is None and (turn is not None or lane.returning), cramped)

    def _as_room_allows(self, view: LaneView) -> RoundSettings:
        """The settings, with turns no longer than all residents find blocks for; below the least there are no rounds.

        In a device full of requests that were let in by arrival, long turns would find no room, and rounds never begin.
        """
        steps = self._steps_of_room(view)
        return evolve(self.rounds, most=steps) if self.rounds.least <= steps < self.rounds.most else self.rounds

    @staticmethod
    def _steps_of_room(view: LaneView) -> int:
        """Steps of a turn, and of one more, for which all residents find blocks."""
        residents = len(view.ranks[0].batch) + len(view.resident)
        return view.ranks[0].free // max(1, residents) * view.layout.block_size - 1

    def _with_pooled(self, view: LaneView, costs: Costs, lengths: Sequence[int]) -> Sequence[int]:
        """The residents' lengths, more than once where so many others are pooled that there may be more than seats.

        Who would come is taken to be like who is there, and is there for the room that its like has and is kept. Where
        only the longest counts (``unsplit``) waves and setting aside gain as much, and nobody pauses for it.
        """
        seats, there = view.lane.max_members, len(lengths)
        if view.role.prefills or not there or self.rounds.tpot_target_s is not None or costs.surface == "unsplit":
            return lengths
        rank, others = view.ranks[0], (len(view.pool) - len(view.resident)) // max(1, len(view.loads))
        spare = rank.free - self.grows(view) * there
        each = (rank.capacity - rank.free) / there + self.grows(view)
        more = there + min(others, int(spare / each))
        most = min(more, int(self.rounds.deep * seats))
        if most <= seats:
            return lengths
        return sorted(lengths[at * there // most] for at in range(most))

    def _without_the_longest(self, view: LaneView, costs: Costs, lengths: Sequence[int], overdue: bool) -> Turn | None:
        """The turn of all but those who are far too long for the wave, if half as long ones are still to come."""
        half = (lengths[-1] + 1) // 2
        pooled = any(request not in view.resident for request in view.pool.by_length(half))
        if not pooled and all(tokens // n < half for n, tokens in view.queue.classes()):
            return None
        room = (view.ranks[0].free - self.grows(view) * len(lengths)) * view.layout.block_size
        return without_the_longest(costs, lengths, view.step, view.now, room, overdue, self.rounds)

    def _uneven(self, view: LaneView, costs: Costs, joins: Sequence[RequestId]) -> bool:
        """Whether imbalance costs enough to look for rounds again even if nobody joins or leaves. O(joins)."""
        if costs.surface in ("balanced", "unsplit"):
            return False
        batch, lengths = view.ranks[0].batch, [view.entry(request).context_length for request in joins]
        load = Load(len(batch) + len(lengths), batch.total + sum(lengths), max(batch.longest, *lengths, 0))
        if load.n < 2:
            return False
        together = costs.step_seconds(load)
        return together - costs.balanced_seconds(load) > self.rounds.bubble * together

    @staticmethod
    def _urgent(view: LaneView, turn: Turn) -> int | None:
        """The length of who has sat out for half of what is allowed, if anybody has."""
        first = next(iter(view.resident), None)
        if first is None or view.now - view.entry(first).since < turn.wait / 2:
            return None
        return view.pool.length(first)


def _why(turn: Turn | None) -> str:
    if turn is None:
        return "who sat out, then the next of the wave"
    return "without those far too long for the wave" if turn.sets_aside else "a group's turn"


def _growth(view: LaneView, turn: Turn) -> int:
    """Blocks that a resident may take during a turn and one more."""
    return 1 + (turn.until - turn.first) // view.layout.block_size
