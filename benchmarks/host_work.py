"""What the host does for a decode step, kernels left out: microseconds a step at 16, 64 and 256 members.

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python -m benchmarks.host_work [--json benchmarks/results/host_work.json]

A lane under one standing order, ``attention="triton"``, steps over fixed buffers, one step of run-ahead. All that the
executor does for a step is done: taking in the tokens of the one before, pages for the rows that need one, the delta of
the tables, the plan of the attention, the tokens' way to the host. Only the recorded step itself, which a GPU replays
by one call, is left out, and what is queued on a GPU runs at once here, on the CPU. So this is the part of the host's
work that is ours; a driver's cost for each of the few calls comes on top and was not measured.

``changing``: in every step one member has made its last token and another joins under a new order. The host's median
over ``STEPS`` steps; the mean is printed beside it (pages and plans come in some steps only).
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
STEPS, WARM = 400, 60
LONGEST = 2048  # context length at the start


class NoKernels(CpuStream):
    """A stream whose recorded steps do nothing."""

    def recorded(self, work: Callable[[], object]) -> Callable[[], object]:
        return lambda: None


class Host(CpuDevice):
    """A device of which only the host's half is there."""

    def __init__(self) -> None:
        super().__init__("d0")
        self._stream = NoKernels()


class Serving:
    """An executor with a lane that decodes ``members`` requests."""

    def __init__(self, decoder: Decoder, members: int, page: int) -> None:
        positions = LONGEST + 2 * (STEPS + WARM)
        blocks = members * -(-positions // page) * 2
        self.cluster = Cluster(
            (Device("d0", Role.BOTH, blocks),), (Lane("l0", ("d0",), 1, members, members),),
            layout=KVLayout(page, 64), max_positions=positions,
        )  # fmt: skip
        self.executor = TorchExecutor(self.cluster, {"d0": Host()}, {"l0": decoder}, attention="triton", fixed=True)
        self.rng = np.random.default_rng(0)
        self.members: list[str] = []
        self.orders = 0

    def join(self, limit: int) -> Join:
        """A request that was prefilled and has its first token."""
        length = int(self.rng.integers(16, LONGEST))
        name = f"r{self.orders}.{len(self.executor.jobs)}"
        job = Job(Request(name, length, limit), np.zeros(length, dtype=np.int64), limit, produced=[0])
        self.executor.expect(job)
        self.executor.pools["d0"].hold(name, length + 1)
        return Join(name, length + 1)

    def order(self, *joins: Join) -> None:
        self.orders += 1
        step = Step("l0", self.orders, 1 << 30, joins)
        self.executor.submit(Plan(steps=(step,)))

    def step(self) -> int:
        """Let the lane go on as far as run-ahead allows; the number of steps it launched."""
        lane = self.executor.lanes["l0"]
        before = lane.launched
        while lane.launched == before:
            lane.pump()
            ended = [request for report in lane.reports() for request, _ in report.finished]
            if ended:
                self.executor.submit(Plan(releases=tuple(Release(name, Outcome.FINISHED) for name in ended)))
        return lane.launched - before


def steady(decoder: Decoder, members: int, page: int) -> list[float]:
    """Microseconds of each step; nobody comes or goes."""
    serving = Serving(decoder, members, page)
    serving.order(*(serving.join(1 << 20) for _ in range(members)))
    return _timed(serving.step)


def changing(decoder: Decoder, members: int, page: int) -> list[float]:
    """The same where a member ends with every step and another joins."""
    serving = Serving(decoder, members, page)
    serving.order(*(serving.join(2 + place) for place in range(members)))  # one ends with each step

    def step() -> int:
        launched = serving.step()
        serving.order(*(serving.join(members + 1) for _ in range(launched)))
        return launched

    return _timed(step)


def _timed(step: Callable[[], int]) -> list[float]:
    for _ in range(WARM):
        step()
    gc.collect()
    gc.disable()
    spent: list[float] = []
    try:
        while len(spent) < STEPS:
            began = time.thread_time_ns()
            launched = step()
            spent += [(time.thread_time_ns() - began) / 1000 / launched] * launched
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
    for name, run in (("steady", steady), ("changing", changing)):
        for page in PAGES:
            for members in MEMBERS:
                spent = run(model, members, page)
                cell: dict[str, Any] = {
                    "case": name, "page_size": page, "members": members, "median_us": statistics.median(spent),
                    "mean_us": statistics.fmean(spent), "p99_us": sorted(spent)[int(len(spent) * 0.99)],
                }  # fmt: skip
                found.append(cell)
                print(
                    f"{name:8}  page {page:2}  {members:3} members  median {cell['median_us']:6.1f} us"
                    f"  mean {cell['mean_us']:6.1f}  p99 {cell['p99_us']:6.1f}"
                )
    if given.json:
        given.json.write_text(json.dumps({"steps": STEPS, "cells": found}, indent=1) + "\n")


if __name__ == "__main__":
    os.environ.setdefault("TRITON_INTERPRET", "1")
    main()
