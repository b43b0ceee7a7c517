"""``compare``: one workload under several policies, on the same modelled cluster, as one result."""

from __future__ import annotations

import re
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigError
from ..metrics import Lanes, rate_for_load
from ..policies.protocols import Policy
from ..registry import policy as policy_named
from ..story.log import SUFFIX
from ..workloads import Workload, read_trace
from ..workloads import workload as built_in
from .build import Built, build
from .run import Tick, effective_outputs, run
from .settings import CompareSettings, Progress, ProgressUpdate, RunWatch

READ_TICK = 100_000  # rows


def compare(
    settings: CompareSettings, progress: Progress | None = None, watch: RunWatch | None = None
) -> dict[str, Any]:
    """Run every policy of ``settings`` and return the result whose form docs/json.md promises.

    ``watch`` looks on, for a report of what happened when; the result is the same without.

    Raises ConfigError for names that are not known and what does not fit together, TraceError for a bad trace.
    """
    built = build(
        settings.hardware,
        settings.model,
        topology=settings.topology,
        lanes=settings.lanes,
        surface=settings.surface,
        staging=settings.staging,
        any_length=settings.any_length,
        ranks=settings.ranks,
    )
    policies = [policy_named(name) for name in settings.policies]
    workload = arrange(_read(settings, progress), settings, built)
    runs = []
    for number, policy in enumerate(policies, 1):
        report = _Reporter(settings.policies[number - 1], number, len(policies), len(workload), progress)
        log = None if settings.record is None else _log(settings.record, number, settings.policies[number - 1])
        figures = _watched_run(workload, built, policy, settings.policies[number - 1], report.tick, log, watch)
        report.done(figures)
        runs.append(figures)
    return {
        "version": 1,
        "workload": {
            "name": workload.name,
            "requests": len(workload),
            "prompt_tokens": workload.total_prompt_tokens,
            "output_tokens": workload.total_output_tokens,
        },
        "hardware": built.hardware,
        "model": built.model,
        "surface": built.surface,
        "topology": settings.topology,
        "load": settings.load,
        "seed": settings.seed,
        "lanes": settings.lanes,
        "ranks": settings.ranks,
        "rate_scale": settings.rate_scale,
        "offline": settings.offline,
        "staging": settings.staging,
        "runs": runs,
    }


def _watched_run(
    workload: Workload, built: Built, policy: Policy, name: str, tick: Tick, log: Path | None, watch: RunWatch | None
) -> dict[str, Any]:
    """One run's figures, under the name that was asked for."""
    begin = None if watch is None else partial(watch.begin, name)
    observe = None if watch is None else watch.after
    result = run(
        workload, built.cluster, built.costs, policy, tick=tick, record=log, begin=begin, observe=observe
    )  # fmt: skip
    if watch is not None:
        watch.end(result.latency)
    return result.figures | {"policy": name}


class _Reporter:
    """Turns ticks of one run into progress updates."""

    def __init__(self, policy: str, number: int, runs: int, total: int, progress: Progress | None) -> None:
        self._fixed = {"policy": policy, "run": number, "runs": runs, "requests_total": total}
        self._progress = progress
        self._began = time.perf_counter()

    def tick(self, ended: int, simulated_s: float) -> None:
        self._send("running", ended, simulated_s)

    def done(self, figures: dict[str, Any]) -> None:
        self._send("done", figures["requests"]["arrived"], figures["simulated_s"])

    def _send(self, phase: Any, ended: int, simulated_s: float) -> None:
        if self._progress is not None:
            wall = time.perf_counter() - self._began
            self._progress(
                ProgressUpdate(
                    phase=phase,
                    requests_ended=ended,
                    simulated_s=simulated_s,
                    wall_s=wall,
                    **self._fixed,  # type: ignore[arg-type]
                )
            )


def _log(folder: str, number: int, policy: str) -> Path:
    """Where a policy's log goes: a name that is safe in any file system, in the order of the runs."""
    return Path(folder) / f"{number}-{re.sub('[^A-Za-z0-9_-]', '_', policy)[:60]}{SUFFIX}"


def _read(settings: CompareSettings, progress: Progress | None) -> Workload:
    """The workload as it stands in the trace, or as it is synthesised."""
    if settings.workload is not None:
        workload = built_in(settings.workload, seed=settings.seed, n=settings.requests)
        return workload if settings.limit is None else workload.take(settings.limit)
    assert settings.trace is not None
    began = time.perf_counter()
    with read_trace(
        settings.trace, settings.format, skip_bad_rows=settings.skip_bad_rows, limit=settings.limit
    ) as reader:

        def rows() -> Any:
            for count, row in enumerate(reader, 1):
                if progress is not None and count % READ_TICK == 0:
                    progress(
                        ProgressUpdate(
                            policy="", phase="reading", requests_ended=count, wall_s=time.perf_counter() - began
                        )
                    )
                yield row

        workload = Workload.from_rows(Path(settings.trace).name, rows())
    if not len(workload):
        raise ConfigError(f"trace {settings.trace!r} has no requests")
    return workload


def arrange(workload: Workload, settings: CompareSettings, built: Built) -> Workload:
    """Arrival times as asked for: all at once, at a factor, or so that the bound on the work is a share of the span."""
    if settings.offline:
        return workload.offline()
    if settings.rate_scale is not None:
        return workload.scaled(settings.rate_scale)
    assert settings.load is not None
    cluster = built.cluster
    lanes = Lanes.of(cluster)
    outputs = effective_outputs(workload, cluster.max_positions)
    peak = workload.prompt_tokens + outputs - 1
    room = min(lanes.prefill_blocks, lanes.decode_blocks) * cluster.layout.block_size
    fits = (workload.prompt_tokens < cluster.max_positions) & (peak <= room)
    if not fits.any():
        raise ConfigError(f"no request of {workload.name!r} fits on {built.hardware} with {built.model}")
    if not float(np.ptp(workload.arrival_s)) > 0:
        raise ConfigError(f"workload {workload.name!r} has no span of time to scale to a load; use --offline")
    factor = rate_for_load(
        workload.arrival_s, np.where(fits, workload.prompt_tokens, 1), np.where(fits, outputs, 1), built.costs, lanes,
        settings.load,
    )  # fmt: skip
    return workload.scaled(factor)
