"""Continuous batching in the obvious way, to hold the scheduler against: first come, first served, counts of blocks.

Written from ``docs/design.md`` and ``docs/policies.md`` alone, for one device that prefills and decodes, one step at a
time: no tiers, no copies, no run-ahead, no horizon, no closed forms. Every step walks over everything.
(``benchmarks/naive.py`` is another thing: what deciding costs in an engine of vLLM's shape, with vLLM's own rules.)

The rules. Members decode one token a step and hold the blocks of what they read. When the next step does not fit, the
newest request makes room and starts over with what it has, except that a lone member never makes room for itself; what
has outgrown the device fails. Then prefilled requests join in order of arrival, while there is room for what they read.
Then begun prefills go on, and new ones begin, in order of arrival, within the step's tokens (a member takes one) and
the seats. A new one takes room for its whole prefill and one token more; the first that does not fit holds back those
behind it; and nobody begins while a prefilled one waits, or in a step for which somebody made room.
"""

from __future__ import annotations

from collections.abc import Iterable

from attrs import define, field


@define(eq=False)
class Row:
    """One request. ``stored`` tokens of KV exist; ``to_make`` tokens in all are made before it ends by itself."""

    id: str
    order: int
    prompt: int
    to_make: int
    made: int = 0
    stored: int = 0

    @property
    def target(self) -> int:
        """Tokens to prefill: the prompt, and what was made before it had to start over."""
        return self.prompt + self.made


@define
class Done:
    """What one step was: who decoded, which chunks ran, who ended by it, who had made room for it."""

    members: list[str] = field(factory=list)
    chunks: list[tuple[str, int, int]] = field(factory=list)
    finished: list[str] = field(factory=list)
    preempted: list[str] = field(factory=list)
    failed: list[str] = field(factory=list)


class NaiveScheduler:
    """Scheduler and device in one."""

    def __init__(self, blocks: int, block_size: int, seats: int, tokens: int) -> None:
        self._blocks, self._block_size, self._seats, self._tokens = blocks, block_size, seats, tokens
        self.waiting: list[Row] = []
        self.prefilling: list[Row] = []
        self.ready: list[Row] = []
        self.members: list[Row] = []

    def arrive(self, row: Row) -> None:
        """A request comes."""
        self.waiting.append(row)

    def cancel(self, ids: Iterable[str]) -> None:
        """Requests are not wanted any more, wherever they are."""
        gone = set(ids)
        for place in (self.waiting, self.prefilling, self.ready, self.members):
            place[:] = [row for row in place if row.id not in gone]

    def busy(self) -> bool:
        """Whether anything is left to do."""
        return bool(self.waiting or self.prefilling or self.ready or self.members)

    def step(self) -> Done:
        """Decide on the next step and carry it out."""
        done = Done()
        self._make_room(done)
        self._join()
        done.members = [row.id for row in self.members]
        chunks = self._prefill(begin=not done.preempted)
        for row in self.members:
            row.stored += 1
            row.made += 1
        for row, tokens in chunks:
            done.chunks.append((row.id, row.stored, row.stored + tokens))
            row.stored += tokens
            if row.stored == row.target:
                row.made += 1
                self.prefilling.remove(row)
                self.ready.append(row)
        done.finished = [row.id for row in [*self.members, *self.ready] if row.made == row.to_make]
        self.members = [row for row in self.members if row.made < row.to_make]
        self.ready = [row for row in self.ready if row.made < row.to_make]
        return done

    def _held(self, row: Row) -> int:
        """Blocks of a request in the next step: of what a member reads, of what a prefilled one has, of all a prefill
        will need."""
        tokens = row.target + 1 if row in self.prefilling else row.stored + (row in self.members)
        return -(-tokens // self._block_size)

    def _free(self) -> int:
        return self._blocks - sum(map(self._held, [*self.members, *self.ready, *self.prefilling]))

    def _make_room(self, done: Done) -> None:
        while self._free() < 0:
            lone = len(self.members) == 1
            holders = [*self.prefilling, *self.ready, *([] if lone else self.members)]
            if not holders:
                done.failed.append(self.members.pop().id)
                return
            victim = max(holders, key=lambda row: row.order)
            for place in (self.prefilling, self.ready, self.members):
                place[:] = [row for row in place if row is not victim]
            victim.stored = 0
            self.waiting.append(victim)
            done.preempted.append(victim.id)

    def _join(self) -> None:
        for row in sorted(self.ready, key=lambda row: row.order):
            self.ready.remove(row)
            self.members.append(row)
            if len(self.members) > self._seats or self._free() < 0:
                self.members.remove(row)
                self.ready.append(row)
                return

    def _prefill(self, begin: bool) -> list[tuple[Row, int]]:
        """Chunks of the next step."""
        left, chunks = self._tokens - len(self.members), []
        for row in self.prefilling:
            tokens = min(left, row.target - row.stored)
            if tokens > 0:
                chunks.append((row, tokens))
                left -= tokens
        for row in sorted(self.waiting, key=lambda row: row.order) if begin and not self.ready else ():
            seats = self._seats - len(self.members) - len(self.prefilling)
            self.prefilling.append(row)
            if left <= 0 or seats <= 0 or self._free() < 0:
                self.prefilling.remove(row)
                break
            self.waiting.remove(row)
            chunks.append((row, min(left, row.target)))
            left -= chunks[-1][1]
        return chunks
