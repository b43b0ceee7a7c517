"""No kernel reads or writes a byte behind or before what it was given; see ``guarded``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("side", ["behind", "before"])
def test_no_kernel_touches_memory_that_it_was_not_given(side: str, root: Path) -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": f"{root / 'src'}{os.pathsep}{root}"}
    run = subprocess.run(
        [sys.executable, "-m", "tests.kernels.guarded", side],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, f"ended by {run.returncode} in {run.stdout.splitlines()[-1:]}: {run.stderr[-2000:]}"
    assert run.stdout.splitlines()[-1] == "done"
