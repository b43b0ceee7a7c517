"""``cost_aligned``: continuous batching that aligns exactly when the cost surface pays for it; the default.

Two moves, each asked of the surface in closed form, and each absent where it would not pay:

* *rounds*: what lies in the device decodes in groups of similar length, one after the other, where a round of group
  steps is shorter than as many common steps (``rounds``);
* *sorted waves*: a backlog that does not fit is admitted by ascending length instead of by arrival (``sorted_waves``),
  where the gate finds that faster (``gate``).

With neither, every decision is that of ``fcfs``, step for step.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, islice

from attrs import evolve, field, frozen

from ..load import Costs
from ..pool import class_width
from ..request import RequestId
from ..views import LaneView
from .aligned_memory import Backlog, LaneMemory, Memory
from .fcfs import ContinuousBatching
from .gate import Gain, Room, gain
from .options import number
from .order import order as order_named
from .predict import History, Predictor
from .predict import predictor as predictor_named
from .protocols import Composition, PlainData, Policy, Sacrifice, Watch
from .rank_balance import RankOrder
from .residency import DirectResidency
from .rounds import RoundSettings, Turn, next_turn
from .sjf import OrderedBatching
from .sorted_waves import Wave
from .surface_fit import SurfaceFit
from .wave_admission import WaveAdmission

LOOK = 256  # pooled requests outside the device looked at for a turn
POOL_LEVEL = 3  # classes of 1,024 tokens: what the gate sees of a pool
_NOTHING = Composition()


@frozen
class GateSettings:
    """When waves begin: they must work a backlog off ``faster`` by this factor; asked every ``every_s`` seconds.

    ``hardly`` faster is enough where requests wait ``kinder`` times less on average.
    """

    faster: float = field(default=1.05, validator=number(1.0))
    hardly: float = field(default=1.01, validator=number(1.0))
    kinder: float = field(default=2.0, validator=number(1.0))
    every_s: float = field(default=5.0, validator=number(0.0))

    def pays(self, gain: Gain) -> bool:
        return gain.time >= self.faster or (gain.time >= self.hardly and gain.wait >= self.kinder)


class CostAligned:
    """Batching: continuous, or in rounds. It also decides the order of admission, which its admission follows.

    ``compose`` costs what it costs in ``fcfs`` plus O(1); at the end of a turn O(residents log residents) and a few
    hundred prices; when a wave begins O(n log n) in what waits.
    """

    def __init__(
        self,
        rounds: RoundSettings,
        gate: GateSettings,
        predictor: Predictor,
        costs: Costs | None = None,
        fit: SurfaceFit | None = None,
        plain: ContinuousBatching | None = None,
    ) -> None:
        self.rounds = rounds
        self.gate = gate
        self.predictor = predictor
        self.memory = Memory()
        self._proposed: tuple[PlainData, Memory] = (None, self.memory)
        self._costs = costs
        self._fit = fit
        self._plain = plain or ContinuousBatching()

    def output(self) -> float:
        """Tokens expected of a request of which nothing is known."""
        return self.predictor.remaining("", 1, 0) or 1.0

    def grows(self, view: LaneView) -> int:
        """Blocks kept for each resident while requests are grouped: half of what it is expected to grow by."""
        return 1 + int(self.output() / 4 / view.layout.block_size)

    def sitting_out(self, view: LaneView) -> int:
        """Requests in the lane's devices whose turn it is not."""
        turn = self.memory.lane(view.lane.id).turn
        return len(view.resident) + view.leaving if turn is not None and view.role.decodes else 0

    # -- Batching

    def compose(self, view: LaneView) -> Composition:
        """The lane's next change; see Batching."""
        costs = view.costs or self._costs
        if costs is None or len(view.ranks) > 1:
            return self._plain.compose(view)
        if self._fit is not None:
            costs = self._fit.costs(costs)
        memory = self._order(view, costs, self.memory)
        composition = _NOTHING
        if view.role.decodes:
            memory = memory.with_lane(view.lane.id, self._look(view, costs, memory.lane(view.lane.id)))
            composition = self._compose(view, memory)
        if memory is self.memory:
            return composition
        plain = memory.plain()
        self._proposed = (plain, memory)
        return evolve(composition, memory=plain)

    def _compose(self, view: LaneView, memory: Memory) -> Composition:
        lane, wave = memory.lane(view.lane.id), memory.backlog("pool").wave
        turn = lane.turn
        if turn is None and not lane.returning and (wave is None or view.role.prefills):
            return self._plain.compose(view)
        rank = view.ranks[0]
        parks = turn.strays(rank.batch, view.step) if turn is not None else []
        seats = view.lane.max_members - len(rank.batch) + len(parks) - len(view.joining)
        keeps = self.grows(view) * (len(rank.batch) + len(view.resident) + view.leaving)
        waiting = self._waiting(view, wave)
        if turn is not None:
            waiting = (request for request in waiting if turn.holds(view.pool.length(request)))
        return Composition(
            joins=list(self._plain.from_pool(view, view.ranks, seats, waiting, keeps)),
            parks=parks,
            wake_at=None if turn is None else self._wake_at(view, turn),
            why="a group's turn" if turn is not None else "who sat out, then the next of the wave",
        )

    def _wake_at(self, view: LaneView, turn: Turn) -> float:
        """When the turn should be over, or, if its steps are slow, somebody has sat out for half of what is allowed."""
        out = (view.entry(request).since for request in view.resident if not turn.holds(view.pool.length(request)))
        since = next(out, view.now)  # who is sent out now, if nobody is out
        overdue = max(view.now + turn.pace, since + self.rounds.longest_wait / 2)
        return min(turn.wake_at(view.step, view.now), overdue)

    @staticmethod
    def _waiting(view: LaneView, wave: Wave | None) -> Iterator[RequestId]:
        """Who might join: from this device, longest out first, then from elsewhere, in order, while seats last."""
        here = frozenset(view.resident)
        others: Iterable[RequestId] = view.pool.by_order() if wave is None else wave.pooled(view.pool)
        elsewhere = (request for request in islice(others, len(here) + LOOK) if request not in here)
        residents = len(view.ranks[0].batch) + len(here) + view.leaving + len(view.joining)
        seats = view.lane.max_members - residents
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

    def _look(self, view: LaneView, costs: Costs, lane: LaneMemory) -> LaneMemory:
        """Whose turn it is now."""
        turn, now, batch, pool = lane.turn, view.now, view.ranks[0].batch, view.pool
        urgent = self._urgent(view) if turn is not None else None
        if turn is None:
            if lane.returning and not view.resident and not view.leaving:
                return LaneMemory(None, lane.looked)
            if lane.looked is not None and now < lane.looked + self.rounds.round_s:
                return lane
        elif view.step < turn.until and len(batch) and (urgent is None or turn.holds(urgent)):
            return lane
        lengths = sorted([*(batch.context_length(member) for member in batch), *map(pool.length, view.resident)])
        curious = self._fit is not None and self._fit.curious
        after = next_turn(costs, lengths, turn, view.step, now, self.rounds, urgent, curious)
        if after is not None and len(lengths) * _growth(view, after) > view.ranks[0].free:
            after = None  # whoever sits out must find a block when its turn comes
        return LaneMemory(after, now, after is None and (turn is not None or lane.returning))

    def _urgent(self, view: LaneView) -> int | None:
        """The length of who has sat out for half of what is allowed, if anybody has."""
        first = next(iter(view.resident), None)
        if first is None:
            return None
        late = view.now - view.entry(first).since >= self.rounds.longest_wait / 2
        return view.pool.length(first) if late else None

    # -- waves

    def _order(self, view: LaneView, costs: Costs, memory: Memory) -> Memory:
        """In which order what waits for the lane goes: the queue, or, where it only decodes, the pool."""
        name = "queue" if view.role.prefills else "pool"
        return memory.with_backlog(name, self._backlog(view, costs, memory.backlog(name)))

    def _backlog(self, view: LaneView, costs: Costs, backlog: Backlog) -> Backlog:
        wave, asked = backlog.wave, backlog.asked
        if self._fits(view):
            return backlog if wave is None else Backlog(None, asked)
        if wave is None:
            if asked is not None and view.now < asked + self.gate.every_s:
                return backlog
            if costs.surface == "balanced" or not self.gate.pays(self._gain(view, costs)):
                return Backlog(None, view.now)
            wave, asked = Wave(), view.now
        after = wave.now(view.queue) if view.role.prefills else wave.of_pool(view.pool)
        return backlog if after is backlog.wave else Backlog(after, asked)

    def _fits(self, view: LaneView) -> bool:
        """Whether all that waits for the lane could begin now."""
        rank = view.ranks[0]
        seats = view.lane.max_members - len(rank.batch) - rank.waiting
        if view.role.prefills:
            waiting, blocks = len(view.queue), view.queue.tokens // view.layout.block_size
            seats -= self.sitting_out(view)
        else:
            waiting, blocks = len(view.pool) - len(view.resident), view.pool.class_blocks(0, 0)
        return not waiting or (waiting <= seats and blocks + 2 * waiting <= rank.free)

    def _gain(self, view: LaneView, costs: Costs) -> Gain:
        """How much faster waves would work the backlog off, and with how much less waiting."""
        if view.role.prefills:
            sizes = list(view.queue.classes())
        else:
            width, block = class_width(POOL_LEVEL), view.layout.block_size
            counts = ((view.pool.class_count(POOL_LEVEL, i), i) for i in range(4**POOL_LEVEL))
            sizes = [
                (n, max(n * (i * width + 1), view.pool.class_blocks(POOL_LEVEL, i) * block)) for n, i in counts if n
            ]
        cluster = view.cluster
        decoding = [lane for lane in cluster.lanes if cluster.role(lane).decodes]
        prefilling = sum(1 for lane in cluster.lanes if cluster.role(lane).prefills)
        room = Room(
            cluster.device[decoding[0].ranks[0]].kv_blocks * view.layout.block_size,
            decoding[0].max_members,
            len(decoding) / prefilling if view.role.prefills else 0.0,
            not view.role.decodes,
        )
        return gain(costs, sizes, room, max(self.output(), self._made(view)), self.rounds)

    @staticmethod
    def _made(view: LaneView) -> float:
        """Tokens that members have made on average: those that end early are heard of first. O(members)."""
        made = [view.entry(member).produced for rank in view.ranks for member in rank.batch]
        return sum(made) / len(made) if made else 0.0


