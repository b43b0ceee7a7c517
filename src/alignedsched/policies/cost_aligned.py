"""``cost_aligned``: continuous batching that aligns exactly when the cost surface pays for it; the default.

Two moves, each asked of the surface in closed form, and each absent where it would not pay:

* *rounds*: what lies in the device decodes in groups of similar length, one after the other, where a round of group
  steps is shorter than as many common steps (``rounds``);
* *sorted waves*: a backlog that does not fit is admitted by ascending length instead of by arrival (``sorted_waves``),
  where the gate finds that faster (``gate``).

With neither, every decision is that of ``fcfs``, step for step.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice

from attrs import evolve, field, frozen

from ..load import Costs, Load
from ..pool import class_width
from ..request import RequestId
from ..views import LaneView
from .aligned_memory import Backlog, LaneMemory, Memory
from .fcfs import ContinuousBatching
from .gate import Class, Gain, Room, gain
from .mean_output import MeanOutput
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

    ``hardly`` faster is enough where requests wait ``kinder`` times less on average, which is asked for while next to
    nothing is known of outputs; longer they must never wait. Where most requests owe their length to their output, an
    order by prompts is hardly one by length, and what is foreseen of it rests on averages: there waves have to be
    ``unsure`` times faster. Waves that are on are looked at again whenever they have lasted twice as long, by what is
    known of outputs by then, and stop where they are ``slower`` than order of arrival, or requests wait longer by that.
    """

    faster: float = field(default=1.05, validator=number(1.0))
    hardly: float = field(default=1.01, validator=number(1.0))
    kinder: float = field(default=2.0, validator=number(1.0))
    unsure: float = field(default=1.3, validator=number(1.0))
    slower: float = field(default=1.05, validator=number(1.0))
    every_s: float = field(default=5.0, validator=number(0.0))

    def pays(self, gain: Gain, known: bool) -> bool:
        """Whether to begin; ``known``: what outputs are like."""
        if gain.wait < 1.0:
            return False
        if gain.told < 0.5:
            return gain.time >= self.unsure
        return (known and gain.time >= self.faster) or (gain.time >= self.hardly and gain.wait >= self.kinder)

    def still_pays(self, gain: Gain) -> bool:
        """Whether to go on."""
        return min(gain.time, gain.wait) * self.slower >= 1.0

    def due(self, backlog: Backlog, now: float) -> bool:
        """Whether to ask (again)."""
        if backlog.asked is None:
            return True
        wait = 0.0 if backlog.began is None else backlog.asked - backlog.began
        return now >= backlog.asked + max(self.every_s, wait)


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
        outputs: MeanOutput | None = None,
        costs: Costs | None = None,
        fit: SurfaceFit | None = None,
        plain: ContinuousBatching | None = None,
    ) -> None:
        self.rounds = rounds
        self.gate = gate
        self.predictor = predictor
        self.outputs = outputs or MeanOutput()
        self.memory = Memory()
        self._proposed: tuple[PlainData, Memory] = (None, self.memory)
        self._costs = costs
        self._fit = fit
        self._plain = plain or ContinuousBatching()

    def output(self) -> float:
        """Tokens expected of a request of which nothing is known."""
        return max(self.outputs.tokens, self._ended(1))

    def expects(self, tokens: int) -> float:
        """Tokens expected of a request with so many prompt tokens. O(log bins)."""
        # What ends of a kind say, as much longer as those that still run make the mean of all.
        return self._ended(tokens) * max(1.0, self.outputs.tokens / self._ended(1))

    def _ended(self, tokens: int) -> float:
        return self.predictor.remaining("", tokens, 0) or 1.0

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
            lane = self._look(view, costs, memory.lane(view.lane.id))
            memory = memory.with_lane(view.lane.id, lane)
            composition = self._compose(view, memory)
            if lane.turn is None and lane.looked is not None and self._uneven(view, costs, composition.joins):
                composition = evolve(composition, look_at=max(view.now, lane.looked) + self.rounds.round_s)
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
            wake_at=None if turn is None else turn.wake_at(view.step, view.now),
            why="a group's turn" if turn is not None else "who sat out, then the next of the wave",
        )

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
        after = next_turn(costs, lengths, turn, view.step, now, self.rounds, urgent)
        if after is not None and len(lengths) * _growth(view, after) > view.ranks[0].free:
            after = None  # whoever sits out must find a block when its turn comes
        return LaneMemory(after, now, after is None and (turn is not None or lane.returning))

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
        if view.role.prefills:
            return memory.with_backlog("queue", self._backlog(view, costs, memory.backlog("queue")))
        # What a wave hands over joins as it comes: by arrival, later parts of the wave would overtake the first.
        follows = memory.backlog("queue").wave is not None
        return memory.with_backlog("pool", self._backlog(view, costs, memory.backlog("pool"), follows))

    def _backlog(self, view: LaneView, costs: Costs, backlog: Backlog, follows: bool = False) -> Backlog:
        if self._fits(view):
            return backlog if backlog.wave is None else Backlog(None, backlog.asked)
        now = view.now
        if not follows and self.gate.due(backlog, now):
            if costs.surface == "balanced" or not self._pays(view, costs, backlog):
                return Backlog(None, now)
            wave = backlog.wave or Wave()
            if view.role.prefills:
                wave = wave.anew(view.queue, self.expects)
            backlog = Backlog(wave, now, now if backlog.wave is None else backlog.began)
        elif backlog.wave is None:
            if not follows:
                return backlog
            backlog = Backlog(Wave(), backlog.asked, now)
        return self._advanced(view, backlog)

    def _advanced(self, view: LaneView, backlog: Backlog) -> Backlog:
        """The wave without who has gone, or the next one."""
        wave = backlog.wave or Wave()
        after = wave.now(view.queue, self.expects) if view.role.prefills else wave.of_pool(view.pool)
        return backlog if after is backlog.wave else evolve(backlog, wave=after)

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

    def _pays(self, view: LaneView, costs: Costs, backlog: Backlog) -> bool:
        """Whether waves serve what waits better than order of arrival."""
        found = gain(costs, self._waits(view), self._room(view), self.rounds)
        if backlog.wave is not None:
            return self.gate.still_pays(found)
        return self.gate.pays(found, self.outputs.known)

    def _waits(self, view: LaneView) -> list[Class]:
        """What waits, by length. O(classes)."""
        if view.role.prefills:
            return [Class(n, tokens // n, self.expects(tokens // n)) for n, tokens in view.queue.classes()]
        width, block = class_width(POOL_LEVEL), view.layout.block_size
        counts = ((view.pool.class_count(POOL_LEVEL, i), i) for i in range(4**POOL_LEVEL))
        pooled = ((n, max(i * width + 1, view.pool.class_blocks(POOL_LEVEL, i) * block // n)) for n, i in counts if n)
        return [Class(n, length, self.expects(length)) for n, length in pooled]

    @staticmethod
    def _room(view: LaneView) -> Room:
        cluster, rank = view.cluster, view.ranks[0]
        decoding = [lane for lane in cluster.lanes if cluster.role(lane).decodes]
        prefilling = sum(1 for lane in cluster.lanes if cluster.role(lane).prefills)
        apart = not view.role.decodes
        # A device full of what is prefilled and not taken yet says that decoding sets the pace, whatever prefill costs.
        paced = apart and 2 * rank.free < rank.capacity
        return Room(
            cluster.device[decoding[0].ranks[0]].kv_blocks * view.layout.block_size,
            decoding[0].max_members,
            len(decoding) / prefilling if view.role.prefills and not paced else 0.0,
            apart,
        )


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
    history, outputs, fit = History(), MeanOutput(), SurfaceFit() if refit else None
    known = history if predictor == "history" else predictor_named(predictor)
    turns = order_named(order, known, patience_s=patience_s)
    settings = evolve(rounds or RoundSettings(), wait_s=wait_s, tpot_target_s=tpot_target_s)
    plain = ContinuousBatching() if order == "arrival" else OrderedBatching(order=turns)
    batching = CostAligned(settings, gate or GateSettings(), history, outputs, costs, fit, plain)
    placed = RankOrder(token_budget, by_priority)
    admission = WaveAdmission(token_budget, by_priority, batching=batching, placed=placed, order=turns)
    watches: list[Watch] = [
        history,
        outputs,
        placed,
        *([] if known is history else [known]),
        *([] if fit is None else [fit]),
    ]
    return Policy("cost_aligned", admission, batching, DirectResidency(to_host="never"), watches=tuple(watches))
