"""Does it pay on my machine? A surface fitted to a log of the engine's steps, and the user's trace simulated with it.

Continuous batching, the default policy and the lower bound side by side, the verdict in a sentence, and what to measure
where the log leaves it open: every surface that explains the log as well, and would matter for such requests, is
simulated too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from attrs import asdict, frozen

from ..adapters.step_log import read_step_log
from ..cluster import Cluster, Device, KVLayout, Lane, Role
from ..costs import AffineCosts, Costs, Load
from ..errors import ConfigError
from ..metrics import Lanes, rate_for_load
from ..metrics.bounds import work_seconds
from ..outside import is_count, is_number, show
from ..registry import policy as policy_named
from ..workloads import Workload, read_trace
from .build import build
from .run import run
from .settings import Progress, ProgressUpdate
from .step_fit import Fit, fit
from .step_kinds import Steps
from .verdict import DEFAULT, PLAIN, measure_next, ratios_of, verdict_of

DEFAULT_MODEL = "llama-3.1-8b"  # as for compare
ALTERNATIVES = 2  # surfaces simulated beside the chosen one, at most
MATTERS = 0.02  # imbalance: a surface that differs by less changes no decision
BATCHES = 64  # drawn from the trace, to see what imbalance would cost
ANY_LENGTH = 1 << 40
RUN_AHEAD = 1  # as vLLM's asynchronous scheduling, its default on GPUs


@frozen(kw_only=True)
class AdviseSettings:
    """What ``advise`` is told. What is not given about the engine is read off the log: the most it ever did at once.

    ``kv_blocks`` of ``block_size`` tokens; ``max_members`` and ``max_tokens`` a step; or ``hardware`` and ``model``,
    names as for ``compare``, from which these follow. At most one of ``load``,
    ``rate_scale`` and ``offline`` says how requests arrive; with none of them, as recorded. Raises ConfigError naming
    the field that is out of range.
    """

    trace: str
    steps: str
    format: str | None = None
    limit: int | None = None
    kv_blocks: int | None = None
    block_size: int = 16
    max_members: int | None = None
    max_tokens: int | None = None
    hardware: str | None = None
    model: str | None = None
    load: float | None = None
    rate_scale: float | None = None
    offline: bool = False

    def __attrs_post_init__(self) -> None:
        for name in ("limit", "kv_blocks", "block_size", "max_members", "max_tokens"):
            value = getattr(self, name)
            if value is not None and not is_count(value, 1, 2**40):
                raise ConfigError(f"{name} must be a whole number of at least 1, got {show(value)}")
        for name in ("load", "rate_scale"):
            value = getattr(self, name)
            if value is not None and not (is_number(value, 0.0) and value):
                raise ConfigError(f"{name} must be a finite number above 0, got {show(value)}")
        if sum((self.load is not None, self.rate_scale is not None, self.offline)) > 1:
            raise ConfigError("load, rate_scale and offline exclude each other: give one of them")
        if self.model is not None and self.hardware is None:
            raise ConfigError("model goes with hardware: together they say how many KV blocks there are")


def advise(settings: AdviseSettings, progress: Progress | None = None) -> dict[str, Any]:
    """The result whose form docs/advise.md promises.

    Raises TraceError for a bad trace or log, ConfigError for a log that is too short and what does not fit together.
    """
    found = fit(Steps.of(read_step_log(settings.steps)))
    recorded = _read(settings)
    cluster, guessed = _engine(settings, found)
    workload, load = _arrange(recorded, settings, cluster, found.costs)
    runs = _simulate(workload, cluster, found.costs, progress)
    batches = _batches(found, workload, cluster)
    shares = [(costs, _imbalance(costs, batches)) for costs in found.allowed]
    others = [
        {"costs": asdict(costs), "imbalance": share, **ratios_of(_simulate(workload, cluster, costs, progress))}
        for costs, share in _that_matter(shares, _imbalance(found.costs, batches))
    ]
    verdict = verdict_of(runs, others)
    return {
        "version": 1,
        "log": _log(found),
        "surface": asdict(found.costs),
        "kinds": [
            {
                "kind": kind.name,
                "median_error": kind.error,
                "off": kind.off,
                "excluded": kind.excluded,
                "imbalance": max((share for costs, share in shares if costs.surface == kind.name), default=None),
            }
            for kind in found.kinds
        ],
        "engine": {
            "kv_blocks": cluster.devices[0].kv_blocks,
            "block_size": settings.block_size,
            "max_members": cluster.lanes[0].max_members,
            "max_tokens": cluster.lanes[0].max_tokens,
            "read_off_the_log": guessed,
        },
        "workload": {
            "name": workload.name,
            "requests": len(workload),
            "prompt_tokens": workload.total_prompt_tokens,
            "output_tokens": workload.total_output_tokens,
        },
        "load": load,
        "runs": runs,
        "alternatives": others,
        "verdict": verdict,
        "measure_next": measure_next(found, runs, others, workload, cluster, load, verdict["word"]),
    }


def _log(found: Fit) -> dict[str, Any]:
    return {
        "steps": found.steps,
        "decode_only": found.decode_only,
        "with_prefill": found.with_prefill,
        "median_error": found.chosen.error,
        "far": found.far,
        "p90_error": found.p90_error,
        "most_members": found.most_members,
        "longest": found.longest,
        "stretch_p5": found.stretch[0],
        "stretch_p95": found.stretch[1],
    }


# -- the trace and the engine


def _read(settings: AdviseSettings) -> Workload:
    with read_trace(settings.trace, settings.format, limit=settings.limit) as reader:
        workload = Workload.from_rows(Path(settings.trace).name, reader)
    if not len(workload):
        raise ConfigError(f"trace {settings.trace!r} has no requests")
    return workload


def _engine(settings: AdviseSettings, found: Fit) -> tuple[Cluster, list[str]]:
    """One lane as told, and the names of what was read off the log instead."""
    size = settings.block_size
    seen = {
        "kv_blocks": -(-found.most_total // size) + found.most_members,
        "max_members": found.most_members,
        "max_tokens": found.most_tokens,
    }
    told = {name: getattr(settings, name) for name in seen}
    if settings.hardware is not None:
        model = settings.model or DEFAULT_MODEL
        built = build(settings.hardware, model, topology="colocated", lanes=1, surface="gated", staging=False)
        lane, tokens = built.cluster.lanes[0], built.cluster.devices[0].kv_blocks * built.cluster.layout.block_size
        usual = {"kv_blocks": tokens // size, "max_members": lane.max_members, "max_tokens": lane.max_tokens}
        told = {name: usual[name] if told[name] is None else told[name] for name in seen}
    use = {name: seen[name] if told[name] is None else told[name] for name in seen}
    cluster = Cluster(
        (Device("d0", Role.BOTH, use["kv_blocks"]),),
        (Lane("lane-d0", ("d0",), RUN_AHEAD, use["max_members"], use["max_tokens"]),),
        layout=KVLayout(size),
        max_positions=ANY_LENGTH,
    )
    return cluster, [name for name in seen if told[name] is None]


def _arrange(
    workload: Workload, settings: AdviseSettings, cluster: Cluster, costs: Costs
) -> tuple[Workload, float | None]:
    """The arrivals as asked for, and the load they make: bound on the time of the work over the arrivals' span."""
    outputs = np.maximum(1, workload.output_tokens)
    room = cluster.devices[0].kv_blocks * settings.block_size
    fits = workload.prompt_tokens + outputs <= room
    if not fits.any():
        longest = int((workload.prompt_tokens + outputs).min())
        raise ConfigError(
            f"no request of {workload.name!r} fits: the shortest has {longest:,} tokens, and kv_blocks hold {room:,}"
        )
    prompts, outputs, lanes = np.where(fits, workload.prompt_tokens, 1), np.where(fits, outputs, 1), Lanes.of(cluster)
    if settings.offline:
        return workload.offline(), None
    if settings.rate_scale is not None:
        workload = workload.scaled(settings.rate_scale)
    span = float(np.ptp(workload.arrival_s))
    if settings.load is not None:
        if not span > 0:
            raise ConfigError(f"workload {workload.name!r} has no span of time to scale to a load; use offline")
        factor = rate_for_load(workload.arrival_s, prompts, outputs, costs, lanes, settings.load)
        return workload.scaled(factor), settings.load
    return workload, work_seconds(prompts, outputs, costs, lanes) / span if span > 0 else None


