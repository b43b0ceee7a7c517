"""What the host does for a decode step, kernels left out: microseconds a step at 16, 64 and 256 members.

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python -m benchmarks.host_work [--json benchmarks/results/host_work.json]

A lane under one standing order, ``attention="triton"`` with as many programs as on an H200, steps over fixed buffers,
one step of run-ahead; steps end one by one, each while the next is under way. All that the executor does for a step is
done: taking in the tokens of the one that ended, looking for stop tokens (two for each request, which none makes),
pages for the rows that need one, the delta of the tables, the plan of the attention, the tokens' way to the host. Only
the recorded step itself, which a GPU replays by one call, is left out, and what is queued on a GPU runs at once here,
on the CPU. So this is the part of the host's work that is ours; a driver's cost for each of the few calls comes on top
and was not measured. Nobody listens to single tokens.

``changing``: with every step one member makes its last token, is reported and released, and another joins under a new
order (so two or three rows fewer than members decode: an order takes effect behind what is launched). The median over
``STEPS`` steps; the mean is printed beside it (pages and plans come in some steps only). Everything is run ``RUNS``
times, and of each case the run with the least median is told: other work on the machine only ever makes it slower.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from alignedsched.cluster import Cluster, Device, KVLayout, Lane, Role
from alignedsched.plan import Join, Outcome, Plan, Release, Step
from alignedsched.request import Request
from alignedsched_torch.devices import CpuDevice
from alignedsched_torch.devices.cpu import CpuStream
from alignedsched_torch.executor import TorchExecutor
from alignedsched_torch.job import Job
from alignedsched_torch.models import Decoder, ModelConfig, load_weights
from alignedsched_torch.tiny import write_tiny

MEMBERS, PAGES = (16, 64, 256), (16, 64)
STEPS, WARM, RUNS = 400, 60, 5
LONGEST = 2048  # context length at the start
PROGRAMS = 132 * 3  # that decode on an H200, see ``kernels.options``
STOPS = frozenset({1, 2})  # the steps here make token 0


class Ends:
    """The end of the ``number``-th step of a stream."""

    def __init__(self, stream: NoKernels, number: int) -> None:
        self._stream, self._number = stream, number

    def done(self) -> bool:
        return self._number <= self._stream.ended

    def wait(self) -> None:
        assert self.done(), "the host waits for nothing that is under way"


class NoKernels(CpuStream):
    """A stream whose recorded steps do nothing, and end when they are told to."""

    def __init__(self) -> None:
        self.queued = self.ended = 0

    def recorded(self, work: Callable[[], object]) -> Callable[[], object]:
        return lambda: None

    def record(self) -> Ends:
        self.queued += 1
        return Ends(self, self.queued)


class Host(CpuDevice):
    """A device of which only the host's half is there."""

    def __init__(self) -> None:
        super().__init__("d0")
        self.steps = self._stream = NoKernels()


