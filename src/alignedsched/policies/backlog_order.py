"""In which order a backlog goes: by arrival, or in sorted waves where the gate finds that they serve it better.

The gate is asked only while something does not fit, and seldom: it says yes or no for a while, and waves that are on
are looked at again whenever they have lasted twice as long. Where none are on it is asked again at once when another
surface is believed in: who begins in the wrong order holds the device for long. Waves outlast a passing belief; and
where one has stopped them, the next is asked whether to go on with them, and not whether to begin.
"""

from __future__ import annotations

from attrs import evolve, field, frozen

from ..load import Costs
from ..pool import class_width
from ..views import LaneView
from .aligned_memory import Backlog, Memory
from .gate import Class, Gain, Room, gain
from .lane_share import largest
from .mean_output import Expected
from .options import number
from .prefill_lead import PrefillLead
from .rounds import RoundSettings
from .sorted_waves import Wave

POOL_LEVEL = 3  # classes of 1,024 tokens: what the gate sees of a pool


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
        wait = 0.0 if backlog.wave is None or backlog.began is None else backlog.asked - backlog.began
        return now >= backlog.asked + max(self.every_s, wait)


@frozen
class BacklogOrder:
    """Decides the order of a backlog. What it remembers is the caller's: see ``Backlog``."""

    rounds: RoundSettings
    gate: GateSettings
    expected: Expected
    lead: PrefillLead = field(factory=PrefillLead)

    def grows(self, view: LaneView) -> int:
        """Blocks kept for each resident while requests are grouped: half of what it is expected to grow by."""
        return 1 + int(self.expected.mean / 4 / view.layout.block_size)

    def after(self, view: LaneView, costs: Costs, memory: Memory, sitting_out: int, belief: int = 0) -> Memory:
        """In which order what waits for the lane goes from now on: the queue, or, where it only decodes, the pool.

        ``sitting_out``: requests in the lane's devices that keep their seats. ``belief``: another number whenever the
        costs are believed to be others. O(1); O(n log n) when a wave begins.
        """
        if view.role.prefills:
            queue = self._backlog(view, costs, memory.backlog("queue"), -sitting_out, belief)
            return memory.with_backlog("queue", queue)
        # What a wave hands over joins as it comes: by arrival, later parts of the wave would overtake the first.
        follows = memory.backlog("queue").wave is not None
        return memory.with_backlog("pool", self._backlog(view, costs, memory.backlog("pool"), 0, belief, follows))

    def _backlog(
        self, view: LaneView, costs: Costs, backlog: Backlog, seats: int, belief: int, follows: bool = False
    ) -> Backlog:
        if self._fits(view, seats):
            idle = backlog.wave is None and backlog.began is None and not backlog.overtook
            return backlog if idle else Backlog(None, backlog.asked, None, backlog.belief)
        now = view.now
        if backlog.follows and not follows:
            backlog = self._left_over(view, backlog)
        anew = not backlog.grouped and belief != backlog.belief
        if not follows and (anew or self.gate.due(backlog, now)):
            on = backlog.began is not None and (anew or backlog.grouped)
            if costs.surface == "balanced" or not self._pays(view, costs, on):
                left = backlog.wave if backlog.follows else None
                return evolve(backlog, wave=left, asked=now, began=None if anew else backlog.began, belief=belief)
            wave = backlog.wave if backlog.wave is not None and backlog.grouped else Wave()
            if view.role.prefills:
                wave = wave.anew(view.queue, self.expected.of)
            backlog = Backlog(wave, now, backlog.began if on else now, belief, overtook=True)
        elif not backlog.grouped:
            if not follows:
                return backlog
            backlog = evolve(backlog, wave=backlog.wave or Wave(), began=now, follows=True)
        return self._advanced(view, backlog)

    @staticmethod
    def _left_over(view: LaneView, backlog: Backlog) -> Backlog:
        """Waves that stop leave those in the pool who had been prefilled for one: they go first, as they came.

        By arrival, older requests that are prefilled after them would go before them, for minutes under overload.
        O(n log n) when waves stop; then amortised O(1).
        """
        if backlog.wave is None or backlog.grouped:
            came = sorted(view.pool.by_order(), key=lambda request: view.entry(request).since)
            return evolve(backlog, wave=Wave(came), began=None)
        left = backlog.wave.left_of_pool(view.pool, largest(view))
        if not left.ids:
            return evolve(backlog, wave=None, follows=False)
        return backlog if left is backlog.wave else evolve(backlog, wave=left)

    def _advanced(self, view: LaneView, backlog: Backlog) -> Backlog:
        """The wave without who has gone, or the next one."""
        wave = backlog.wave or Wave()
        prefills = view.role.prefills
        after = wave.now(view.queue, self.expected.of) if prefills else wave.of_pool(view.pool, largest(view))
        return backlog if after is backlog.wave else evolve(backlog, wave=after)

    @staticmethod
    def _fits(view: LaneView, seats: int) -> bool:
        """Whether all that waits for the lane could begin now, with so many seats more than it seems."""
        rank = view.ranks[0]
        seats += view.lane.max_members - len(rank.batch) - rank.waiting
        if view.role.prefills:
            waiting, blocks = len(view.queue), view.queue.tokens // view.layout.block_size
        else:
            waiting, blocks = len(view.pool) - len(view.resident), view.pool.class_blocks(0, 0)
        return not waiting or (waiting <= seats and blocks + 2 * waiting <= rank.free)

    def _pays(self, view: LaneView, costs: Costs, on: bool) -> bool:
        """Whether waves serve what waits better than order of arrival; ``on``: whether to go on with them."""
        found = gain(costs, self._waits(view), self._room(view), self.rounds)
        if on:
            return self.gate.still_pays(found)
        return self.gate.pays(found, self.expected.known)

    def _waits(self, view: LaneView) -> list[Class]:
        """What waits, by length. O(classes)."""
        if view.role.prefills:
            return [Class(n, tokens // n, self.expected.of(tokens // n)) for n, tokens in view.queue.classes()]
        width, block = class_width(POOL_LEVEL), view.layout.block_size
        counts = ((view.pool.class_count(POOL_LEVEL, i), i) for i in range(4**POOL_LEVEL))
        pooled = ((n, max(i * width + 1, view.pool.class_blocks(POOL_LEVEL, i) * block // n)) for n, i in counts if n)
        return [Class(n, length, self.expected.of(length)) for n, length in pooled]

    def _room(self, view: LaneView) -> Room:
        cluster, rank = view.cluster, view.ranks[0]
        decoding = [lane for lane in cluster.lanes if cluster.role(lane).decodes]
        prefilling = sum(1 for lane in cluster.lanes if cluster.role(lane).prefills)
        apart = not view.role.decodes
        # A device full of what is prefilled and not taken yet says that decoding sets the pace, whatever prefill costs.
        lead = self.lead.blocks(view)
        paced = apart and (2 * rank.free < rank.capacity if lead is None else lead <= 0)
        return Room(
            cluster.device[decoding[0].ranks[0]].kv_blocks * view.layout.block_size,
            decoding[0].max_members,
            len(decoding) / prefilling if view.role.prefills and not paced else 0.0,
            apart,
            self.grows(view) * view.layout.block_size,
        )
