"""One order log on the simulated and on the torch executor: the same reports, the same residency, at every event.

A run is recorded with the simulated executor; its log is replayed on both, each brought to the time of every call.
Times are exact: a step takes its lane's pace whatever it holds, a page holds one token, and every time is a multiple
of 2^-20 s. Held against each other at every call: each lane's reports (requests that end by one step in any order),
completions of copies, and for every request and tier the tokens that ended steps, chunks and copies have written; where
no step is under way also the blocks in use.

With run-ahead it is the executor's choice at which step an order takes effect, and whether a row runs on beyond its
last token until that is known: there the lanes of the torch executor do what the log says was done (``as_recorded``). A
copy is one chunk here and a link carries one at a time, so an aborted copy ends as in simulation: at once if it waits,
by arriving if it is under way.

What cannot be equal: at the very end of a step the next one may be launched on one side and not on the other (paces and
arrivals are chosen so that no other event falls there), and a report may come earlier on one side, then again; and a
finished request's KV is forgotten at once in simulation, at its release on a device.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from attrs import evolve

from alignedsched.cluster import HOST, Cluster, Device, KVLayout, Lane, Link, Role
from alignedsched.costs import AffineCosts, Costs
from alignedsched.driver import drive
from alignedsched.events import Arrived, CallerEvent, Cancelled, CopyDone, CopyFailed, Event, StepsDone
from alignedsched.registry import policy
from alignedsched.request import Request
from alignedsched.sim.executor import SimulatedExecutor
from alignedsched.story.log import Call, LogReader
from alignedsched.story.recorder import RecordedScheduler
from alignedsched_torch import devices as dev
from alignedsched_torch.executor import TorchExecutor
from alignedsched_torch.job import Job
from alignedsched_torch.lane import LaneRunner
from alignedsched_torch.memory import ways
from alignedsched_torch.models import Decoder, ModelConfig, load_weights
from alignedsched_torch.tiny import write_tiny

TICK = 2.0**-20  # seconds; every time is a multiple of it
STEP, TOKEN, RATE = 1021 * TICK, 2 * 1 * 2 * 4 * 8, 2.0**20  # seconds a step, bytes a token, bytes per second
CASES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("fcfs", {}),
    ("fcfs", {"swap": True}),
    ("density_first", {"k_min": 2, "batch_share": 0.3}),
    ("cost_aligned", {}),
)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    path = tmp_path_factory.mktemp("tiny")
    write_tiny(path, "llama", vocab=32, hidden=16, layers=1, heads=4, kv_heads=2, positions=256)
    config = ModelConfig.from_folder(path)
    return Decoder(config, load_weights(path, config, torch.float64, torch.device("cpu")))


def cluster(staged: bool, ahead: int) -> Cluster:
    layout = KVLayout(1, TOKEN)
    if not staged:
        links = (Link("d0", HOST, RATE), Link(HOST, "d0", RATE))
        return Cluster(
            (Device("d0", Role.BOTH, 130),), (Lane("l0", ("d0",), ahead, 8, 48),), 600, links, layout, 256
        )  # fmt: skip
    ends = [("p0", "d0"), ("d0", "p0"), ("p0", HOST), (HOST, "p0"), (HOST, "d0"), ("d0", HOST)]
    return Cluster(
        (Device("p0", Role.PREFILL, 200, 200), Device("d0", Role.DECODE, 200)),
        (Lane("lp", ("p0",), ahead, 8, 48), Lane("ld", ("d0",), ahead, 8, 48)),
        600, tuple(Link(a, b, RATE) for a, b in ends), layout, 256,
    )  # fmt: skip


def costs(where: Cluster) -> dict[str, Costs]:
    """By lane; lanes of different pace seldom end steps at one moment."""
    return {lane.id: AffineCosts(STEP + 90 * TICK * number, 0.0, 0.0) for number, lane in enumerate(where.lanes)}


def requests(seed: int) -> list[Request]:
    rng = Random(seed)
    return [Request(f"r{n}", rng.choice((3, 9, 17, 40, 90)), rng.randint(1, 24), n * 2043 * TICK) for n in range(16)]


def arrivals(work: list[Request]) -> list[tuple[float, CallerEvent]]:
    """Every third request is given up by its client, some steps after it came: copies under way are aborted."""
    events: list[tuple[float, CallerEvent]] = [(request.arrival, Arrived(request)) for request in work]
    for number, request in enumerate(work[::3]):
        events.append((request.arrival + (3 + 5 * number) * 1237 * TICK, Cancelled(request.id)))
    return sorted(events, key=lambda timed: timed[0])


def record(path: Path, where: Cluster, name: str, options: dict[str, Any], work: list[Request]) -> None:
    executor = SimulatedExecutor(where, costs(where))
    with RecordedScheduler(
        path, where, policy(name, **options), AffineCosts(STEP, 0.0, 0.0), max_horizon=16
    ) as scheduler:
        for request in work:
            executor.expect(request.id, request.output_limit or 1)
        drive(scheduler, executor, arrivals(work))


def told(events: Sequence[Event]) -> list[Event]:
    """Reports without what they measured, in one order; those of one order joined into one."""
    plain: list[Event] = []
    orders: dict[tuple[str, int], StepsDone] = {}
    for event in events:
        if not isinstance(event, StepsDone):
            plain += [] if isinstance(event, Arrived | Cancelled) else [event]
            continue
        before = orders.get((event.lane, event.order))
        finished, prefilled = (before.finished, before.prefilled) if before is not None else ((), ())
        orders[event.lane, event.order] = evolve(
            event, seconds=0.0, ended=None, launched=None, finished=tuple(sorted((*finished, *event.finished))),
            prefilled=(*prefilled, *event.prefilled),
        )  # fmt: skip
    return sorted((*plain, *orders.values()), key=repr)


def readable(executor: TorchExecutor, name: str, tier: str) -> int:
    """Tokens of a request in a tier that steps, chunks and copies which have ended have written."""
    tokens = len(executor.pools[tier].pages(name))
    under_way = [job.copy for job in executor.copier._jobs.values()]
    starts = [copy.start for copy in under_way if (copy.request, copy.target) == (name, tier)]
    for lane in executor.lanes.values():
        job = executor.jobs.get(name)
        if tier not in lane.lane.ranks or job is None:
            continue
        if job.slot >= 0 and lane._table.jobs[job.slot] is job:
            tokens = lane._table.length(job.slot) - 1 - sum(job.slot in step.batch.rows for step in lane._flying)
        starts += [chunk.start for step in lane._flying for chunk in step.chunks if chunk.request == name]
    return min([tokens, *starts])


def expected(executor: SimulatedExecutor, name: str, tier: str) -> int:
    """The same of the simulated executor."""
    tokens, starts = executor.tokens_held(name, tier), []
    for lane in executor._all:
        if tier not in lane.lane.ranks:
            continue
        batch = lane.batches[lane.lane.ranks.index(tier)]
        if name in batch:
            tokens = batch.base(name) + lane.done
        steps = [step for _, step in lane.pending]
        if lane.order is not None and lane.order.first > lane.done:
            steps.append(lane.order.step)
        starts = [chunk.start for step in steps for chunk in step.chunks if chunk.request == name]
    return min([tokens, *starts])


def as_recorded(lane: LaneRunner, calls: Sequence[Call]) -> None:
    """Of what is an executor's choice with run-ahead, a lane does what the log says was done.

    An order takes effect at the step at which it did (one that never ran: when the next one did), and a row runs on
    past its last token until that is known.
    """
    reports = [e for call in calls for e in call.events if isinstance(e, StepsDone) and e.lane == lane.lane.id]
    firsts = {report.order: report.first for report in reports}

    def change() -> None:
        while lane._pending:
            force, order = lane._reports.force, lane._pending[0].order
            if force is not None and force.step.chunks and lane.launched < force.first:
                return
            told = next((number for number in sorted(firsts) if number >= order), None)
            if told is not None and lane.launched + 1 < firsts[told]:
                return
            lane._apply(lane._pending.popleft(), lane.launched + 1)

    lane._change = change  # type: ignore[method-assign]
    lane._table.expire = lambda step: None  # type: ignore[method-assign]


class Twins:
    """Both executors, fed one log."""

    def __init__(self, where: Cluster, decoder: Decoder, work: list[Request], seed: int, calls: list[Call]) -> None:
        clock = dev.Clock({f"{a}->{b}": dev.ModelledLink(RATE) for a, b in where.link}, seed)
        devices = {device.id: dev.ModelledDevice(device.id, clock) for device in where.devices}
        self.where = where
        self.simulated = SimulatedExecutor(where, costs(where))
        self.torch = TorchExecutor(where, devices, {lane.id: decoder for lane in where.lanes}, step_seconds=STEP)
        for number, lane in enumerate(self.torch.lanes.values()):
            lane._forward._seconds = STEP + 90 * TICK * number
            as_recorded(lane, calls)
        rng = np.random.default_rng(seed)
        for request in work:
            self.simulated.expect(request.id, request.output_limit or 1)
            prompt = rng.integers(0, 32, request.prompt_tokens)
            self.torch.expect(Job(request, prompt, request.output_limit or 1))

    def replay(self, call: Call) -> None:
        """Both run to the call's time, must report what the log says, and take its plan."""
        for executor in (self.simulated, self.torch):
            made = executor.wait(call.now)
            while executor.now() < call.now:  # it may tell earlier, and then again
                made += executor.wait(call.now)
            assert told(made) == told(call.events), (call.number, executor)
            assert call.plan is not None
            executor.submit(call.plan)

    def compare(self, names: list[str]) -> int:
        """Residency now; returns how many (request, tier) hold something."""
        held = 0
        ended = {name for name, job in self.torch.jobs.items() if job.ended}
        for name in names:
            for tier in self.where.tiers if name not in ended else ():
                tokens = readable(self.torch, name, tier)
                assert tokens == expected(self.simulated, name, tier), (name, tier)
                held += bool(tokens)
        now = self.simulated.now()
        resting = all(lane.launched(now) == lane.done for lane in self.simulated._all)
        if not ended and resting and not any(lane._flying for lane in self.torch.lanes.values()):
            for tier, pool in self.torch.pools.items():
                assert pool.data.shape[0] - pool.free == self.simulated.blocks_held(tier), tier
        return held


