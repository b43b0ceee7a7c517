"""One worker in this very process, turn by turn: what it tells when, and what it leaves alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from attrs import evolve

from alignedsched.cluster import HOST, Cluster, Device, KVLayout, Lane, Link, Role
from alignedsched.errors import ExecutorError
from alignedsched.events import CopyFailed, StepsDone, StepsFailed
from alignedsched.plan import Chunk, Copy, Drop, Join, Step
from alignedsched.request import Request
from alignedsched.story.codec import decode, encode
from alignedsched_torch.devices import CpuDevice
from alignedsched_torch.job import Job
from alignedsched_torch.memory import KVPool, PageShape
from alignedsched_torch.tiny import write_tiny
from alignedsched_torch.workers.build import build
from alignedsched_torch.workers.flights import Draft, Flights
from alignedsched_torch.workers.memory import Region, Ring
from alignedsched_torch.workers.messages import Lend, Move, Moved, News, Orders, Told, all_of, learn
from alignedsched_torch.workers.spec import WorkerSpec
from alignedsched_torch.workers.wire import Bell, ClosedError, Wire
from alignedsched_torch.workers.worker import GroupBrokenError, Worker

JOB = Job(Request("r", 5, 6), np.array([3, 1, 4, 1, 5]), 6)
PREFILL = Step("l0", 0, 1, chunks=(Chunk("r", 0, 5, last=True),))


class Line:
    """The driver's side of a worker with pages of 4 tokens, 8 of them, and a host pool."""

    def __init__(self, folder: Path, ranks: int = 1) -> None:
        write_tiny(folder, "llama", vocab=64, hidden=32, layers=2)
        cluster = Cluster(
            (Device("d0", Role.BOTH, 8),), (Lane("l0", ("d0",)),), 8, layout=KVLayout(4), max_positions=64
        )
        spec = WorkerSpec(str(folder), "float32", "cpu", cluster, "l0", 0, 1, 0, 7, ("", 0), "", ("d0", HOST))
        self.regions = {name: Region.make(name, 1 << 16) for name in spec.regions}
        rings = [Region.make("ring", 1 << 16) for _ in range(2)]
        self._all = [*self.regions.values(), *rings]
        self.orders, self._reports = Ring(rings[0]), Ring(rings[1])
        here, there = Wire.pair()
        self._ends = Wire(here), Wire(there)
        self.rank = build(spec, self.regions)
        self._reports_written = Ring(rings[1])
        alike = evolve(spec, ranks=ranks)
        self.worker = Worker(self._ends[1], self.rank, alike, Ring(rings[0]), self._reports_written, [])
        self._read = 0

    def close(self) -> None:
        for end in self._ends:
            end.close()
        for region in self._all:
            region.close()

    def turn(self, orders: Orders, through: int = 6) -> list[Told]:
        """One turn with these orders; what was told in it."""
        assert self.orders.write(encode(orders), 0)
        self.worker.turn(self.orders.head, through)
        told = []
        while self._read < self._reports_written.head:
            record = self._reports.read(self._read, self._reports_written.head)
            self._read = record.end
            told.append(decode(Told, record.payload))
        return told


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Line]:
    line = Line(tmp_path)
    yield line
    line.close()


def test_a_token_of_an_order_that_waits_while_the_lane_is_asked_is_told_later(line: Line) -> None:
    asked = line.turn(Orders(news=(all_of(JOB),), steps=(PREFILL,), hold=True))
    assert asked == [Told(held=True)]
    assert line.turn(Orders()) == [], "held: nothing is launched before the answer"
    assert line.turn(Orders(go=True)) == []
    (told,) = line.turn(Orders(), through=7)
    (event,) = told.events
    assert isinstance(event, StepsDone)
    assert (event.first, event.through, event.prefilled) == (7, 7, ("r",))
    assert [(made.request, made.known, len(made.tokens)) for made in told.made] == [("r", 0, 1)]
    assert told.held


def test_a_lane_that_has_told_is_not_asked_again(line: Line) -> None:
    line.turn(Orders(news=(all_of(JOB),), steps=(PREFILL,)))
    assert len(line.turn(Orders(), through=7)) == 1
    assert line.turn(Orders(hold=True), through=7) == []
    join = Step("l0", 1, 4, joins=(Join("r", 6),))
    assert line.turn(Orders(hold=True, steps=(join,), go=True), through=7) == []
    (told,) = line.turn(Orders(hold=True), through=8)
    assert [event.through for event in told.events] == [8]
    assert [(made.known, len(made.tokens)) for made in told.made] == [(1, 1)]


@pytest.mark.parametrize("heard", [False, True])
def test_tokens_that_somebody_waits_for_are_told_after_each_step(line: Line, heard: bool) -> None:
    """An order of four steps gives nothing to report before its last; a stream hears of each token all the same."""
    job = Job(JOB.request, JOB.prompt, 6, heard=(lambda token: None) if heard else None)
    line.turn(Orders(news=(all_of(job),), steps=(PREFILL,)))
    line.turn(Orders(), through=7)
    assert line.turn(Orders(steps=(Step("l0", 1, 4, joins=(Join("r", 6),)),), go=True), through=7) == []
    for step in (8, 9, 10):
        told = line.turn(Orders(), through=step)
        assert [(made.known, len(made.tokens)) for one in told for made in one.made] == [(step - 7, 1)] * heard
        assert not any(one.held or one.events for one in told)
    (last,) = line.turn(Orders(), through=11)
    assert last.held
    assert [(made.known, len(made.tokens)) for made in last.made] == [(4, 1) if heard else (1, 4)]