# -- runs


def _simulate(workload: Workload, cluster: Cluster, costs: Costs, progress: Progress | None) -> list[dict[str, Any]]:
    """The figures of continuous batching and of the default policy."""
    runs = []
    for number, name in enumerate((PLAIN, DEFAULT), 1):
        figures = run(
            workload, cluster, costs, policy_named(name), tick=_tick(progress, name, number, workload)
        ).figures
        runs.append(figures)
    return runs


def _tick(progress: Progress | None, name: str, number: int, workload: Workload) -> Callable[[int, float], None] | None:
    if progress is None:
        return None

    def tick(ended: int, simulated_s: float) -> None:
        progress(
            ProgressUpdate(
                policy=name, phase="running", run=number, runs=2, requests_ended=ended, requests_total=len(workload),
                simulated_s=simulated_s,
            )
        )  # fmt: skip

    return tick


def _that_matter(shares: Sequence[tuple[AffineCosts, float]], chosen: float) -> list[tuple[AffineCosts, float]]:
    """Of the surfaces that the log allows, those where imbalance costs other than on the chosen one; the most first."""
    apart = [(costs, share) for costs, share in shares if abs(share - chosen) > MATTERS]
    return sorted(apart, key=lambda pair: -abs(pair[1] - chosen))[:ALTERNATIVES]


def _batches(found: Fit, workload: Workload, cluster: Cluster) -> list[Load]:
    """Batches of the trace's requests, each somewhere on its way, of as many members as the log had."""
    draw = np.random.default_rng(0)
    room = cluster.devices[0].kv_blocks * cluster.layout.block_size
    batches = []
    for _ in range(BATCHES):
        picked = draw.integers(0, len(workload), min(found.most_members, cluster.lanes[0].max_members))
        made = (draw.random(len(picked)) * workload.output_tokens[picked]).astype(np.int64)
        lengths = workload.prompt_tokens[picked] + made + 1
        lengths = lengths[np.cumsum(lengths) <= room]
        if len(lengths):
            batches.append(Load(len(lengths), int(lengths.sum()), int(lengths.max())))
    return batches


def _imbalance(costs: Costs, batches: Sequence[Load]) -> float:
    """The share of such steps' time that their imbalance costs."""
    whole = sum(map(costs.step_seconds, batches))
    return 1.0 - sum(map(costs.balanced_seconds, batches)) / whole if whole else 0.0
