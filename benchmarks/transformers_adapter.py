"""transformers' continuous batching under its own schedulers and under ours, in turn, in one process.

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python -m benchmarks.transformers_adapter \
        [--runs 3] [--json benchmarks/results/transformers_adapter.json]

A tiny random Llama (vocabulary 512, hidden 128, 4 layers, 4 heads, 2 of them for keys and values), ``sdpa``, float32,
one thread; 64 new tokens each. In every run each case serves the same requests, in an order that changes from run to
run, and is compared with FIFO of the same run: CPU time of the whole process, which a loaded machine disturbs less than
wall time, though it does. ``fifo_again`` is FIFO a second time: how far its ratio is from 1 is what noise does. The
adapter learns what steps cost anew in each run, as it does for a user.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import transformers
from attrs import define, field, frozen
from transformers import ContinuousBatchingConfig, GenerationConfig, LlamaConfig, LlamaForCausalLM
from transformers.generation.continuous_batching.offloading_manager import OffloadingManager
from transformers.generation.continuous_batching.scheduler import SCHEDULER_MAPPING, Scheduler

from alignedsched.adapters import transformers as adapter
from alignedsched.adapters.transformers_costs import PackedCosts

VOCAB, NEW, STEP_TOKENS, PAGE = 512, 64, 512, 16
# What one machine fitted; the rounds of `cost_aligned` are shown with it, as published costs.
FITTED = PackedCosts(t0=2e-3, per_row=2e-5, per_key=6e-7, per_pair=3.3e-8)


@frozen
class Mix:
    """Requests: prompts of 16 to 64 tokens, a ``share`` of them ``long``; and the blocks there are for their KV."""

    requests: int
    share: float
    long: tuple[int, int]
    blocks: int
    new: int = NEW
    host_gib: float = 0.0

    def prompts(self) -> list[list[int]]:
        rng = random.Random(0)
        lengths = [
            rng.randint(*self.long) if rng.random() < self.share else rng.randint(16, 64) for _ in range(self.requests)
        ]
        return [[rng.randrange(VOCAB) for _ in range(length)] for length in lengths]


MIXES = {
    "short": Mix(32, 0.25, (256, 1024), 512),
    "longer": Mix(32, 0.25, (1500, 2500), 1024),
    "kv_short": Mix(32, 0.25, (256, 1024), 160),
    "kv_short_host": Mix(32, 0.25, (256, 1024), 160, host_gib=0.1),
    "many": Mix(256, 0.0, (16, 64), 2048, new=16),
}
STOCK = ("fifo", "fifo_again", "prefill_first")
OURS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "cost_aligned": ("cost_aligned", {}),
    "cost_aligned_rounds": ("cost_aligned", {"parts": False, "costs": FITTED, "refit": False}),
    "fcfs": ("fcfs", {}),
    "fcfs_not_parted": ("fcfs", {"parts": False}),
    "density_first": ("density_first", {}),
    "sjf": ("sjf", {}),
    "waves": ("waves", {}),
    "buckets": ("buckets", {}),
}
FEW = ("fifo", "fifo_again", "prefill_first", "cost_aligned", "fcfs_not_parted")
ALL_CASES = ("short", "longer", "kv_short")  # mixes served in every case; the others in few


@define
class Counts:
    """What happened in one run."""

    cpu_s: float = 0.0
    deciding_s: float = 0.0
    steps: int = 0
    evictions: int = 0
    copied_out: int = 0
    tokens: list[list[int]] = field(factory=list)


@contextmanager
def counted(counts: Counts, kind: Any) -> Iterator[None]:
    """Count and time what schedulers and the offloading manager do."""
    schedule, offload = kind.schedule_batch, OffloadingManager.offload_requests
    copy_out = OffloadingManager._offload_to_cpu

    def schedule_batch(self: Scheduler, tokens: int, keys: int) -> Any:
        began = time.thread_time()
        batch = schedule(self, tokens, keys)
        counts.deciding_s += time.thread_time() - began
        counts.steps += bool(batch[0])
        return batch

    def offload_requests(self: OffloadingManager) -> bool:
        before = len(self.scheduler.active_requests)
        done: bool = offload(self)
        counts.evictions += before - len(self.scheduler.active_requests)
        return done

    def offload_to_cpu(self: OffloadingManager, *victims: Any) -> set[str]:
        out: set[str] = copy_out(self, *victims)
        counts.copied_out += len(out)
        return out

    with (
        mock.patch.object(kind, "schedule_batch", schedule_batch),
        mock.patch.object(OffloadingManager, "offload_requests", offload_requests),
        mock.patch.object(OffloadingManager, "_offload_to_cpu", offload_to_cpu),
        mock.patch.object(torch, "empty", _unpinned(torch.empty)),  # pinned memory needs an accelerator
    ):
        yield


def _unpinned(real: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    return lambda *size, pin_memory=False, **more: real(*size, **more)


def tiny() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=128, intermediate_size=256, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=4096, eos_token_id=None,
    )  # fmt: skip
    config._attn_implementation = "sdpa"
    model: Any = LlamaForCausalLM(config)
    return model.eval()


def serve(model: Any, name: str, mix: Mix) -> Counts:
    """One mix under the scheduler of this name."""
    counts, prompts = Counts(), mix.prompts()
    scheduler = "fifo" if name == "fifo_again" else name
    batching = ContinuousBatchingConfig(
        page_size=PAGE, num_blocks=mix.blocks, max_batch_tokens=STEP_TOKENS, max_requests_per_batch=256,
        use_cuda_graph=False, scheduler_type=scheduler, cpu_offload_space=mix.host_gib,
    )  # fmt: skip
    settings: Any = GenerationConfig
    greedy = settings(max_new_tokens=mix.new, do_sample=False, eos_token_id=-1, pad_token_id=0)
    with counted(counts, SCHEDULER_MAPPING[scheduler]):
        began = time.process_time()
        made = model.generate_batch(
            prompts, generation_config=greedy, continuous_batching_config=batching, warmup=False
        )
        counts.cpu_s = time.process_time() - began
    counts.tokens = [list(answer.generated_tokens) for answer in made.values()]
    assert all(len(tokens) == mix.new for tokens in counts.tokens)
    return counts


def row(runs: list[Counts], base: list[Counts], mix: Mix) -> dict[str, Any]:
    """The figures of one case."""
    ratios = [mine.cpu_s / stock.cpu_s for mine, stock in zip(runs, base, strict=True)]
    made = mix.requests * mix.new
    return {
        "cpu_s": [round(run.cpu_s, 3) for run in runs],
        "tokens_per_cpu_s_median": round(made / statistics.median(run.cpu_s for run in runs), 1),
        "cpu_against_fifo": {
            "median": round(statistics.median(ratios), 3), "least": round(min(ratios), 3),
            "most": round(max(ratios), 3),
        },
        "deciding_us_per_step": round(statistics.median(1e6 * run.deciding_s / run.steps for run in runs), 1),
        "deciding_share_of_cpu": round(statistics.median(run.deciding_s / run.cpu_s for run in runs), 4),
        "steps": statistics.median_low(run.steps for run in runs),
        "evictions": sorted({run.evictions for run in runs}),
        "copied_out": sorted({run.copied_out for run in runs}),
        "answers_as_fifo": min(
            sum(a == b for a, b in zip(run.tokens, stock.tokens, strict=True))
            for run, stock in zip(runs, base, strict=True)
        ),
    }  # fmt: skip


def measure(runs: int, mixes: list[str]) -> Iterator[dict[str, Any]]:
    """The result so far, after every mix."""
    torch.set_num_threads(1)
    model = tiny()
    results: dict[str, Any] = {}
    for name, (policy, options) in OURS.items():
        adapter.register(policy, name=name, **options)
    serve(model, "fifo", Mix(4, 0.5, (256, 512), 512))  # what the first steps of a process cost is nobody's
    for mix_name in mixes:
        mix, cases = MIXES[mix_name], list((*STOCK, *OURS) if mix_name in ALL_CASES else FEW)
        seen: dict[str, list[Counts]] = {case: [] for case in cases}
        for run in range(runs):
            for case in cases[run % len(cases) :] + cases[: run % len(cases)]:
                seen[case].append(serve(model, case, mix))
        results[mix_name] = {
            "prompt_tokens": sum(map(len, mix.prompts())),
            "output_tokens": mix.requests * mix.new,
            "cases": {case: row(seen[case], seen["fifo"], mix) for case in cases},
        }
        show(mix_name, results[mix_name])
        yield {
            "what": "CPU seconds to serve a mix, against transformers' FIFO scheduler of the same run",
            "command": "OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python -m benchmarks.transformers_adapter",
            "runs": runs,
            "mixes": results,
            "versions": {"transformers": transformers.__version__, "torch": torch.__version__},
            "machine": {
                "cpus": os.cpu_count(),
                "python": platform.python_version(),
                "load_average_1_min": round(os.getloadavg()[0], 2),
            },
            "caveat": "a shared machine under load: CPU times include what its neighbours do to caches and clocks",
        }


def show(name: str, result: dict[str, Any]) -> None:
    print(f"\n{name}: {result['prompt_tokens']} prompt tokens, {result['output_tokens']} output tokens")
    print(f"{'case':20s} tok/CPU s  CPU/fifo (least-most)  steps  evictions  us/decision  share  as fifo")
    for case, r in result["cases"].items():
        ratio = r["cpu_against_fifo"]
        print(
            f"{case:20s} {r['tokens_per_cpu_s_median']:9.0f}  {ratio['median']:.2f} ({ratio['least']:.2f}-"
            f"{ratio['most']:.2f})      {r['steps']:5d}  {r['evictions']!s:9s}  {r['deciding_us_per_step']:11.0f}  "
            f"{r['deciding_share_of_cpu']:.2%}  {r['answers_as_fifo']}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--mix", action="append", choices=MIXES, help="only these mixes")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    for result in measure(given.runs, given.mix or list(MIXES)):
        if given.json is not None:
            given.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
