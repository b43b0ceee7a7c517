"""Tests of the adapters: those that need an engine are left out with a word where it is not installed."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest

ENGINES = {"transformers": ("torch", "transformers")}  # part of a file's name: distributions it needs


def _missing(path: Path) -> str:
    for engine, needs in ENGINES.items():
        for name in needs if engine in path.stem else ():
            try:
                metadata.version(name)
            except metadata.PackageNotFoundError:
                return name
    return ""


class Absent(pytest.Module):
    """A test file that cannot be imported."""

    def collect(self) -> list[pytest.Item]:
        raise pytest.skip.Exception(f"{_missing(self.path)} is not installed")


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    return Absent.from_parent(parent, path=module_path) if _missing(module_path) else None
