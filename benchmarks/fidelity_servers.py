"""How well simulated `fcfs` reproduces whole vLLM servers that were measured.

    python -m benchmarks.fidelity_servers [--profiles DIR] [--json FILE]

Each run is replayed: its arrivals and lengths, its limits, the same scheduler and simulated executor as everywhere.
Time to first token, time per output token and end-to-end time of every request are compared with the measured columns,
and so is the time of the whole run. No coefficient was fitted to these runs. The tables (casys-kaist/LLMServingSim) are
looked for in ``../shared/profiles`` beside the repository.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from attrs import asdict, frozen

from alignedsched.cluster import Cluster, Device, KVLayout, Lane, Role
from alignedsched.cost_model import ModelCosts
from alignedsched.errors import CallerError
from alignedsched.events import Event
from alignedsched.hardware import gpu_named, kv_blocks, model_named
from alignedsched.metrics import summarize
from alignedsched.plan import Plan
from alignedsched.policies import fcfs
from alignedsched.sim.run import run
from alignedsched.workloads import Workload
from benchmarks.fidelity_tables import PROFILES, ROOT, rows_of

RESULTS = ROOT / "benchmarks" / "results" / "fidelity_servers.json"
COLUMNS = ("arrival_s", "prompt_tokens", "output_tokens", "queued_s", "scheduled_s", "first_token_s", "last_token_s")
AIMS = {"tpot": 0.10, "ttft": 0.20}  # of the mean
QUEUED_S = 0.5  # no step of these runs took as long: whoever waited longer was held up by a limit on members or memory
LEFT_OUT = {
    "vllm_bench_rtxpro6000_qwen3-30b-a3b-instruct-2507": "a mixture of experts: the published tables hold no products "
    "of experts, so its step cannot be costed from measurements"
}
Floats = npt.NDArray[np.float64]
Figures = dict[str, dict[str, float]]


@frozen
class Server:
    """A measured run: its table, and the limits it ran under. ``blocks`` None: as many as the memory model says."""

    table: str
    gpu: str
    model: str
    max_members: int
    max_tokens: int = 2048
    blocks: int | None = None


# The limits are the runs' own (casys-kaist/LLMServingSim, bench, meta.json of each run): vLLM 0.19.0, bf16, one GPU.
SERVERS = (
    Server("vllm_bench_rtxpro6000_llama-3.1-8b", "rtxpro6000", "llama-3.1-8b", 128),
    Server("vllm_bench_rtx4090_llama-3.1-8b", "rtx4090", "llama-3.1-8b", 256, blocks=2588),
)


@frozen
class Variant:
    """How the server is modelled. The first one is how vLLM 0.19 runs: one step ahead, its host time overlapped."""

    name: str
    surface: str = "gated"
    run_ahead: int = 1
    overlap_host: bool = True


VARIANTS = (
    Variant("as vLLM runs"),
    Variant("balanced surface", surface="balanced"),
    Variant("unsplit surface", surface="unsplit"),
    Variant("padded surface", surface="padded"),
    Variant("no run-ahead, host time added", run_ahead=0, overlap_host=False),
)


@frozen(eq=False)
class Times:
    """Seconds from the first arrival on, each of shape (n,), and what each request produced."""

    arrival: Floats
    first: Floats
    last: Floats
    outputs: npt.NDArray[np.int64]

    def latencies(self) -> dict[str, Floats]:
        """Per request; ``tpot`` is of shape (requests with more than one token,)."""
        several = self.outputs > 1
        return {
            "ttft": self.first - self.arrival,
            "tpot": (self.last - self.first)[several] / (self.outputs - 1)[several],
            "e2e": self.last - self.arrival,
        }


@frozen(eq=False)
class Measured:
    """A measured run: what was asked, when its tokens came, and who waited longer than ``QUEUED_S`` to be scheduled."""

    workload: Workload
    times: Times
    waited: npt.NDArray[np.bool_]


@frozen
class Result:
    """One run under one variant, in seconds. ``error`` is simulated / measured - 1.

    ``per_request`` is the median size of the error of a single request, ``before_queue`` the mean time to first token
    of the requests before the first that had to queue.
    """

    table: str
    gpu: str
    variant: str
    requests: int
    measured: Figures
    simulated: Figures
    error: Figures
    per_request: dict[str, float]
    span_s: dict[str, float]
    before_queue: dict[str, float]
    steps: int
    preemptions: int
    aims_met: dict[str, bool]


def read(folder: Path, server: Server) -> Measured:
    """The run's table. Raises CallerError naming file, row and column of what is missing or no number."""
    path = folder / f"{server.table}.csv.gz"
    rows = list(rows_of(folder, server.table))
    columns: dict[str, Floats] = {name: np.empty(len(rows)) for name in COLUMNS}
    for at, row in enumerate(rows):
        for name, column in columns.items():
            try:
                column[at] = float(row[name])
            except (KeyError, TypeError, ValueError):
                raise CallerError(f"{path}, row {at + 1}: {name} must be a number, got {row.get(name)!r}") from None
    if not rows:
        raise CallerError(f"{path}: holds no requests")
    order = np.argsort(columns["arrival_s"], kind="stable")
    arrival, prompt, output, queued, scheduled, first, last = (columns[name][order] for name in COLUMNS)
    workload = Workload(server.table, arrival, prompt.astype(np.int64), output.astype(np.int64))
    times = Times(arrival, first, last, workload.output_tokens)
    return Measured(workload, times, scheduled - queued > QUEUED_S)


