"""Tests of the kernels: left out with a word where torch or triton is not installed, one thread each where they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.missing import absent, missing

MISSING = missing(("torch", "safetensors", "triton"))


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    why = f"needs the extra alignedsched[kernels]: {MISSING} is not installed"
    return absent(parent, module_path, why) if MISSING else None


if not MISSING:
    import torch

    torch.set_num_threads(1)
