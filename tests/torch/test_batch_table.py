"""The batch table against the same thing done plainly: row by row, everything worked out anew in every step."""

from __future__ import annotations

import numpy as np
import torch
from attrs import define, field
from hypothesis import given
from hypothesis import strategies as st

from alignedsched.request import Request
from alignedsched_torch.devices import CpuDevice
from alignedsched_torch.job import Job
from alignedsched_torch.memory import KVPool, PageShape
from alignedsched_torch.sampling import Sampling
from alignedsched_torch.table import Batch, BatchTable

PAGE, VOCAB, MEMBERS = 4, 8, 6
ACTIONS = st.lists(
    st.tuples(st.sampled_from(["step", "step", "join", "leave", "end"]), st.integers(0, 999)), min_size=20
)


@define(eq=False)
class Row:
    """One row, plainly."""

    slot: int
    length: int
    last: int  # the step of its last token
    token: int  # its first one
    pages: int  # that it came with
    made: list[int] = field(factory=list)


class Plainly:
    """A table and the rows that it should have."""

    def __init__(self) -> None:
        self.pool = KVPool("d0", CpuDevice("d0"), PageShape(1, 1, 1, PAGE, torch.float32), 2000)
        self.table = BatchTable(self.pool, MEMBERS, 300, 1, VOCAB)
        self.rows: dict[str, Row] = {}
        self.jobs: dict[str, Job] = {}
        self.step = 0

    def join(self, number: int) -> None:
        """A request with a length, a limit, stop tokens and a way of sampling that follow from a number."""
        if len(self.rows) == MEMBERS:
            return
        length, limit = 1 + number % 23, 1 + number % 17
        stops = frozenset([(), (1,), (1, 2), (VOCAB + 3, -1)][number % 4])
        name, way = f"r{len(self.jobs)}", Sampling(0.5 * (number % 2), top_p=0.9, top_k=number % 5, seed=number)
        job = Job(Request(name, length, limit), np.zeros(length, dtype=np.int64), limit, way, stops)
        self.pool.hold(name, length + number % 7)  # some have come with more pages than they need
        token = number % 5 - 1
        slot = self.table.seat(job, length, token)
        self.table.columns.last[slot] = 77  # as a chunk has written it
        self.table.join(slot, self.step, self.step + limit - 1)
        self.jobs[name], self.rows[name] = (
            job,
            Row(slot, length, self.step + limit - 1, token, len(self.pool.pages(name))),
        )

    def leave(self, number: int, *, end: bool) -> None:
        if not self.rows:
            return
        name = sorted(self.rows)[number % len(self.rows)]
        row = self.rows.pop(name)
        if end:
            self.table.end(row.slot)
        else:
            self.table.leave(row.slot)
        self._gone(name, row)

    def _gone(self, name: str, row: Row) -> None:
        job = self.table.unseat(row.slot)
        assert job is self.jobs[name]
        assert job.produced == row.made
        self.pool.forget(name)

    def run(self, number: int) -> None:
        """A step, checked against what every row should be in it."""
        table, columns = self.table, self.table.columns
        table.expire(self.step)
        batch = table.form()
        table.grow()
        table.take_delta()()
        expected = sorted(self.rows.values(), key=lambda row: (-row.length, row.slot))
        assert batch.rows.tolist() == [row.slot for row in expected]
        assert (batch.lengths + batch.steps).tolist() == [row.length for row in expected]
        assert batch.draws == any(self.jobs[name].sampling.temperature > 0 for name in self.rows)
        for name, row in self.rows.items():
            way, pages = self.jobs[name].sampling, self.pool.pages(name)
            assert table.length(row.slot) == row.length == int(columns.length[row.slot])
            assert len(pages) == max(row.pages, -(-row.length // PAGE))
            assert columns.pages[row.slot, : len(pages)].tolist() == pages
            if not row.made:
                assert int(columns.last[row.slot]) == (row.token if row.token >= 0 else 77)
            told = [
                float(column[row.slot]) for column in (columns.temperature, columns.top_p, columns.top_k, columns.seed)
            ]
            assert told == [way.temperature, way.top_p, way.top_k, way.seed]
        columns.length[torch.from_numpy(batch.rows)] += 1  # what the device does
        batch.steps += 1
        self._ended(batch, np.random.default_rng(number).integers(0, VOCAB, len(batch.rows)))

    def _ended(self, batch: Batch, tokens: np.ndarray[tuple[int], np.dtype[np.int64]]) -> None:
        made = dict(zip(batch.rows.tolist(), tokens.tolist(), strict=True))
        self.table.record(self.step, batch, tokens)
        for row in self.rows.values():
            row.made.append(made[row.slot])
            row.length += 1
        over = {name for name, row in self.rows.items()
                if row.last <= self.step or row.made[-1] in self.jobs[name].stops}  # fmt: skip
        ending = self.table.ending(self.step, batch, tokens)
        assert {job.id for job in ending} == over
        assert len(ending) == len(over)
        for job in ending:
            self.table.end(job.slot)
            self._gone(job.id, self.rows.pop(job.id))
        self.step += 1


@given(ACTIONS)
def test_a_table_is_what_its_rows_say_one_by_one(actions: list[tuple[str, int]]) -> None:
    plainly = Plainly()
    for action, number in actions:
        if action == "step":
            plainly.run(number)
        elif action == "join":
            plainly.join(number)
        else:
            plainly.leave(number, end=action == "end")
    for _ in range(3 * PAGE):
        plainly.run(5)
    table = plainly.table
    table.clear()
    assert [name for name, row in plainly.rows.items() if plainly.jobs[name].produced != row.made] == []
    assert len(table.form().rows) == 0
    assert not any(table.jobs)
    assert int(table._stopping.sum()) == 0


def test_steps_that_did_not_happen_leave_lengths_as_they_were() -> None:
    plainly = Plainly()
    for number in (3, 8):
        plainly.join(number)
    table = plainly.table
    first = table.form()
    table.grow()
    first.steps += 1
    table.leave(plainly.rows["r0"].slot)
    second = table.form()
    second.steps += 1
    table.undo([first, second])
    assert [table.length(row.slot) for row in plainly.rows.values()] == [4, 9]