def _growth(view: LaneView, turn: Turn) -> int:
    """Blocks that a resident may take during a turn and one more."""
    return 1 + (turn.until - turn.first) // view.layout.block_size


def cost_aligned(
    *,
    wait_s: float | None = 30.0,
    token_budget: int | None = None,
    by_priority: bool = False,
    tpot_target_s: float | None = None,
    order: str = "arrival",
    predictor: str = "history",
    patience_s: float = 60.0,
    costs: Costs | None = None,
    refit: bool = True,
    rounds: RoundSettings | None = None,
    gate: GateSettings | None = None,
) -> Policy:
    """The policy, whole. No option has to be set: the defaults hold on every surface.

    ``wait_s`` bounds how long rounds keep a request waiting that has begun (seconds). ``tpot_target_s``: nobody is kept
    waiting for longer than a few times that; as a turn takes longer, rounds then are hardly ever run.
    ``order`` says who goes first where requests do not go in waves: by "arrival" ("priority" first with
    ``by_priority``), by what is expected to be "remaining" as ``predictor`` ("history", "oracle" in studies) has it, or
    by "value"; nobody is overtaken by who comes more than ``patience_s`` later. ``token_budget`` is that of ``fcfs``.
    ``costs`` is the surface to decide by where the executor publishes none; with ``refit`` it is corrected by what
    steps are reported to take. Raises ConfigError naming the option that is out of range.
    """
    history, fit = History(), SurfaceFit() if refit else None
    known = history if predictor == "history" else predictor_named(predictor)
    turns = order_named(order, known, patience_s=patience_s)
    settings = evolve(rounds or RoundSettings(), wait_s=wait_s, tpot_target_s=tpot_target_s)
    plain = ContinuousBatching() if order == "arrival" else OrderedBatching(order=turns)
    batching = CostAligned(settings, gate or GateSettings(), history, costs, fit, plain)
    placed = RankOrder(token_budget, by_priority)
    admission = WaveAdmission(token_budget, by_priority, batching=batching, placed=placed, order=turns)
    watches: list[Watch] = [history, placed, *([] if known is history else [known]), *([] if fit is None else [fit])]
    return Policy("cost_aligned", admission, batching, DirectResidency(to_host="never"), watches=tuple(watches))
