"""vLLM's own scheduler tests with the adapter's classes: they have to pass wherever they pass with vLLM's.

    python -m tests.engines.upstream --sdist vllm-0.32.0.tar.gz --work FOLDER

The tests come from vLLM's source distribution (they are not in its wheels) and run unchanged: a plugin puts our classes
where they import vLLM's. What fails then is run again without the plugin; it counts as ours if it passes there, unless
it is among EXCEPTIONS. Models are made on the spot; what needs one of the hub's, or pictures, fails with both.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import xml.etree.ElementTree as ET
from pathlib import Path

from tests.engines.models import hub_names

HERE = Path(__file__).resolve().parent
FILES = (
    "test_async_scheduler.py",
    "test_deferred_block_free.py",
    "test_mamba_align_chunk_split.py",
    "test_prefix_replay.py",
    "test_priority_preemption_bug.py",
    "test_priority_scheduler_random.py",
    "test_reset_prefix_cache_e2e.py",
    "test_scheduler.py",
    "test_scheduler_e2e.py",
    "test_swa_inflight_window_free.py",
    "test_worker_slot_overflow.py",
)

# Tests that pass with vLLM's classes and not with ours, and why that is right.
EXCEPTIONS: dict[str, str] = {}


def unpack(sdist: Path, work: Path) -> Path:
    """The tests alone, without the package's source, which would hide what is installed."""
    with tarfile.open(sdist) as archive:
        root = archive.getnames()[0].split("/")[0]
        wanted = [m for m in archive if m.name.startswith(f"{root}/tests/") or m.name == f"{root}/pyproject.toml"]
        shutil.rmtree(work / root, ignore_errors=True)
        archive.extractall(work, wanted, filter="data")
    return work / root


def outcomes(root: Path, tests: list[str], *, ours: bool) -> dict[str, bool | None]:
    """Run tests; whether each passed, None where it was skipped."""
    report = root / "report.xml"
    report.unlink(missing_ok=True)
    quiet = {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "PYTHONPATH": os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=no", f"--junitxml={report}"]
    command += ["-p", "swapped"] if ours else []
    done = subprocess.run([*command, *tests], cwd=root, env={**os.environ, **quiet}, check=False)
    if not report.exists():
        raise SystemExit(f"pytest wrote no report (exit {done.returncode})")
    found: dict[str, bool | None] = {}
    for case in ET.parse(report).getroot().iter("testcase"):
        where = case.get("classname", "").replace(".", "/")
        marks = {child.tag for child in case}
        passed = None if "skipped" in marks else not marks & {"failure", "error"}
        found[f"{where}.py::{case.get('name')}"] = passed
    return found


def main() -> int:
    """The command; its exit code is 1 if a test is lost."""
    parser = argparse.ArgumentParser(description="vLLM's scheduler tests with the adapter's classes")
    parser.add_argument("--sdist", type=Path, required=True, help="vllm-VERSION.tar.gz, or a folder that has one")
    parser.add_argument("--work", type=Path, required=True, help="a folder to unpack into")
    options = parser.parse_args()
    sdist = options.sdist if options.sdist.is_file() else next(options.sdist.glob("vllm-*.tar.gz"))
    root = unpack(sdist, options.work.resolve())
    hub_names(root)
    with_ours = outcomes(root, [f"tests/v1/core/{name}" for name in FILES], ours=True)
    failed = [test for test, passed in with_ours.items() if passed is False]
    with_vllms = outcomes(root, failed, ours=False) if failed else {}
    lost = [test for test in failed if with_vllms.get(test) is not False and test not in EXCEPTIONS]
    excepted = [test for test in failed if test in EXCEPTIONS and with_vllms.get(test) is not False]
    passed = sum(1 for outcome in with_ours.values() if outcome)
    both = len(failed) - len(lost) - len(excepted)
    said = [
        f"{len(with_ours)} tests of {sdist.name}: {passed} pass with our classes, {len(failed)} fail,",
        f"{both} of these with vLLM's classes too; {len(excepted)} are exceptions.",
        *(f"  exception: {test}: {EXCEPTIONS[test]}" for test in excepted),
        *(f"  LOST: {test}" for test in lost),
    ]
    sys.stdout.write("\n".join(said) + "\n")
    return 1 if lost else 0


if __name__ == "__main__":
    raise SystemExit(main())
