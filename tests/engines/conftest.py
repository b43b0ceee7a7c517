"""Tests with real engines: left out with a word where vLLM is not installed (`make test-engines` installs it)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.missing import absent, missing

QUIET = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}


MISSING = all(missing((package,)) for package in ("vllm", "vllm-cpu"))  # either will do
if not MISSING:
    os.environ.update(QUIET)  # before anything imports vllm


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    return absent(parent, module_path, "needs vLLM, which is not installed: make test-engines") if MISSING else None


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny random llama."""
    from tests.engines.models import tiny_llama

    return tiny_llama(tmp_path_factory.mktemp("model"))
