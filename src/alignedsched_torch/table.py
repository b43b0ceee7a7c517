"""The batch table of a lane: one row a member, kept on the device, changed by deltas and never rebuilt.

The device has each row's context length, pages, last token and way of sampling; a step reads and advances them there.
The host mirrors lengths and pages held in numpy and works on whole columns, so a step costs the host a handful of
array operations whatever the batch size. Rows stand in the order of their lengths, which never changes while they
decode together: all grow by one a step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from attrs import define, field

from alignedsched.errors import ExecutorError

from .job import Job
from .memory import KVPool
from .sampling import Sampling

Column = np.ndarray[Any, np.dtype[np.int64]]
NEVER = 1 << 62


@define(eq=False)
class Delta:
    """Changes to the device's columns since the last step was launched."""

    fresh: dict[int, tuple[int, int, Sampling]] = field(
        factory=dict
    )  # slot -> length, last token (-1: there), sampling
    pages: dict[int, int] = field(factory=dict)  # place in the flattened column of pages -> page

    def __bool__(self) -> bool:
        return bool(self.fresh or self.pages)


class DeviceColumns:
    """The device's half of the table. Touched only by work on the compute stream.

    There is one slot more than the table has, ``spare``: its length stays 0; rows that pad a step to a fixed size name
    it.
    """

    def __init__(self, device: torch.device, slots: int, pages: int) -> None:
        def column(dtype: torch.dtype, *shape: int) -> torch.Tensor:
            return torch.zeros((slots + 1, *shape), dtype=dtype, device=device)

        self.device = device
        self.spare = slots
        self.length = column(torch.int64)
        self.last = column(torch.int64)
        self.pages = column(torch.int64, pages)
        self.temperature = column(torch.float64)
        self.top_p = column(torch.float64)
        self.top_k = column(torch.int64)
        self.seed = column(torch.int64)

    def apply(self, delta: Delta) -> None:
        """Write a delta into the columns: one transfer for pages, two for fresh rows."""
        if delta.fresh:
            fresh, ways = delta.fresh, [sampling for *_, sampling in delta.fresh.values()]
            slots, length, token, top_k, seed = self.send(
                np.array(
                    [
                        (slot, length, token, way.top_k, way.seed)
                        for (slot, (length, token, _)), way in zip(fresh.items(), ways, strict=True)
                    ],
                    dtype=np.int64,
                ).T
            )
            temperature, top_p = self.send(np.array([(way.temperature, way.top_p) for way in ways]).T)
            self.length[slots] = length
            self.last[slots] = torch.where(token >= 0, token, self.last[slots])
            self.temperature[slots], self.top_p[slots] = temperature, top_p
            self.top_k[slots], self.seed[slots] = top_k, seed
        if delta.pages:
            places, pages = self.send(np.array((tuple(delta.pages), tuple(delta.pages.values())), dtype=np.int64))
            self.pages.view(-1)[places] = pages

    def send(self, values: np.ndarray[Any, Any]) -> torch.Tensor:
        """Numbers of the host on the device, without waiting; the caller writes over them no more."""
        host = torch.from_numpy(np.ascontiguousarray(values))
        if self.device.type == "cuda":
            host = host.pin_memory()  # torch keeps it until the copy has run
        return host.to(self.device, non_blocking=True)


