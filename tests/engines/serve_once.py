"""vLLM engines in a process of their own, one after the other: loads in, tokens and figures out, as JSON.

    python -m tests.engines.serve_once FILE OUT

A process of their own, because vLLM sets up a good deal that lasts as long as its process; one for several engines,
because importing it takes longest.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from attrs import asdict, evolve, field, frozen

QUIET = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "OMP_NUM_THREADS": "1",
}


@frozen
class Job:
    """What to serve, and how. ``prompts`` and ``outputs`` are token counts, a request each; tokens come from a formula.

    ``scheduler`` is a class of the adapter ("" for vLLM's own), ``settings`` are its settings, ``connector`` that of
    the KV (with ``host_gib``). ``rounds`` repeats the load; ``several_processes`` puts the engine's core into another.
    """

    model: str
    prompts: list[int]
    outputs: list[int]
    scheduler: str = ""
    settings: dict[str, Any] = field(factory=dict)
    connector: str = ""
    host_gib: float = 0.25
    blocks: int = 2000
    seats: int = 64
    caching: bool = False
    several_processes: bool = False
    rounds: int = 1

    def of(self, **changes: Any) -> Job:
        """The same with changes."""
        return evolve(self, **changes)


def prompt(number: int, tokens: int) -> list[int]:
    """A prompt that no other request begins alike."""
    return [(7 * number + 13 * at + at * at) % 500 for at in range(tokens)]


def serve(jobs: list[Job], folder: Path) -> list[dict[str, Any]]:
    """Run jobs in another process; their figures. Raises RuntimeError with its last words if it fails."""
    told, out = folder / "jobs.json", folder / "outcome.json"
    told.write_text(json.dumps([asdict(job) for job in jobs]))
    out.unlink(missing_ok=True)
    environment = {**os.environ, **QUIET, "VLLM_ENABLE_V1_MULTIPROCESSING": str(int(jobs[0].several_processes))}
    done = subprocess.run(
        [sys.executable, "-m", "tests.engines.serve_once", str(told), str(out)],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode or not out.exists():
        raise RuntimeError(f"the engine failed (exit {done.returncode}): {done.stdout[-2000:]}{done.stderr[-6000:]}")
    figures: list[dict[str, Any]] = json.loads(out.read_text())
    return figures


def engine(job: Job) -> Any:
    """The engine of a job, in this process."""
    from vllm import LLM

    more: dict[str, Any] = {}
    if job.scheduler:
        more["scheduler_cls"] = f"alignedsched.adapters.vllm.{job.scheduler}"
        more["additional_config"] = {"alignedsched": job.settings}
    if job.connector:
        module, _, name = job.connector.rpartition(".")
        more["kv_transfer_config"] = {
            "kv_connector": name,
            "kv_connector_module_path": module,
            "kv_role": "kv_both",
            "kv_connector_extra_config": {"host_gib": job.host_gib},
        }
    arguments: dict[str, Any] = {
        "model": job.model, "dtype": "float32", "max_model_len": 4096, "max_num_seqs": job.seats,
        "max_num_batched_tokens": 2048, "enforce_eager": True, "seed": 0, "block_size": 32,
        "num_gpu_blocks_override": job.blocks, "enable_prefix_caching": job.caching, "disable_log_stats": True,
    }  # fmt: skip
    return LLM(**arguments, **more)


def _measure(llm: Any, job: Job) -> dict[str, Any]:
    from vllm import SamplingParams

    prompts = [{"prompt_token_ids": prompt(number, tokens)} for number, tokens in enumerate(job.prompts)]
    sampling = [SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True) for tokens in job.outputs]
    scheduler = None if job.several_processes else llm.llm_engine.engine_core.engine_core.scheduler
    steps = {"steps": 0, "computed": 0}
    if scheduler is not None:
        plain = scheduler.schedule

        def counted(*args: Any) -> Any:
            step = plain(*args)
            steps["steps"] += 1
            steps["computed"] += step.total_num_scheduled_tokens
            return step

        scheduler.schedule = counted
    seconds, answers = [], []
    for _ in range(job.rounds):
        begun = time.process_time()
        answers = llm.generate(prompts, sampling, use_tqdm=False)
        seconds.append(time.process_time() - begun)
    figures: dict[str, Any] = {"tokens": [list(answer.outputs[0].token_ids) for answer in answers], **steps}
    figures |= {"cpu_s": seconds, "output_tokens": sum(job.outputs)}
    if scheduler is not None:
        figures["scheduler"] = type(scheduler).__name__
        figures["counts"] = getattr(scheduler, "aligned_counts", {})
        figures["on"] = getattr(scheduler, "aligned_hooks", None) is not None
        if job.connector:
            figures["copied"] = [scheduler.connector.copied_out, scheduler.connector.copied_back]
        scheduler.shutdown()
    return figures


def main() -> None:
    """The command."""
    from vllm.distributed.kv_transfer import ensure_kv_transfer_shutdown

    told, out = map(Path, sys.argv[1:])
    figures = []
    for job in (Job(**content) for content in json.loads(told.read_text())):
        llm = engine(job)
        figures.append(_measure(llm, job))
        llm.llm_engine.engine_core.shutdown()
        ensure_kv_transfer_shutdown()
        del llm
        gc.collect()
    out.write_text(json.dumps(figures))


if __name__ == "__main__":
    main()