class Serving:
    """An executor with a lane that decodes ``members`` requests."""

    def __init__(self, decoder: Decoder, members: int, page: int) -> None:
        from alignedsched_torch.kernels.decode import Workspace  # after TRITON_INTERPRET was set

        positions = LONGEST + 2 * (STEPS + WARM)
        blocks = members * -(-positions // page) * 2
        self.cluster = Cluster(
            (Device("d0", Role.BOTH, blocks),), (Lane("l0", ("d0",), 1, members, members),),
            layout=KVLayout(page, 64), max_positions=positions,
        )  # fmt: skip
        host = Host()
        self.executor = TorchExecutor(self.cluster, {"d0": host}, {"l0": decoder}, attention="triton", fixed=True)
        backend: Any = self.executor.lanes["l0"]._forward.attention
        shape = backend.pool.shape
        backend.work = Workspace(PROGRAMS, decoder.heads, shape.kv_heads, shape.head_dim, host.torch_device)
        self._steps = host.steps
        self.rng = np.random.default_rng(0)
        self.made = self.orders = 0

    def request(self, limit: int) -> Job:
        """What a caller hands in."""
        length = int(self.rng.integers(16, LONGEST))
        self.made += 1
        request = Request(f"r{self.made}", length, limit)
        return Job(request, np.zeros(length, dtype=np.int64), limit, stops=STOPS, produced=[0])

    def join(self, job: Job) -> Join:
        """A request is as if it had been prefilled: it has pages and its first token."""
        length = job.request.prompt_tokens + 1
        self.executor.expect(job)
        self.executor.pools["d0"].hold(job.id, length)
        return Join(job.id, length)

    def order(self, *joins: Join) -> None:
        self.orders += 1
        step = Step("l0", self.orders, 1 << 30, joins)
        self.executor.submit(Plan(steps=(step,)))

    def step(self) -> int:
        """One step ends and the lane goes on; how many requests ended with it."""
        lane = self.executor.lanes["l0"]
        before = lane.launched
        self._steps.ended += 1
        lane.pump()
        ended = [request for report in lane.reports() for request, _ in report.finished]
        if ended:
            self.executor.submit(Plan(releases=tuple(Release(name, Outcome.FINISHED) for name in ended)))
        assert lane.launched == before + 1, "with every step that ends one is launched"
        return len(ended)


def steady(decoder: Decoder, members: int, page: int) -> list[float]:
    """Microseconds of each step; nobody comes or goes."""
    serving = Serving(decoder, members, page)
    serving.order(*(serving.join(serving.request(1 << 20)) for _ in range(members)))
    return _timed(serving.step)


def changing(decoder: Decoder, members: int, page: int) -> list[float]:
    """The same where a member ends with every step and another joins."""
    serving = Serving(decoder, members, page)
    serving.order(*(serving.join(serving.request(2 + place)) for place in range(members)))  # one ends with each step
    waiting = [serving.request(members - 1) for _ in range(STEPS + WARM)]  # ends when all that are there now have ended

    def step() -> None:
        ended = serving.step()
        assert ended == 1
        serving.order(serving.join(waiting.pop()))

    return _timed(step)


def _timed(step: Callable[[], object]) -> list[float]:
    for _ in range(WARM):
        step()
    gc.collect()
    gc.disable()
    spent: list[float] = []
    try:
        while len(spent) < STEPS:
            began = time.thread_time_ns()
            step()
            spent.append((time.thread_time_ns() - began) / 1000)
    finally:
        gc.enable()
    return spent


def decoder() -> Decoder:
    with tempfile.TemporaryDirectory() as place:
        write_tiny(Path(place), "llama", vocab=32, hidden=32, layers=1, heads=4, kv_heads=2, positions=1 << 20)
        config = ModelConfig.from_folder(Path(place))
        return Decoder(config, load_weights(Path(place), config, torch.float32, torch.device("cpu")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    model, found = decoder(), []
    cells = [(run, page, members) for run in (steady, changing) for page in PAGES for members in MEMBERS]
    runs = [[run(model, members, page) for run, page, members in cells] for _ in range(RUNS)]
    for place, (run, page, members) in enumerate(cells):
        spent = min((spents[place] for spents in runs), key=statistics.median)
        cell: dict[str, Any] = {
            "case": run.__name__, "page_size": page, "members": members, "median_us": statistics.median(spent),
            "mean_us": statistics.fmean(spent), "p99_us": sorted(spent)[int(len(spent) * 0.99)],
        }  # fmt: skip
        found.append(cell)
        print(
            f"{run.__name__:8}  page {page:2}  {members:3} members  median {cell['median_us']:6.1f} us"
            f"  mean {cell['mean_us']:6.1f}  p99 {cell['p99_us']:6.1f}"
        )
    if given.json:
        given.json.write_text(json.dumps({"steps": STEPS, "runs": RUNS, "cells": found}, indent=1) + "\n")


if __name__ == "__main__":
    os.environ.setdefault("TRITON_INTERPRET", "1")
    main()
