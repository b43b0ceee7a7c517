"""Tests of the torch executor: left out with a word where torch is not installed, one thread each where it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.missing import absent, missing

MISSING = missing(("torch", "safetensors", "tokenizers"))


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    why = f"needs the extra alignedsched[torch]: {MISSING} is not installed"
    return absent(parent, module_path, why) if MISSING else None


if not MISSING:
    import torch

    torch.set_num_threads(1)  # tests run side by side; threads that spin for each other's cores take many times as long
