"""One order log on the simulated and on the torch executor: the same reports, the same residency, at every event.

A run is recorded with the simulated executor; its log is replayed on both, each brought to the time of every call.
Times are exact: a step takes its lane's pace whatever it holds, a page holds one token, and every time is a multiple
of 2^-20 s. Held against each other at every call: each lane's reports (requests that end by one step in any order),
completions of copies, and for every request and tier the tokens that ended steps, chunks and copies have written; where
no step is under way also the blocks in use.

What cannot be equal: at the very end of a step the next one may be launched on one side and not on the other (paces and
arrivals are chosen so that no other event falls there); a finished request's KV is forgotten at once in simulation, at
its release on a device; and a copy aborted under way arrives in simulation, but fails on a device (both are allowed).
The seeds are such that no copy under way is aborted.
"""

from __future__ import annotations

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
from alignedsched.events import Arrived, Event, StepsDone
from alignedsched.registry import policy
from alignedsched.request import Request
from alignedsched.sim.executor import SimulatedExecutor
from alignedsched.story.log import Call, LogReader
from alignedsched.story.recorder import RecordedScheduler
from alignedsched_torch import devices as dev
from alignedsched_torch.executor import TorchExecutor
from alignedsched_torch.job import Job
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


def cluster(staged: bool) -> Cluster:
    layout = KVLayout(1, TOKEN)
    if not staged:
        links = (Link("d0", HOST, RATE), Link(HOST, "d0", RATE))
        return Cluster(
            (Device("d0", Role.BOTH, 130),), (Lane("l0", ("d0",), 0, 8, 48),), 600, links, layout, 256
        )  # fmt: skip
    ends = [("p0", "d0"), ("d0", "p0"), ("p0", HOST), (HOST, "p0"), (HOST, "d0"), ("d0", HOST)]
    return Cluster(
        (Device("p0", Role.PREFILL, 200, 200), Device("d0", Role.DECODE, 200)),
        (Lane("lp", ("p0",), 0, 8, 48), Lane("ld", ("d0",), 0, 8, 48)),
        600, tuple(Link(a, b, RATE) for a, b in ends), layout, 256,
    )  # fmt: skip


def costs(where: Cluster) -> dict[str, Costs]:
    """By lane; lanes of different pace seldom end steps at one moment."""
    return {lane.id: AffineCosts(STEP + 90 * TICK * number, 0.0, 0.0) for number, lane in enumerate(where.lanes)}


def requests(seed: int) -> list[Request]:
    rng = Random(seed)
    return [Request(f"r{n}", rng.choice((3, 9, 17, 40, 90)), rng.randint(1, 24), n * 2043 * TICK) for n in range(16)]


def record(path: Path, where: Cluster, name: str, options: dict[str, Any], work: list[Request]) -> None:
    executor = SimulatedExecutor(where, costs(where))
    with RecordedScheduler(
        path, where, policy(name, **options), AffineCosts(STEP, 0.0, 0.0), max_horizon=16
    ) as scheduler:
        for request in work:
            executor.expect(request.id, request.output_limit or 1)
        drive(scheduler, executor, [(request.arrival, Arrived(request)) for request in work])


def told(events: list[Event] | tuple[Event, ...]) -> list[Event]:
    """Reports without what they measured, in one order."""
    plain = [
        evolve(e, seconds=0.0, ended=None, finished=tuple(sorted(e.finished))) if isinstance(e, StepsDone) else e
        for e in events
    ]
    return sorted((e for e in plain if not isinstance(e, Arrived)), key=repr)


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
            tokens = int(lane._table.length[job.slot]) - 1 - sum(job.slot in step.rows for step in lane._flying)
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


class Twins:
    """Both executors, fed one log."""

    def __init__(self, where: Cluster, decoder: Decoder, work: list[Request], seed: int) -> None:
        clock = dev.Clock({f"{a}->{b}": dev.ModelledLink(RATE) for a, b in where.link}, seed)
        devices = {device.id: dev.ModelledDevice(device.id, clock) for device in where.devices}
        self.where = where
        self.simulated = SimulatedExecutor(where, costs(where))
        self.torch = TorchExecutor(where, devices, {lane.id: decoder for lane in where.lanes}, step_seconds=STEP)
        for number, lane in enumerate(self.torch.lanes.values()):
            lane._forward._seconds = STEP + 90 * TICK * number
        rng = np.random.default_rng(seed)
        for request in work:
            self.simulated.expect(request.id, request.output_limit or 1)
            prompt = rng.integers(0, 32, request.prompt_tokens)
            self.torch.expect(Job(request, prompt, request.output_limit or 1))

    def replay(self, call: Call) -> None:
        """Both run to the call's time, must report what the log says, and take its plan."""
        for executor in (self.simulated, self.torch):
            made = executor.wait(call.now)
            assert executor.now() == call.now, (call.number, executor, made, call.events)
            assert told(tuple(made)) == told(call.events), (call.number, executor)
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
        if not ended and not any(lane._flying for lane in self.torch.lanes.values()):
            for tier, pool in self.torch.pools.items():
                assert pool.data.shape[0] - pool.free == self.simulated.blocks_held(tier), tier
        return held


@pytest.mark.parametrize("seed", range(1, 4))
@pytest.mark.parametrize(("name", "options"), CASES, ids=["fcfs", "swap", "density_first", "cost_aligned"])
def test_the_same_log_means_the_same_residency(
    name: str, options: dict[str, Any], seed: int, tmp_path: Path, decoder: Decoder
) -> None:
    where, work = cluster(staged=name == "density_first"), requests(seed)
    record(tmp_path / "run.alog", where, name, options, work)
    twins = Twins(where, decoder, work, seed)
    held = 0
    with LogReader(tmp_path / "run.alog") as log:
        for call in log:
            if isinstance(call, Call):
                twins.replay(call)
                held += twins.compare([request.id for request in work])
    assert held
    assert twins.torch.copier.staged_bytes == twins.simulated.staged_bytes
    assert not twins.torch.jobs, "every request was released"
    if options or name == "density_first":
        assert sum(twins.torch.copier.copied_bytes.values()) == sum(twins.simulated.copied_bytes.values()) > 0