def cluster_of(server: Server, run_ahead: int) -> Cluster:
    """One GPU that prefills and decodes, under the server's limits."""
    model = model_named(server.model)
    blocks = kv_blocks(gpu_named(server.gpu), model) if server.blocks is None else server.blocks
    lane = Lane("lane", ("gpu",), run_ahead, server.max_members, server.max_tokens)
    layout = KVLayout(16, model.kv_bytes_per_token)
    return Cluster((Device("gpu", Role.BOTH, blocks),), (lane,), layout=layout, max_positions=model.max_positions)


def simulate(server: Server, workload: Workload, variant: Variant) -> tuple[Times, dict[str, Any]]:
    """Token times of the workload under ``fcfs`` on the modelled server, and the figures of the run."""
    costs = ModelCosts(
        gpu_named(server.gpu), model_named(server.model), 1, variant.surface, overlap_host=variant.overlap_host
    )
    released: list[int] = []
    place = {request.id: at for at, (request, _) in enumerate(workload.requests())}

    def watch(now: float, events: tuple[Event, ...], plan: Plan) -> None:
        released.extend(place[release.request] for release in plan.releases)

    result = run(workload, cluster_of(server, variant.run_ahead), costs, fcfs(), observe=watch)
    done = result.latency.finished_columns()
    if len(done["tokens"]) != len(workload):
        raise CallerError(f"{server.table}: not every request can be served, see {result.figures['requests']}")
    back = np.argsort(released)  # columns stand in order of release
    first, last = (np.asarray(done[name], dtype=np.float64)[back] for name in ("first", "last"))
    return Times(workload.arrival_s, first, last, workload.output_tokens), result.figures


def compare(server: Server, measured: Measured, variant: Variant) -> Result:
    """Errors of one run."""
    times, figures = simulate(server, measured.workload, variant)
    real, ours = measured.times.latencies(), times.latencies()
    asked, given = ({name: _figures(values) for name, values in side.items()} for side in (real, ours))
    error = {name: {key: _error(given[name][key], side[key]) for key in side} for name, side in asked.items()}
    return Result(
        server.table,
        server.gpu,
        variant.name,
        len(measured.workload),
        asked,
        given,
        error,
        {name: round(float(np.median(np.abs(ours[name] / real[name] - 1))), 4) for name in real},
        _pair(float(measured.times.last.max()), float(times.last.max())),
        _before_queue(measured.waited, real["ttft"], ours["ttft"]),
        int(figures["steps"]),
        int(figures["preemptions"]),
        {name: abs(error[name]["mean"]) <= aim for name, aim in AIMS.items()},
    )


def _error(simulated: float, measured: float) -> float:
    return round(simulated / measured - 1, 4)


def _pair(measured: float, simulated: float) -> dict[str, float]:
    return {"measured": round(measured, 4), "simulated": round(simulated, 4), "error": _error(simulated, measured)}


