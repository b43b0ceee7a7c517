"""One decision of ``density_first`` for one lane: mix, refill, switch, or choose the next batch.

What the paper calls batch-level scheduling, in this order:

1. *Mix.* If all that is ready fits in the room of two batches, it runs together: there is nothing to gain by waiting.
2. *Refill.* Pooled requests near the running batch's median length join while it has less than ``batch_share`` of
   the blocks.
3. *Switch.* If the lane is still less than ``drain_share`` full, or runs nothing, or its candidates have waited
   ``patience_s``, the candidates join. Until all of them have, nobody else does. What ran before is the *old* batch;
   where blocks are short, the longest of it go back to the pool.
4. *Choose.* Else, from ``k_min`` pooled requests on, the next batch is chosen and its requests become candidates.

A lane's fullness is the larger of its share of ``batch_share`` and of its seats. Two switches are ``dwell_s`` apart
unless the lane runs nothing, so that it cannot flap.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain, islice, takewhile

from attrs import define, evolve, field

from ..cluster import HOST
from ..request import RequestId
from ..views import LaneView
from . import guard
from .aligned_settings import LaneMemory, Settings
from .formation import ANCHOR_LEVEL, Formation, class_span
from .lane_room import LaneRoom
from .protocols import Composition, PlainData


@define(eq=False)
class Round:
    """The making of one composition. ``clocks`` is this round's own copy."""

    settings: Settings
    formation: Formation
    view: LaneView
    clocks: dict[str, float]
    memory: LaneMemory
    room: LaneRoom = field(init=False)
    joins: list[RequestId] = field(init=False, factory=list)
    fresh: list[RequestId] = field(init=False, factory=list)  # new candidates
    parks: list[RequestId] = field(init=False, factory=list)
    why: str = field(init=False, default="")

    def decide(self) -> Composition:
        """The lane's next change, with the memory it rests on."""
        view, memory = self.view, self.memory
        self.room = LaneRoom.of(view, self.settings.batch_share)
        old = tuple(m for m in memory.old if any(m in rank.batch for rank in self.room.ranks))
        candidates = self.room.candidates
        turning = memory.turning and bool(candidates)
        if len(old) == self.room.members and not turning:
            old = ()  # the old batch is all there is: it is the running one
        chosen = None if not candidates else view.now if memory.chosen is None else memory.chosen
        if (old, chosen, turning) != (memory.old, memory.chosen, memory.turning):
            self.memory = evolve(memory, old=old, chosen=chosen, turning=turning)
        if self._all_fits():
            self._mix()
        else:
            self._align()
        if self.room.idle and not self.joins:
            self._anything()
        return self._composition()

    # -- 1. mix

    def _all_fits(self) -> bool:
        """Whether this lane's share of all that is ready fits in the room of two batches, and in its seats."""
        room, pool = self.room, self.view.pool
        count = min(len(pool), room.share)
        if count + len(room.candidates) > room.seats:
            return False
        limit = self.settings.mix_share * room.capacity - room.used
        if count:
            limit -= (pool.class_blocks(0, 0) + len(pool)) * count / len(pool)
        if limit < 0:
            return False
        blocks = self.view.layout.blocks
        return sum(blocks(self.view.entry(request).context_length) for request in room.candidates) <= limit

    def _mix(self) -> None:
        self._join(self.room.candidates)
        pooled = islice(filter(self.room.usable, self.view.pool.by_order()), min(len(self.view.pool), self.room.share))
        joined = self._join(pooled)
        self._draw(joined)
        if len(joined) == len(self.view.pool):  # nobody is passed over
            self.joins += self.view.expected[: max(0, self.room.seats)]
        if self.memory.old or self.memory.turning:
            self.memory = evolve(self.memory, old=(), turning=False)
        self.why = "all that is ready fits"

    # -- 2. refill, 3. switch, 4. choose

    def _align(self) -> None:
        memory, room, settings, now = self.memory, self.room, self.settings, self.view.now
        due = guard.overdue(self.clocks, now, settings.guard_s)
        if not room.idle and not memory.turning:
            due = self._refill(due)
        rested = memory.since is None or now >= memory.since + settings.dwell_s
        patience = self._later(memory.chosen, settings.patience_s)
        impatient = patience is not None and now >= patience
        if room.idle or memory.turning or (rested and (room.fullness <= settings.drain_share or impatient)):
            self._switch(due, impatient)
        elif not room.candidates and (due is not None or len(self.view.pool) - len(self.joins) >= settings.k_min):
            self.fresh = self._form(due)
            self.memory = evolve(memory, chosen=now)
            around = "" if due is None else ", around the longest waiting of an overdue class"
            self.why = self.why or f"a next batch of {len(self.fresh)} was chosen{around}"

    def _refill(self, due: int | None) -> int | None:
        """Near requests into the running batch; returns the overdue class unless its longest-waiting joined."""
        room, pool = self.room, self.view.pool
        if room.seats <= 0 or room.used >= room.batch_blocks or not len(pool):
            return due
        median = room.median(frozenset(self.memory.old))
        if median is None:
            return due
        reach = self.settings.reach(median)
        first = self._overdue_nearby(due, median, reach)
        near = takewhile(lambda r: abs(pool.length(r) - median) <= reach, pool.nearest(median, median))
        others = (r for r in near if r != first and room.usable(r))
        joined = 0
        for request in islice(chain([first] if first else [], others), room.share):
            if room.used + pool.blocks(request) + 1 > room.batch_blocks or not room.take(request):
                break
            joined += 1
            self.joins.append(request)
        if joined:
            self.why = f"within {reach:,} tokens of the batch's median of {median:,}"
        if first and first in self.joins:
            self._draw([first])
            return guard.overdue(self.clocks, self.view.now, self.settings.guard_s)
        return due

    def _overdue_nearby(self, due: int | None, median: int, reach: int) -> RequestId | None:
        """The longest-waiting request of the overdue class, if it is near; looked for only when it may be."""
        if due is None or self.room.candidates:
            return None
        low, high = class_span(ANCHOR_LEVEL, due)
        if low > median + reach or (high is not None and high <= median - reach):
            return None
        waiting = guard.longest_waiting(self.view.pool, due, self.room.usable)
        return waiting if waiting and abs(self.view.pool.length(waiting) - median) <= reach else None

    def _switch(self, due: int | None, impatient: bool) -> None:
        """The candidates (or, without any, a batch formed now) join; the rest of them once there is room."""
        room, memory = self.room, self.memory
        batch = room.candidates or self._form(due)
        if not batch:
            return
        if not memory.turning:
            members = tuple(member for rank in room.ranks for member in rank.batch)
            self._make_room(batch, impatient)
            memory = evolve(memory, old=members, since=self.view.now)
        joined = set(self._join(batch, try_all=room.idle))
        left = [request for request in batch if request not in joined]
        if not room.candidates and left:
            self.fresh = left
            memory = evolve(memory, chosen=self.view.now)
        self.memory = evolve(memory, turning=bool(left))
        self.why = "the next batch's turn"

    def _make_room(self, batch: list[RequestId], impatient: bool) -> None:
        """The longest members leave while the batch lacks blocks and the host can take them, or, late, lacks seats."""
        room, view = self.room, self.view
        short = sum(map(room.need, batch)) - sum(max(0, free) for free in room.free.values())
        seats = len(batch) - room.seats if impatient else 0
        host = view.free(HOST) if HOST in view.cluster.tiers else 0
        for rank in room.ranks:
            for member in rank.batch.longest_first():
                blocks = view.layout.blocks(rank.batch.context_length(member))
                fits = blocks <= host and view.route(rank.tier, HOST) is not None
                if not (seats > 0 or (short > 0 and fits)):
                    break
                self.parks.append(member)
                seats -= 1
                if fits:
                    short, host = short - blocks, host - blocks

    def _form(self, due: int | None) -> list[RequestId]:
        """A batch out of the pool, of requests this lane can get; around the longest-waiting one if a class is due."""
        room, pool, view = self.room, self.view.pool, self.view
        anchor = guard.longest_waiting(pool, due, room.usable) if due is not None else None
        most = min(room.seats_in_all, room.share)
        drawn = guard.drawn(self.clocks)
        formed = self.formation.form(view, pool, room.batch_blocks, most, anchor=anchor, drawn=drawn)
        taken = frozenset(self.joins)
        batch = [request for request in formed if request not in taken and room.usable(request)]
        if not batch:  # all of it is out of this lane's reach: what lies in its own devices is not
            batch = [request for request in view.resident if request not in taken][:most]
        self._draw(batch)
        return batch

    # -- all of them

    def _join(self, requests: Iterable[RequestId], *, try_all: bool = True) -> list[RequestId]:
        """Those that find a seat and room join; the first that does not ends it unless all are to be tried."""
        joined = []
        for request in requests:
            if self.room.take(request):
                joined.append(request)
            elif not try_all or self.room.seats <= 0:
                break
        self.joins += joined
        return joined

    def _anything(self) -> None:
        """The lane would idle: what lies in its devices joins, and then the shortest that fit."""
        room, pool = self.room, self.view.pool
        claimed = frozenset(self.fresh)
        for request in self.view.resident:
            if request not in claimed and room.fullness < 1 and room.take(request):
                self.joins.append(request)
        claimed = claimed.union(self.joins)
        for request in pool.by_length():
            if room.fullness >= 1:
                break
            if request in claimed or not room.usable(request):
                continue
            if not room.take(request):
                break
            self.joins.append(request)
        self.why = "the lane would idle"

    def _draw(self, requests: Iterable[RequestId]) -> None:
        guard.reset(self.clocks, map(self.view.pool.length, requests), self.view.now)

    def _composition(self) -> Composition:
        memory: PlainData = {"clocks": dict(self.clocks), "lanes": {self.view.lane.id: self.memory.plain()}}
        return Composition(
            joins=self.joins,
            candidates=self.fresh,
            parks=self.parks,
            unclaims=self.room.lost,
            wake_at=self._wake_at(),
            why=self.why,
            memory=memory,
        )

    def _wake_at(self) -> float | None:
        """The first moment at which something is due that no event announces."""
        memory, settings = self.memory, self.settings
        times = [guard.next_due(self.clocks, settings.guard_s)]
        if self.fresh or self.room.candidates:
            times.append(self._later(memory.chosen, settings.patience_s))
        if self.fresh or self.room.candidates or len(self.view.pool):
            times.append(self._later(memory.since, settings.dwell_s))
        return min((time for time in times if time is not None and time > self.view.now), default=None)

    @staticmethod
    def _later(start: float | None, seconds: float | None) -> float | None:
        return None if start is None or seconds is None else start + seconds
