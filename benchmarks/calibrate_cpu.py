"""What calibration is worth on a CPU: are unseen steps predicted, and are policies ranked as real runs rank them?

    OMP_NUM_THREADS=1 python -m benchmarks.calibrate_cpu [--json benchmarks/results/calibrate_cpu.json] [--quick]

A tiny random Llama (vocabulary 512, hidden 128, 4 layers, 4 heads, 2 of them for keys and values, 8,192 positions),
one thread, float32, with contexts long enough that attention is most of a step. Two ways of attending are calibrated:
the engine's own, which pads only among members of similar length, and ``padded``, which pads the whole batch to its
longest member, as plain batched attention does: there alignment should pay, and the table has to know it.

*Steps*: the errors that ``calibrate`` itself found on batches it did not fit. *Policies*: the same requests, policies
and cluster once through the real executor and once through the simulation with the measured table. The real executor
lives in CPU time: its clock is the CPU time of the process, and jumps ahead where there is nothing to do, so other
processes on the machine disturb it little. Scheduling and copies count there, and cost nothing (or run beside the
steps) in the simulation. Real runs are repeated, in turns; a pair of policies counts as different where the slowest
run of one beats the fastest of the other, and only such pairs are compared.

*Where the difference comes from*: the steps of the real runs themselves are priced by the table, decode apart from
steps with prefill, and what time went by outside of steps (scheduling, copies, members that come and go) is told.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from attrs import asdict, define, evolve, field, frozen

from alignedsched.cluster import Cluster
from alignedsched.costs import Costs, Load
from alignedsched.driver import drive
from alignedsched.events import Arrived
from alignedsched.measured import Measured
from alignedsched.metrics import LatencyCollector
from alignedsched.policies.protocols import PlainData, Stepped
from alignedsched.registry import policy as policy_named
from alignedsched.request import Request
from alignedsched.scheduler import Scheduler
from alignedsched.sim.build import build
from alignedsched.sim.run import run
from alignedsched.workloads import Workload
from alignedsched_torch.calibrate.random_model import TINY, random_decoder
from alignedsched_torch.calibrate.run import Wanted, calibrate
from alignedsched_torch.clusters import Sizes
from alignedsched_torch.devices import CpuDevice
from alignedsched_torch.executor import TorchExecutor
from alignedsched_torch.job import Job
from alignedsched_torch.models import Decoder, attention

POLICIES = ("fcfs", "cost_aligned", "density_first", "waves", "buckets", "sjf")
FIGURES = {"mean_e2e_s": False, "throughput_tok_s": True}  # whether more is better
PARTS = ("decode_said_over_took", "prefill_said_over_took", "outside_of_steps")  # of a real run; see ``Priced``
SIZES = Sizes(kv_tokens=16_384, host_tokens=65_536, page_size=16, max_members=32, max_tokens=512)
REPEATS, REQUESTS, MINUTES = 3, 80, 2.0


class CpuTimeDevice(CpuDevice):
    """A CPU whose clock is the process's CPU time; where there is nothing to do it jumps ahead."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._offset = -time.process_time()

    def now(self) -> float:
        return time.process_time() + self._offset

    def idle(self, until: float | None, woken: object = None) -> None:
        if until is not None:
            self._offset += max(0.0, until - self.now())


@contextmanager
def attending(kernel: str) -> Iterator[None]:
    """The engine's own attention, or all members padded to the longest."""
    original = attention.similar

    def one(decode: attention.DecodeRows, page_size: int) -> list[attention.DecodeGroup]:
        groups = original(decode, page_size)
        if not groups:
            return []
        most = groups[0].pages.shape[1]
        return [
            attention.DecodeGroup(0, len(decode.rows), decode.pages[decode.rows, :most], decode.lengths[decode.rows])
        ]

    if kernel == "padded":
        attention.similar = one
    try:
        yield
    finally:
        attention.similar = original


