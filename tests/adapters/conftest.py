"""Tests of the adapters: those that need an engine are left out with a word where it is not installed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.missing import absent, missing

ENGINES = {"transformers": ("torch", "transformers")}  # part of a file's name: distributions it needs


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    needs = [name for engine, names in ENGINES.items() if engine in module_path.stem for name in names]
    lacking = missing(needs)
    return absent(parent, module_path, f"{lacking} is not installed") if lacking else None
