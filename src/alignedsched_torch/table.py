"""The batch table of a lane: one row a member, changed by deltas and never rebuilt.

The device has each row's context length, pages, last token and way of sampling (``columns``); a step reads and advances
them there. The host mirrors lengths and pages held in numpy. While the same rows decode together nothing about them
changes but that all grow by one token a step, so a ``Batch`` holds what its rows have in common, worked out once, and a
step costs the host a handful of array operations whatever the batch size. Whoever joins and leaves between two steps
makes one new batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from attrs import define

from alignedsched.errors import ExecutorError
from alignedsched.request import RequestId

from .columns import Delta, DeviceColumns
from .history import NEVER, History
from .job import Job
from .memory import KVPool

Column = np.ndarray[Any, np.dtype[np.int64]]


@define(eq=False)
class Batch:
    """Rows that decode together, longest first: all grow by one token a step, so that order never changes."""

    version: int
    rows: Column  # slots
    lengths: Column  # that its first step reads
    phase: Column  # a row's token goes to a page's first place in steps with ``steps % page size == phase``
    lasts: Column  # the step that makes a row's last token, by its limit
    soonest: int  # the least of these
    listens: list[int]  # rows of which somebody wants each token at once
    draws: bool  # some row's tokens are drawn, not the likeliest
    steps: int = 0  # launched


class BatchTable:
    """Rows of a lane's members on the host; ``columns`` is the device's half. Tokens are below ``vocab``."""

    def __init__(self, pool: KVPool, members: int, pages: int, ahead: int, vocab: int) -> None:
        self.members = members
        slots = 2 * members + 64 * (ahead + 1)  # members, those that just left, and last chunks under way
        self._pool = pool
        self._size, self._width = pool.shape.page_size, pages
        self.columns = DeviceColumns(pool.device.torch_device, slots, pages)
        self.ahead = ahead
        self.jobs: list[Job | None] = [None] * slots
        self._names: list[RequestId] = [""] * slots
        self._free = list(range(slots - 1, -1, -1))
        self._history = History(slots)
        self._length: Column = np.zeros(slots, dtype=np.int64)  # that the next step reads, less its batch's steps
        self._last_step: Column = np.full(slots, NEVER)
        self._held: Column = np.zeros(slots, dtype=np.int64)  # pages written to the device's column
        self._listens = np.zeros(slots, dtype=bool)
        self.draws = np.zeros(slots, dtype=bool)
        self._in_batch = np.zeros(slots, dtype=bool)
        self._stopping = np.zeros(vocab, dtype=np.int32)  # rows whose request a token ends
        self._joining: list[int] = []
        self._changed = False  # the batch is not the one that the next step needs
        self._pageless: list[int] = []  # rows of the batch that came since the last step
        self._delta = Delta()
        self.batch = self._of_rows(0, np.empty(0, dtype=np.int64))

    # -- rows in and out

    def seat(self, job: Job, length: int, token: int) -> int:
        """A row for a request; ``token`` is its last one, or -1 where a chunk on the device makes it."""
        if not self._free:
            raise ExecutorError(f"request {job.id!r}: no row is free")
        slot = self._free.pop()
        job.slot = slot
        self.jobs[slot] = job
        self._names[slot] = job.id
        self._length[slot] = length
        self._held[slot] = 0
        self._listens[slot] = job.heard is not None
        self.draws[slot] = job.sampling.temperature > 0
        self._count_stops(job, 1)
        self._delta.fresh[slot] = (length, token, job.sampling)
        return slot

    def unseat(self, slot: int) -> Job:
        """A row that is in no batch is free; what it made goes to its request."""
        job = self.collect(slot)
        job.slot = -1
        self.jobs[slot] = None
        self._history.end(slot)
        self._count_stops(job, -1)
        self._free.append(slot)
        return job

    def _count_stops(self, job: Job, change: int) -> None:
        for token in job.stops:
            if 0 <= token < len(self._stopping):
                self._stopping[token] += change

    def join(self, slot: int, first: int, last: int) -> None:
        """From step ``first``, the next one, a row is in the batch; ``last`` makes its last token."""
        self._last_step[slot] = last
        self._history.begin(slot, first)
        self._joining.append(slot)
        self._changed = True

    def leave(self, slot: int) -> None:
        """A row is in the batch no more, if it was."""
        if self._in_batch[slot]:
            self._in_batch[slot] = False
            self._length[slot] += self.batch.steps
            self._changed = True
        elif slot in self._joining:
            self._joining.remove(slot)

    def expire(self, step: int) -> None:
        """Rows whose limit is reached before a step are in it no more."""
        batch = self.batch
        if batch.soonest < step:
            over = batch.rows[batch.lasts < step]
            for slot in over[self._in_batch[over]].tolist():  # the others' slots may be somebody else's by now
                self.leave(slot)

    def form(self) -> Batch:
        """The batch as it is after all that joined and left. O(members), in numpy, if anybody did."""
        if self._changed:
            self.reform()
        return self.batch

    def reform(self) -> None:
        """The same, made anew whoever is in it."""
        stay = self.batch.rows[self._in_batch[self.batch.rows]]
        self._length[stay] += self.batch.steps
        rows = np.concatenate((stay, np.array(self._joining, dtype=np.int64)))
        rows = rows[(rows - self._length[rows] * len(self.jobs)).argsort()]  # longest first, equals by their slots
        self._in_batch[self._joining] = True
        self._pageless += self._joining
        self._joining.clear()
        self._changed = False
        self.batch = self._of_rows(self.batch.version + 1, rows)

    def _of_rows(self, version: int, rows: Column) -> Batch:
        lengths, lasts = self._length[rows], self._last_step[rows]
        return Batch(
            version, rows, lengths, (1 - lengths) % self._size, lasts, int(lasts.min(initial=NEVER)),
            self._listens[rows].nonzero()[0].tolist(), bool(self.draws[rows].any()),
        )  # fmt: skip

    def clear(self) -> None:
        """All rows are free, also those kept for chunks that will not end; nothing has to be told to the device."""
        for slot, job in enumerate(self.jobs):
            if job is not None:
                self.unseat(slot)
        self._in_batch[:] = False
        self._joining.clear()
        self._pageless.clear()
        self._delta = Delta()
        self.reform()

    # -- one step

    def length(self, slot: int) -> int:
        """Tokens of a row's context that the next step reads."""
        return int(self._length[slot]) + (self.batch.steps if self._in_batch[slot] else 0)

    def grow(self) -> None:
        """Every row gets the page its next token goes to. A few array operations, and O(1) Python for each new page."""
        for slot in self._pageless:
            self._bring(slot)
        self._pageless.clear()
        batch = self.batch
        at = (batch.phase == batch.steps % self._size).nonzero()[0]
        if not len(at):
            return
        slots = batch.rows[at]
        slots = slots[self._held[slots] * self._size < batch.lengths[at] + batch.steps]  # it may have come with more
        names = self._names
        pages = self._pool.hold_next([names[slot] for slot in slots.tolist()])
        self._delta.places.append(slots * self._width + self._held[slots])
        self._delta.pages.append(pages)
        self._held[slots] += 1

    def _bring(self, slot: int) -> None:
        """A row has just come, with pages that the device does not know of."""
        name = self._names[slot]
        self._pool.hold(name, self.length(slot))
        pages = list(self._pool.pages(name))
        self._delta.places.append(np.arange(len(pages)) + slot * self._width)
        self._delta.pages.append(pages)
        self._held[slot] = len(pages)

    def take_delta(self) -> Callable[[], None]:
        """The changes since the last step, as work for the device."""
        delta, self._delta = self._delta, Delta()
        columns = self.columns
        return lambda: columns.apply(delta) if delta else None

    # -- what steps made

    def record(self, step: int, batch: Batch, tokens: Column) -> None:
        """Tokens of a step that has ended."""
        self._history.write(step, batch.rows, tokens)

    def ending(self, step: int, batch: Batch, tokens: Column) -> list[Job]:
        """Requests that end with a step, by a stop token or their limit.

        One look-up for all, and O(1) Python for each row whose token ends anybody's.
        """
        maybe = self._stopping.take(tokens, mode="clip")
        if step >= batch.soonest:
            maybe |= batch.lasts <= step
        found = []
        for at in maybe.nonzero()[0].tolist():
            job = self.jobs[batch.rows[at]]
            if job is None or job.ended:
                continue  # it ended before: what the row still makes does not count
            if batch.lasts[at] <= step or int(tokens[at]) in job.stops:
                found.append(job)
        return found

    def end(self, slot: int) -> None:
        """A row's request has ended: nothing it still makes counts, and no step needs it."""
        self.collect(slot).ended = True
        self._history.end(slot)
        self.leave(slot)

    def collect(self, slot: int) -> Job:
        """What a row made goes to its request."""
        job = self._job(slot)
        job.produced += self._history.take(slot)
        return job

    def _job(self, slot: int) -> Job:
        job = self.jobs[slot]
        assert job is not None
        return job

    def undo(self, batches: list[Batch]) -> None:
        """Launched steps, of these batches, did not happen: their rows are as long as before."""
        self.reform()
        for batch in batches:
            self._length[batch.rows] -= 1