def traffic(seed: int, requests: int) -> Workload:
    """Everything at once: prompts log-normal around 250 tokens, a tenth ten times as long; 16 to 160 tokens out."""
    rng = np.random.default_rng(seed)
    long = rng.random(requests) < 0.1
    prompts = rng.lognormal(math.log(250), 0.6, requests) * np.where(long, 10.0, 1.0)
    return Workload(
        "long-tailed", np.zeros(requests), np.clip(prompts, 16, 6000).astype(np.int64),
        rng.integers(16, 161, requests),
    )  # fmt: skip


@frozen
class Place:
    """What a policy is run on: a cluster, its steps' costs as measured, and the real decoder."""

    cluster: Cluster
    costs: Costs
    decoder: Decoder


@define
class Priced:
    """A watch: seconds that steps took and that the table says, decode steps apart from those with prefill."""

    costs: Costs
    took: dict[str, float] = field(factory=lambda: {"decode": 0.0, "prefill": 0.0})
    said: dict[str, float] = field(factory=lambda: {"decode": 0.0, "prefill": 0.0})

    def stepped(self, facts: Stepped) -> None:
        (load,) = facts.loads
        kind = "prefill" if load.chunks else "decode"
        self.took[kind] += facts.seconds
        self.said[kind] += self._price(load, facts.steps)

    def _price(self, load: Load, steps: int) -> float:
        if load.chunks:
            return self.costs.step_seconds(load)
        return float(self.costs.finishing_times(load, steps)[-1]) if load.n else 0.0

    def ended(self, request: Request, produced: int, finished: bool) -> None:
        """Nothing to price."""

    def state(self) -> PlainData:
        return None

    def load(self, state: PlainData) -> None:
        """Figures are not part of snapshots."""

    def figures(self, seconds: float) -> dict[str, float]:
        """Said over took, by kind; share of ``seconds`` outside of steps."""
        found = {f"{kind}_said_over_took": self.said[kind] / took for kind, took in self.took.items()}
        return found | {"outside_of_steps": 1.0 - sum(self.took.values()) / seconds}


def real(place: Place, policy: str, workload: Workload) -> dict[str, float]:
    """The real executor's figures, in CPU seconds."""
    cluster = place.cluster
    devices = {device.id: CpuTimeDevice(device.id) for device in cluster.devices}
    executor = TorchExecutor(cluster, devices, {lane.id: place.decoder for lane in cluster.lanes})
    priced, known = Priced(place.costs), policy_named(policy)
    scheduler = Scheduler(cluster, evolve(known, watches=(*known.watches, priced)), place.costs)
    latency = LatencyCollector(cluster)
    arrivals = []
    for request, output in workload.requests():
        tokens = np.arange(request.prompt_tokens, dtype=np.int64) % place.decoder.config.vocab
        executor.expect(Job(request, tokens, output))
        arrivals.append((request.arrival, Arrived(request)))
    began = executor.now()
    drive(scheduler, executor, arrivals, observe=lambda now, events, plan: latency.observe(now, events, plan))
    assert latency.requests["finished"] == len(workload), latency.requests
    seconds = executor.now() - began
    return {
        "mean_e2e_s": float(latency.summary()["e2e"]["mean"] or 0.0),
        "throughput_tok_s": latency.output_tokens / seconds,
        **priced.figures(seconds),
    }


def simulated(place: Place, policy: str, workload: Workload) -> dict[str, float]:
    """The same as ``compare`` simulates it."""
    figures = run(workload, place.cluster, place.costs, policy_named(policy)).figures
    return {"mean_e2e_s": figures["latency_s"]["e2e"]["mean"], "throughput_tok_s": figures["throughput_tok_s"]}