@pytest.mark.parametrize("ahead", [0, 1])
@pytest.mark.parametrize("seed", [2, 3])
@pytest.mark.parametrize(("name", "options"), CASES, ids=["fcfs", "swap", "density_first", "cost_aligned"])
def test_the_same_log_means_the_same_residency(
    name: str,
    options: dict[str, Any],
    seed: int,
    ahead: int,
    tmp_path: Path,
    decoder: Decoder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ways, "IN_FLIGHT", 1)
    where, work = cluster(name == "density_first", ahead), requests(seed)
    record(tmp_path / "run.alog", where, name, options, work)
    with LogReader(tmp_path / "run.alog") as log:
        calls = [call for call in log if isinstance(call, Call)]
    twins, held = Twins(where, decoder, work, seed, calls), 0
    for call in calls:
        twins.replay(call)
        held += twins.compare([request.id for request in work])
    assert held
    if name == "density_first" and seed == 2:
        aborted = {abort.copy for call in calls if call.plan is not None for abort in call.plan.aborts}
        ends = {type(e) for call in calls for e in call.events if getattr(e, "copy", None) in aborted}
        assert ends == {CopyDone, CopyFailed}, "one was under way and arrived, one was waiting and did not"
    assert twins.torch.copier.staged_bytes == twins.simulated.staged_bytes
    assert not twins.torch.jobs, "every request was released"
    if options or name == "density_first":
        assert sum(twins.torch.copier.copied_bytes.values()) == sum(twins.simulated.copied_bytes.values()) > 0