def test_a_step_that_fails_is_told_by_one_rank_and_breaks_a_group(line: Line, tmp_path: Path) -> None:
    wide = evolve(PREFILL, chunks=(Chunk("big", 0, 40, last=True),))
    news = (News("big", 0, (), tuple(range(40)), 6),)
    (told,) = line.turn(Orders(news=news, steps=(wide,)))
    (event,) = told.events
    assert isinstance(event, StepsFailed)
    assert "10 pages are wanted, 8 of 8 are free" in event.reason
    group = Line(tmp_path, ranks=2)
    with pytest.raises(GroupBrokenError, match="10 pages are wanted"):
        group.turn(Orders(news=news, steps=(wide,)))
    group.close()


def test_kv_goes_out_and_comes_back_as_it_was_and_lent_pages_stay(line: Line) -> None:
    line.turn(Orders(news=(all_of(JOB),), steps=(PREFILL,)))
    line.turn(Orders(), through=7)
    pool = line.rank.pools["d0"]
    before = pool.data[pool.pages("r")].clone()
    (told,) = line.turn(Orders(lends=(Lend(3, "r", "d0", 4, 5),)))
    assert told.lent == ((3, tuple(pool.pages("r")[1:])),)
    out, back = Move(4, "r", "d0", HOST, 0, 5, ((6, 2),)), Move(5, "r", HOST, "d0", 0, 5, ((6, 2),))
    line.turn(Orders(returned=(3,), moves=(out,)))
    pool.data.zero_()
    assert line.rank.mover.ended() == [Moved(4)]
    line.turn(Orders(lends=(Lend(6, "r", "d0", 0, 5),)))
    line.turn(Orders(drops=(Drop("r", "d0"),)))
    assert pool.free == 6, "lent pages are nobody else's, dropped or not"
    line.turn(Orders(returned=(6,)))
    assert pool.free == 8
    line.turn(Orders(moves=(back,)))
    assert (pool.data[pool.pages("r")] == before).all()
    line.turn(Orders(releases=("r",)))
    assert pool.free == 6, "nor are those a copy fills"
    assert line.rank.mover.ended() == [Moved(5)]
    assert pool.free == 8


def test_a_copy_that_fails_is_told_and_takes_no_page(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("no such link")

    pool = line.rank.pools["d0"]
    with monkeypatch.context() as broken:
        broken.setattr(type(line.rank.mover._stream), "copy", fails)
        line.turn(Orders(moves=(Move(4, "r", HOST, "d0", 0, 9, ((6, 2, 1),)),)))
        assert line.worker._ended_moves() == [Moved(4, "host->d0: no such link")]
        assert pool.free == 8
        line.worker._alone = False
        line.turn(Orders(moves=(Move(5, "r", HOST, "d0", 0, 9, ((6, 2, 1),)),)))
        with pytest.raises(GroupBrokenError, match="no such link"):
            line.worker._ended_moves()
    cluster = Cluster((Device("d0", Role.BOTH, 8),), (Lane("l0", ("d0",)),), 8, (Link("d0", HOST, 1e9),), KVLayout(4))
    host = KVPool(HOST, CpuDevice(), PageShape(1, 1, 2, 4, torch.float32), 8)
    flights, drafts = Flights(cluster, {"d0": "l0"}, host, 1), {"l0": Draft()}
    host.hold("r", 4)
    flights.start(Copy(6, "r", "d0", HOST, 4, 9), drafts)
    assert host.free == 5
    assert flights.moved(Moved(6, "no such link"), 0, drafts) == [CopyFailed(6, "no such link")]
    assert host.free == 7, "what it had before is there"
    assert not len(flights)


def test_news_with_a_gap_is_refused() -> None:
    jobs: dict[str, Job] = {}
    for news in (all_of(JOB), News("r", 0, (7, 8)), News("r", 1, (8, 9))):
        learn(jobs, news, lambda _: None)
    assert jobs["r"].produced == [7, 8, 9]
    with pytest.raises(ExecutorError, match="begin at token 5, 3 are known"):
        learn(jobs, News("r", 5, (1,)), lambda _: None)


def test_the_latest_bell_counts_and_an_end_is_heard_after_it() -> None:
    here, there = Wire.pair()
    one, two = Wire(here), Wire(there)
    assert two.heard() is None
    one.ring(Bell(8, 0))
    one.ring(Bell(16, 8, idle=True))
    one.close()
    assert two.heard() == Bell(16, 8, idle=True)
    with pytest.raises(ClosedError):
        two.heard()
    with pytest.raises(ClosedError):
        two.ring(Bell())
    two.close()