def agreement(measured: dict[str, list[float]], predicted: dict[str, float]) -> dict[str, Any]:
    """Pairs of policies that real runs tell apart, and how many of them the simulation puts in the same order.

    A pair that the simulation does not tell apart counts as wrong.
    """
    told_apart, same, wrong = 0, 0, []
    for a, b in combinations(measured, 2):
        for less, more in ((a, b), (b, a)):
            if max(measured[less]) < min(measured[more]):
                told_apart += 1
                same += predicted[less] < predicted[more]
                wrong += [] if predicted[less] < predicted[more] else [[less, more]]
    return {"pairs": len(measured) * (len(measured) - 1) // 2, "told_apart": told_apart, "same": same, "wrong": wrong}


def measure(kernel: str, minutes: float, repeats: int, requests: int) -> dict[str, Any]:
    """Calibrate one way of attending, then run every policy for real and simulated."""
    with attending(kernel):
        found = calibrate(Wanted(minutes=minutes, sizes=SIZES))
        path = Path(f"/tmp/calibrate_cpu_{os.getpid()}.json")
        found.save(path)
        try:
            built = build(str(path), topology="colocated", lanes=1, staging=False)
        finally:
            path.unlink()
        decoder = random_decoder(TINY, torch.float32, torch.device("cpu"))
        place, workload = Place(built.cluster, built.costs, decoder), traffic(1, requests)
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in POLICIES}
        real(place, POLICIES[0], traffic(2, 16))
        for turn in range(repeats):
            for name in POLICIES[turn % 2 :] + POLICIES[: turn % 2]:
                runs[name].append(real(place, name, workload))
                print(f"{kernel}, {name}, run {turn + 1}: {runs[name][-1]}", flush=True)
        predicted = {name: simulated(place, name, workload) for name in POLICIES}
    return _result(found, runs, predicted)


def _result(
    found: Measured, runs: dict[str, list[dict[str, float]]], predicted: dict[str, dict[str, float]]
) -> dict[str, Any]:
    kernel = found.kernels[found.kernel]
    policies = {
        policy: {
            figure: {
                "real": [round(one[figure], 4) for one in runs[policy]],
                "simulated": round(predicted[policy][figure], 4),
                "ratio": round(predicted[policy][figure] / median(one[figure] for one in runs[policy]), 4),
            }
            for figure in FIGURES
        }
        | {name: round(median(one[name] for one in runs[policy]), 4) for name in PARTS}
        for policy in runs
    }
    ranks = {
        figure: agreement(
            {name: [one[figure] for one in runs[name]] for name in runs},
            {name: predicted[name][figure] for name in runs},
        )
        for figure in FIGURES
    }
    return {
        "held_out": {kind: {k: round(v, 4) for k, v in asdict(e).items()} for kind, e in kernel.held_out.items()},
        "policies": policies,
        "agreement": ranks,
        "machine": dict(found.machine),
    }


def show(result: dict[str, Any]) -> str:
    """The result as text."""
    lines = []
    for kernel, part in result["kernels"].items():
        for kind, errors in part["held_out"].items():
            lines.append(
                f"{kernel}: unseen {kind} steps off by {errors['p50']:.1%} (median), {errors['p90']:.1%} (p90)"
            )
        lines.append(f"{'policy':<16}{'real E2E s':>12}{'simulated':>12}{'real tok/s':>12}{'simulated':>12}"
                     f"{'decode':>12}{'prefill':>12}{'outside':>12}")  # fmt: skip
        for name, figures in part["policies"].items():
            row = [f"{name:<16}"]
            for figure in FIGURES:
                row.append(f"{median(figures[figure]['real']):>12.3f}{figures[figure]['simulated']:>12.3f}")
            row += [f"{figures[name]:>12.3f}" for name in PARTS]
            lines.append("".join(row))
        for figure, ranks in part["agreement"].items():
            lines.append(f"{figure}: {ranks['same']} of {ranks['told_apart']} pairs told apart rank the same"
                         f" (of {ranks['pairs']} pairs)")  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="seconds instead of minutes, to see that it runs")
    given = parser.parse_args()
    torch.set_num_threads(1)
    how = (0.1, 2, 12) if given.quick else (MINUTES, REPEATS, REQUESTS)
    result = {
        "what": "calibrated costs against real CPU runs: steps not seen, and the order of policies",
        "requests": how[2],
        "repeats": how[1],
        "kernels": {kernel: measure(kernel, *how) for kernel in ("grouped", "padded")},
        "load_average_1_min": round(os.getloadavg()[0], 2),
    }
    print(show(result))
    if given.json is not None:
        given.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
