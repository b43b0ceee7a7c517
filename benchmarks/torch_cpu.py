"""Tokens per CPU second: the torch engine against transformers' continuous batching, same model, requests and process.

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python -m benchmarks.torch_cpu [--json benchmarks/results/torch_cpu.json]

A tiny random Llama (vocabulary 512, hidden 128, 4 layers, 4 heads, 2 of them for keys and values), 32 requests: three
quarters with prompts of 16 to 64 tokens, a quarter of 256 to 1,024, 64 new tokens each, one thread, float32. Both
engines take turns; the figure is CPU time of the whole process, which a loaded machine disturbs less than wall time,
though it does. What counts as overhead is everything outside ``Forward``'s step: scheduling, page tables, reports,
handing answers to the caller.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from alignedsched_torch.engine import Engine
from alignedsched_torch.forward import Forward
from alignedsched_torch.tiny import write_tiny

NEW, PAGE, KV_TOKENS, STEP_TOKENS = 64, 16, 8192, 512
RUNS = 5


def requests() -> list[list[int]]:
    """32 prompts, short and long ones mixed."""
    rng = np.random.default_rng(0)
    lengths = np.where(rng.random(32) < 0.75, rng.integers(16, 65, 32), rng.integers(256, 1025, 32))
    return [rng.integers(0, 512, int(length)).tolist() for length in lengths]


class Ours:
    """The engine, with the CPU time of its forward passes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.forward_s = 0.0
        self.steps = 0

    def run(self, prompts: list[list[int]]) -> list[list[int]]:
        self.forward_s = 0.0
        original = Forward._compute

        def timed(forward: Forward, *arguments: Any) -> torch.Tensor:
            began = time.thread_time()
            made = original(forward, *arguments)
            self.forward_s += time.thread_time() - began
            return made

        Forward._compute = timed  # type: ignore[method-assign, assignment]
        try:
            with Engine(self.folder, kv_tokens=KV_TOKENS, page_size=PAGE, max_tokens=STEP_TOKENS) as engine:
                answers = engine.generate(prompts, max_new_tokens=NEW)
                self.steps = engine.figures()["steps"]
        finally:
            Forward._compute = original  # type: ignore[method-assign]
        return [list(answer.tokens) for answer in answers]


class Theirs:
    """transformers' continuous batching, as its documentation sets it up for a CPU."""

    def __init__(self, folder: Path) -> None:
        import transformers

        self.model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="sdpa"
        )
        self.batching = transformers.ContinuousBatchingConfig(
            page_size=PAGE, num_blocks=KV_TOKENS // PAGE, max_batch_tokens=STEP_TOKENS, max_requests_per_batch=256,
            use_cuda_graph=False,
        )  # fmt: skip
        self.config = transformers.GenerationConfig(  # type: ignore[no-untyped-call, unused-ignore]
            max_new_tokens=NEW, do_sample=False, eos_token_id=-1, pad_token_id=0
        )

    def run(self, prompts: list[list[int]]) -> list[list[int]]:
        made = self.model.generate_batch(
            prompts, generation_config=self.config, continuous_batching_config=self.batching, warmup=False
        )
        return [list(made[name].generated_tokens) for name in sorted(made, key=lambda n: int(n.rpartition("_")[2]))]


def measure(runs: int) -> dict[str, Any]:
    """Both engines in turn, ``runs`` times after one that does not count."""
    import transformers

    torch.set_num_threads(1)
    prompts = requests()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_tiny(folder, "llama", vocab=512, hidden=128, layers=4, heads=4, kv_heads=2)
        ours, theirs = Ours(folder), Theirs(folder)
        seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
        overhead, equal = [], 0
        for turn in range(runs + 1):
            made = {}
            for name, engine in (("ours", ours), ("theirs", theirs)):
                began = time.process_time()
                made[name] = engine.run(prompts)
                spent = time.process_time() - began
                assert all(len(tokens) == NEW for tokens in made[name])
                if turn:
                    seconds[name].append(spent)
                    if name == "ours":
                        overhead.append(1 - ours.forward_s / spent)
            equal = sum(a == b for a, b in zip(made["ours"], made["theirs"], strict=True))
    tokens = NEW * len(prompts)
    best = {name: tokens / min(spent) for name, spent in seconds.items()}
    middle = {name: tokens / statistics.median(spent) for name, spent in seconds.items()}
    return {
        "what": "output tokens per CPU second of the process, tiny random Llama, 32 mixed requests, 1 thread, float32",
        "prompt_tokens": sum(map(len, prompts)),
        "output_tokens": tokens,
        "runs": runs,
        "cpu_s": {name: [round(s, 3) for s in spent] for name, spent in seconds.items()},
        "tokens_per_cpu_s_median": {name: round(value, 1) for name, value in middle.items()},
        "tokens_per_cpu_s_best": {name: round(value, 1) for name, value in best.items()},
        "ratio_median": round(middle["ours"] / middle["theirs"], 3),
        "ratio_best": round(best["ours"] / best["theirs"], 3),
        "overhead_outside_forward_median": round(statistics.median(overhead), 4),
        "overhead_outside_forward_best": round(min(overhead), 4),
        "steps": ours.steps,
        "answers_equal": equal,
        "answers": len(prompts),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "machine": {"cpus": os.cpu_count(), "load_average_1_min": round(os.getloadavg()[0], 2)},
        "caveat": "a shared machine under load: CPU times include what its neighbours do to caches and clocks",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    result = measure(given.runs)
    print(json.dumps(result, indent=2))
    if given.json is not None:
        given.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