def _before_queue(waited: npt.NDArray[np.bool_], real: Floats, ours: Floats) -> dict[str, float]:
    """Mean TTFT of those that came before anybody had to wait: what steps cost, without what queueing makes of it."""
    early = np.logical_not(np.maximum.accumulate(waited))
    pair = _pair(float(real[early].mean()), float(ours[early].mean())) if early.any() else {}
    return {"requests": float(early.sum()), **pair}


def _figures(values: Floats) -> dict[str, float]:
    """Mean and quantiles, seconds; nothing where there are no values."""
    return {key: round(value, 6) for key, value in summarize(values).items() if value is not None}


def show(result: Result) -> None:
    """One run as the terminal sees it."""
    print(f"{result.table}: {result.variant}, {result.requests} requests, {result.preemptions} preemptions")
    print(f"  {'':5} {'figure':5} {'measured s':>11} {'simulated s':>12} {'error':>8}")
    for name, figures in result.measured.items():
        for key, value in figures.items():
            ours, error = result.simulated[name][key], result.error[name][key]
            print(f"  {name:5} {key:5} {value:11.4f} {ours:12.4f} {error:+8.1%}")
    spans, before = result.span_s, result.before_queue
    print(f"  whole run   {spans['measured']:11.1f} {spans['simulated']:12.1f} {spans['error']:+8.1%}")
    if before["requests"]:
        early = f"measured {before['measured']:.3f} s, simulated {before['simulated']:.3f} s, {before['error']:+.1%}"
        print(f"  mean ttft of the first {before['requests']:.0f} requests, before anybody queued: {early}")
    sizes = ", ".join(f"{name} {error:.1%}" for name, error in result.per_request.items())
    print(f"  median error of a single request: {sizes}")
    for name, met in result.aims_met.items():
        print(f"  mean {name} within {AIMS[name]:.0%}: {'met' if met else 'MISSED'}")


def show_variants(results: list[Result]) -> None:
    """Mean errors of every variant: what the result depends on."""
    print(f"{'mean errors by how the server is modelled':42} {'gpu':10} {'ttft':>8} {'tpot':>8} {'e2e':>8} {'run':>8}")
    for result in results:
        means = " ".join(f"{result.error[name]['mean']:+8.1%}" for name in ("ttft", "tpot", "e2e"))
        print(f"{result.variant:42} {result.gpu:10} {means} {result.span_s['error']:+8.1%}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fidelity_servers", description=__doc__.splitlines()[0])
    parser.add_argument("--profiles", type=Path, default=PROFILES, help="folder of the measured tables")
    parser.add_argument("--json", type=Path, default=RESULTS, help="where the result goes (default: %(default)s)")
    options = parser.parse_args(arguments)
    present = [server for server in SERVERS if (options.profiles / f"{server.table}.csv.gz").exists()]
    for absent in (server.table for server in SERVERS if server not in present):
        print(f"skipped: no measured run {absent} at {options.profiles} (name the folder with --profiles)")
    if not present:
        return 0
    results: list[Result] = []
    for server in present:
        measured = read(options.profiles, server)
        results += [compare(server, measured, variant) for variant in VARIANTS]
        show(results[-len(VARIANTS)])
    show_variants(results)
    for table, why in LEFT_OUT.items():
        print(f"left out: {table}: {why}")
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(report(results, options.profiles), indent=1) + "\n", encoding="utf-8")
    return 0


def report(results: list[Result], folder: Path) -> dict[str, object]:
    """What the JSON holds: versions, aims, the digest of each table, every result, and what is left out."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    versions = {"alignedsched": project["version"], "python": platform.python_version(), "numpy": np.__version__}
    tables = sorted({result.table for result in results})
    digests = {table: hashlib.sha256((folder / f"{table}.csv.gz").read_bytes()).hexdigest() for table in tables}
    return {
        "benchmark": "fidelity_servers",
        "versions": versions,
        "engine": "vLLM 0.19.0, bf16, one GPU",
        "aims": AIMS,
        "fitted_to_these_runs": [],
        "tables_sha256": digests,
        "results": [asdict(result) for result in results],
        "left_out": LEFT_OUT,
    }


if __name__ == "__main__":
    sys.exit(main())
