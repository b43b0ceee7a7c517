"""Tests of the kernels: left out with a word where torch or triton is not installed."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest

NEEDS = ("torch", "safetensors", "triton")


def _missing() -> str:
    for name in NEEDS:
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            return name
    return ""


MISSING = _missing()


class Absent(pytest.Module):
    """A test file that cannot be imported."""

    def collect(self) -> list[pytest.Item]:
        raise pytest.skip.Exception(f"needs the extra alignedsched[kernels]: {MISSING} is not installed")


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    return Absent.from_parent(parent, path=module_path) if MISSING else None


if not MISSING:
    import torch

    torch.set_num_threads(1)
