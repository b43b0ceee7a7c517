"""The kernels compile for a Hopper GPU, with no GPU here, and fit as many at once as cover the memory's latency."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from alignedsched_torch.kernels import build, device
from alignedsched_torch.kernels.options import PER_PROCESSOR

pytestmark = pytest.mark.timeout(300)  # the compiler takes some 12 s, many times that on a busy machine


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, root: Path) -> list[dict[str, Any]]:
    """All cases, compiled in a process of its own: this one interprets kernels."""
    cache = tmp_path_factory.mktemp("cache")
    environment = os.environ | {
        "TRITON_INTERPRET": "0",
        "TRITON_CACHE_DIR": str(cache),
        "PYTHONPATH": str(root / "src"),
    }
    run = subprocess.run(
        [sys.executable, "-m", "alignedsched_torch.kernels.build", "--json"],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return [json.loads(line) for line in run.stdout.splitlines()]


def test_every_case_is_built(built: list[dict[str, Any]]) -> None:
    assert [case["name"] for case in built] == [case.name for case in build.cases()]
    assert {case.kernel for case in build.cases()} == {name for name in vars(device) if name.endswith("_kernel")}


def test_nothing_is_spilled(built: list[dict[str, Any]]) -> None:
    assert {case["name"]: case["spilled"] for case in built if case["spilled"]} == {}


def test_kv_comes_by_asynchronous_copies_of_16_bytes_and_no_other(built: list[dict[str, Any]]) -> None:
    for case in built:
        if case["name"].startswith(("balanced", "unsplit")):
            narrow = {name: count for name, count in case["copies"].items() if name.startswith("LDGSTS")}
            assert set(narrow) == {"LDGSTS.128"}, case["name"]
            assert case["copies"]["LDGSTS.128"] >= 24, "K and V of the tiles in the pipeline"


def test_parts_and_pages_are_read_16_bytes_at_a_time(built: list[dict[str, Any]]) -> None:
    for case in built:
        if case["name"].startswith(("merge", "move_pages", "rope_write", "add_norm", "gate")):
            assert case["copies"].get("LDG.128"), case["name"]
    (moved,) = [case for case in built if case["name"].startswith("move_pages")]
    assert set(moved["copies"]) == {"LDG.128", "LDG.64", "STG.128"}, "64 bits: page numbers"


def test_registers_and_shared_memory_leave_room_for_the_wanted_programs(built: list[dict[str, Any]]) -> None:
    for case in built:
        assert case["programs"] >= case["wanted"], case["name"]
        assert case["wanted"] == (PER_PROCESSOR if case["name"].startswith(("balanced", "unsplit")) else 1)


def test_an_interpreted_process_says_that_it_compiles_nothing() -> None:
    if device.INTERPRETED:
        with pytest.raises(RuntimeError, match="TRITON_INTERPRET is set"):
            build.compiled(next(build.cases()))
