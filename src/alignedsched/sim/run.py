"""One workload under one policy on one modelled cluster, from the first arrival to the last release."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
from attrs import define, field, frozen

from ..cluster import HOST, Cluster
from ..costs import Costs
from ..driver import drive
from ..events import Arrived, CallerEvent, Event
from ..metrics import Lanes, LatencyCollector, bound
from ..plan import Outcome, Plan
from ..policies.predict import Oracle
from ..policies.protocols import Policy
from ..scheduler import Scheduler
from ..story import RecordedScheduler
from ..workloads import Workload
from .executor import SimulatedExecutor
from .meter import LaneMeters

Tick = Callable[[int, float], None]  # (requests ended, simulated seconds)
TICK_EVERY = 512  # scheduler calls


@frozen
class RunResult:
    """What one run came to: ``figures`` is an entry of ``runs`` in the JSON of ``compare`` (see docs/json.md)."""

    figures: dict[str, Any]
    latency: LatencyCollector
    scheduler: Scheduler


@define
class _Tally:
    """What a run came to so far, scheduler call by scheduler call."""

    executor: SimulatedExecutor
    latency: LatencyCollector
    meters: LaneMeters
    calls: int = 0
    events: int = 0
    ended: int = 0  # requests
    last: float = 0.0  # when one last did
    unserved: set[str] = field(factory=set)  # that ended otherwise than finished

    def observe(self, now: float, events: tuple[Event, ...], plan: Plan) -> None:
        self.calls += 1
        self.events += len(events)
        if plan.releases:
            self.ended += len(plan.releases)
            self.last = now
            self.unserved.update(r.request for r in plan.releases if r.outcome is not Outcome.FINISHED)
        self.latency.observe(now, events, plan, self.executor.durations)
        self.meters.observe(now, self.executor.spans)

    def figures(self, policy: str, preemptions: int, simulated: float, wall: float) -> dict[str, Any]:
        """All figures but the bound; nothing may be observed after."""
        latency = self.latency
        return {
            "policy": policy,
            "requests": latency.requests,
            "output_tokens": latency.output_tokens,
            "simulated_s": simulated,
            "wall_s": wall,
            "steps": self.executor.steps,
            "events": self.events,
            "throughput_tok_s": latency.output_tokens / simulated if simulated else 0.0,
            "latency_s": latency.summary(),
            "bubbles": self.meters.close(self.last),
            "copies": copies(self.executor),
            "preemptions": preemptions,
        }


def run(
    workload: Workload,
    cluster: Cluster,
    costs: Costs | dict[str, Costs],
    policy: Policy,
    *,
    tick: Tick | None = None,
    check_every: int | None = None,
    published: Costs | None = None,
    record: str | os.PathLike[str] | None = None,
    begin: Callable[[Scheduler], None] | None = None,
    observe: Callable[[float, tuple[Event, ...], Plan], None] | None = None,
) -> RunResult:
    """Simulate. Output lengths are known to the executor alone, and to an Oracle among the policy's watches.

    ``check_every`` calls ``scheduler.check()`` so often. ``begin`` gets the scheduler before its first call, and
    ``observe`` each call after it was made; they must change nothing.

    The policy sees ``published`` costs, else ``costs`` unless these are given by lane id; for such no bound is known
    (its figures are absent). ``record`` is the path of an event log to write (see docs/story.md).

    O((requests + events) log n); a decode step in which nothing changes costs its share of one numpy call.
    """
    began = time.perf_counter()
    shown = costs if published is None and not isinstance(costs, dict) else published
    make = Scheduler if record is None else partial(RecordedScheduler, record)
    scheduler = make(cluster, policy, shown)
    if begin is not None:
        begin(scheduler)
    executor = SimulatedExecutor(cluster, costs)
    oracles = [watch for watch in policy.watches if isinstance(watch, Oracle)]
    tally = _Tally(executor, LatencyCollector(cluster), LaneMeters(cluster, scheduler))

    def watch(now: float, events: tuple[Event, ...], plan: Plan) -> None:
        tally.observe(now, events, plan)
        if observe is not None:
            observe(now, events, plan)
        if check_every is not None and tally.calls % check_every == 0:
            scheduler.check()
        if tick is not None and tally.calls % TICK_EVERY == 0:
            tick(tally.ended, now)

    with scheduler if isinstance(scheduler, RecordedScheduler) else nullcontext():
        drive(scheduler, executor, _arrivals(workload, (executor, *oracles), cluster.max_positions), observe=watch)
    start = float(workload.arrival_s[0]) if len(workload) else 0.0
    simulated = max(0.0, tally.last - start)
    figures = tally.figures(policy.name, scheduler.counts["preemptions"], simulated, time.perf_counter() - began)
    if not isinstance(costs, dict):
        figures |= _bound(workload, tally.unserved, cluster, costs, simulated)
    return RunResult(figures, tally.latency, scheduler)


def effective_outputs(workload: Workload, max_positions: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Output tokens as served: an answer ends at the model's last position."""
    return np.maximum(1, np.minimum(workload.output_tokens, max_positions - workload.prompt_tokens))


def _arrivals(
    workload: Workload, knowers: Sequence[SimulatedExecutor | Oracle], max_positions: int
) -> Iterator[tuple[float, CallerEvent]]:
    """Requests as they arrive; the executor hears of their output lengths, and beside it only a policy's oracle."""
    for request, output in workload.requests():
        for knower in knowers:
            knower.expect(request.id, max(1, min(output, max_positions - request.prompt_tokens)))
        yield request.arrival, Arrived(request)


def copies(executor: SimulatedExecutor) -> dict[str, int]:
    """Bytes copied by direction."""
    moved = executor.copied_bytes
    return {
        "host_to_device_bytes": sum(n for (source, _), n in moved.items() if source == HOST),
        "device_to_host_bytes": sum(n for (_, target), n in moved.items() if target == HOST),
        "peer_bytes": sum(n for (source, target), n in moved.items() if HOST not in (source, target)),
        "staged_bytes": executor.staged_bytes,
    }


def _bound(workload: Workload, unserved: set[str], cluster: Cluster, costs: Costs, simulated: float) -> dict[str, Any]:
    """The bound on the work that was done."""
    served = np.ones(len(workload), dtype=bool)
    if unserved:
        served = np.array([request.id not in unserved for request, _ in workload.requests()], dtype=bool)
    outputs = effective_outputs(workload, cluster.max_positions)
    least = bound(
        workload.arrival_s[served], workload.prompt_tokens[served], outputs[served], costs, Lanes.of(cluster)
    ).bound_s
    return {"bound_s": least, "bound_ratio": least / simulated if simulated else None}