class BatchTable:
    """Rows of a lane's members on the host; ``columns`` is the device's half."""

    def __init__(self, pool: KVPool, members: int, pages: int, ahead: int, stops: frozenset[int] = frozenset()) -> None:
        self.members = members
        slots = 2 * members + 64 * (ahead + 1)  # members, those that just left, and last chunks under way
        self._pool = pool
        self._size, self._width = pool.shape.page_size, pages
        self.columns = DeviceColumns(pool.device.torch_device, slots, pages)
        self.delta = Delta()
        self.jobs: list[Job | None] = [None] * slots
        self.length: Column = np.zeros(slots, dtype=np.int64)  # that the next step launched reads
        self.last_step: Column = np.full(slots, NEVER)  # the step that makes a row's last token, by its limit
        self.count: Column = np.zeros(slots, dtype=np.int64)  # tokens in ``history``
        self.history: Column = np.zeros((slots, 64), dtype=np.int64)
        self._common = stops
        self._common_stops = np.array(sorted(stops), dtype=np.int64)
        self._stops_commonly = np.zeros(slots, dtype=bool)  # the request ends with the model's own stop tokens
        self._stops_specially = np.zeros(slots, dtype=bool)  # with others
        self.counts = np.zeros(slots, dtype=bool)  # what it makes still counts
        self.draws = np.zeros(slots, dtype=bool)  # its tokens are drawn, not the likeliest
        self.listens = np.zeros(slots, dtype=bool)  # somebody wants each token at once
        self._held: Column = np.zeros(slots, dtype=np.int64)  # pages written to the device's column
        self._free = list(range(slots - 1, -1, -1))
        self.rows: Column = np.empty(0, dtype=np.int64)  # members, longest first
        self._next_limit = NEVER
        self.version = 0  # of ``rows``

    # -- rows in and out

    def seat(self, job: Job, length: int, token: int) -> int:
        """A row for a request; ``token`` is its last one, or -1 where a chunk on the device makes it."""
        if not self._free:
            raise ExecutorError(f"request {job.id!r}: no row is free")
        slot = self._free.pop()
        job.slot = slot
        self.jobs[slot] = job
        self.length[slot] = length
        self.last_step[slot] = NEVER
        self.count[slot] = self._held[slot] = 0
        self.counts[slot], self.listens[slot] = True, job.heard is not None
        self.draws[slot] = job.sampling.temperature > 0
        self._stops_commonly[slot] = job.stops == self._common
        self._stops_specially[slot] = bool(job.stops) and job.stops != self._common
        self.delta.fresh[slot] = (length, token, job.sampling)
        return slot

    def change(self, joins: list[tuple[int, int]], leaves: list[int]) -> None:
        """Slots with the step of their last token join the batch, slots leave it. O(members) if anything changes."""
        if not joins and not leaves:
            return
        for slot, last_step in joins:
            self.last_step[slot] = last_step
        stay = self.rows[~np.isin(self.rows, leaves)] if leaves else self.rows
        rows = np.concatenate((stay, [slot for slot, _ in joins])).astype(np.int64) if joins else stay
        self.rows = rows[np.lexsort((rows, -self.length[rows]))]
        self._next_limit = int(self.last_step[self.rows].min()) if len(self.rows) else NEVER
        self.version += 1

    def expire(self, step: int) -> None:
        """Rows whose limit is reached before a step are in it no more."""
        if step > self._next_limit:
            self.change([], [int(slot) for slot in self.rows[self.last_step[self.rows] < step]])

    def unseat(self, slot: int) -> Job:
        """A row is free; what it made goes to its request."""
        job = self.collect(slot)
        job.slot = -1
        self.jobs[slot] = None
        self.counts[slot] = False
        self._free.append(slot)
        return job

    def end(self, slot: int) -> None:
        """A row's request has ended: nothing it still makes counts."""
        self.collect(slot).ended = True
        self.counts[slot] = False

    def collect(self, slot: int) -> Job:
        """What a row made goes to its request."""
        job = self._job(slot)
        job.produced += self.history[slot, : self.count[slot]].tolist()
        self.count[slot] = 0
        return job

    def _job(self, slot: int) -> Job:
        job = self.jobs[slot]
        assert job is not None
        return job

    # -- one step

    def grow(self) -> None:
        """Every row gets the page its next token goes to. O(rows) in numpy, and O(1) Python for each new page."""
        rows = self.rows
        short = rows[self.length[rows] > self._held[rows] * self._size]
        if not len(short):
            return
        held = self._held[short]
        for slot in short[held == 0].tolist():  # it has just come, with pages that the device does not know of
            job = self._job(slot)
            self._pool.hold(job.id, int(self.length[slot]))
            pages = self._pool.pages(job.id)
            self.delta.pages |= enumerate(pages, slot * self._width)
            self._held[slot] = len(pages)
        grown = short[held > 0]
        places = grown * self._width + held[held > 0]
        pages = self._pool.hold_next([self._job(slot).id for slot in grown.tolist()])
        self.delta.pages.update(zip(places.tolist(), pages, strict=True))
        self._held[grown] += 1

    def advance(self) -> None:
        """A step has been launched: every row is one token longer."""
        self.length[self.rows] += 1

    def record(self, rows: Column, tokens: Column) -> None:
        """Tokens of a step that has ended, for rows that still count."""
        at = self.count[rows]
        if len(at) and int(at.max()) >= self.history.shape[1]:
            self.history = np.concatenate((self.history, np.zeros_like(self.history)), axis=1)
        self.history[rows, at] = tokens
        self.count[rows] = at + 1

    def stops(self, rows: Column, tokens: Column) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Which of the tokens end their row's request. O(rows) in numpy but for rows with stop tokens of their own."""
        over = np.isin(tokens, self._common_stops) & self._stops_commonly[rows]
        for at in np.flatnonzero(self._stops_specially[rows]).tolist():
            job = self.jobs[int(rows[at])]
            over[at] = job is not None and int(tokens[at]) in job.stops
        return over

    def free_stray(self) -> None:
        """Rows kept for chunks that will not end are free again."""
        for slot, job in enumerate(self.jobs):
            if job is not None:
                self.unseat(slot)

    def take_delta(self) -> Callable[[], None]:
        """The changes since the last step, as work for the device."""
        delta, self.delta = self.delta, Delta()
        columns = self.columns
        return lambda: columns.apply(delta) if delta else None
