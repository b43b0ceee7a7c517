"""Everything that only a GPU can tell, in one command of at most nine minutes.

    python -m benchmarks.gpu [--json gpu.json] [--trace FILE ...]      on one NVIDIA GPU
    python -m benchmarks.gpu --smoke                                   the same on a CPU, tiny; its figures mean nothing

Sections, each in a process of its own with a time limit, so that one that fails or hangs costs the others nothing:

* ``attention``: decode attention against the copy bandwidth of the same run, uniform and skewed, and the libraries';
* ``copies``: scattered pages between host and device against one large copy;
* ``steps``: whole decode steps of Llama-3.1-8B's shape against the bytes they move, the host's work, and a prefetch;
* ``surface``: attention against batch composition for each kernel, fitted to the surfaces of ``docs/costs.md``;
* ``gain``: what aligning would gain on those surfaces.

At the end a table says which targets hold. The JSON has every measurement, hardware, clocks and versions.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from alignedsched_torch.calibrate.machine import machine
from benchmarks.gpu_attention import attention
from benchmarks.gpu_copies import copies
from benchmarks.gpu_gain import gain
from benchmarks.gpu_steps import steps
from benchmarks.gpu_surface import surface
from benchmarks.gpu_text import table, targets
from benchmarks.gpu_timing import Record, Size

# Seconds each section may take; what is left out of nine minutes is for starting five processes.
SECTIONS: dict[str, int] = {"attention": 90, "copies": 50, "steps": 135, "surface": 130, "gain": 80}
SMOKE_SECONDS = 60
GRACE = 10  # a section that has not ended so long after its time is ended
Rows = list[dict[str, Any]]


def run_section(name: str, size: Size, path: Path, seconds: float, before: Rows, traces: Sequence[str]) -> Rows:
    """Run one section in this process; its findings, which also stand in ``path`` line by line."""
    record = Record(path, time.monotonic() + seconds)
    surfaces = [row for row in before if row["what"] == "surface"]
    most = max((row["kv_heads"] for row in surfaces), default=0)
    work: dict[str, Callable[[], None]] = {
        "attention": lambda: attention(record, size),
        "copies": lambda: copies(record, size),
        "steps": lambda: steps(record, size),
        "surface": lambda: surface(record, size),
        "gain": lambda: gain(record, size, [row for row in surfaces if row["kv_heads"] == most], traces),
    }
    record.state(size, "begin")
    with torch.no_grad():
        work[name]()
    record.state(size, "end")
    return record.rows


def in_process(name: str, given: argparse.Namespace, before: Rows) -> dict[str, Any]:
    """Run one section in a process of its own: how it ended, how long it took, and all it found until then."""
    seconds = SMOKE_SECONDS if given.smoke else SECTIONS[name]
    with tempfile.TemporaryDirectory() as folder:
        out, known = Path(folder) / "rows.jsonl", Path(folder) / "before.json"
        known.write_text(json.dumps(before), encoding="utf-8")
        command = [sys.executable, "-m", "benchmarks.gpu", "--section", name, "--out", str(out), "--before", str(known)]
        command += ["--smoke"] if given.smoke else []
        for trace in given.trace:
            command += ["--trace", trace]
        began = time.monotonic()
        try:
            ended = subprocess.run(command, timeout=seconds + GRACE, capture_output=True, text=True, check=False)
            status = "done" if ended.returncode == 0 else f"failed: {ended.stderr.strip()[-2000:]}"
        except subprocess.TimeoutExpired:
            status = f"ended after {seconds + GRACE} s, its time was over"
        lines = out.read_text(encoding="utf-8").splitlines() if out.exists() else []
    return {"status": status, "seconds": round(time.monotonic() - began, 1), "rows": _parsed(lines)}


def _parsed(lines: Sequence[str]) -> Rows:
    """Rows of a section's file; the last line of one that was ended may be cut short."""
    rows = []
    for line in lines:
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """All sections, or those asked for, one after the other."""
    size = Size.of(given.smoke)
    result: dict[str, Any] = {
        "what": "a smoke run on a CPU: its figures mean nothing" if given.smoke else "measured on one GPU",
        "smoke": given.smoke,
        "machine": machine(size.device),
        "sections": {},
    }
    for name in given.only or SECTIONS:
        sys.stderr.write(f"{name} ...\n")
        before = result["sections"].get("surface", {}).get("rows", [])
        result["sections"][name] = in_process(name, given, before)
    result["targets"] = targets({} if given.smoke else result["sections"])
    return result


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="tiny, on a CPU: only to see that all of it runs")
    parser.add_argument("--json", type=Path, help="write everything that was measured")
    parser.add_argument("--trace", action="append", default=[], help="a trace file for the section `gain`; repeatable")
    parser.add_argument("--only", action="append", choices=list(SECTIONS), help="only this section; repeatable")
    for inner in ("--section", "--out", "--before"):
        parser.add_argument(inner, help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    if not given.smoke and not torch.cuda.is_available():
        sys.stderr.write("no CUDA GPU is there; --smoke runs the same code on a CPU\n")
        return 2
    if given.smoke:
        torch.set_num_threads(1)
    if given.section:
        before = json.loads(Path(given.before).read_text(encoding="utf-8"))
        seconds = SMOKE_SECONDS if given.smoke else SECTIONS[given.section]
        run_section(given.section, Size.of(given.smoke), Path(given.out), seconds, before, given.trace)
        return 0
    result = measure(given)
    print(table(result))
    if given.json is not None:
        given.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0 if all(part["status"] == "done" for part in result["sections"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
