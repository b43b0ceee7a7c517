"""What every test shares: hypothesis profiles that repeat themselves, and the optional folder of measured data."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Where there is no GPU, Triton's kernels run in its interpreter; it wants to know before anything imports it.
# `TRITON_INTERPRET=0` runs the tests of kernels on a GPU.
os.environ.setdefault("TRITON_INTERPRET", "1")

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"

# The default draws the same examples each time: a red test is red for everybody. `HYPOTHESIS_PROFILE=thorough` looks
# further, with new examples each time. No deadlines: a slow machine is no failure.
_QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large]
settings.register_profile(
    "steady", derandomize=True, deadline=None, database=None, max_examples=50, suppress_health_check=_QUIET
)
settings.register_profile("thorough", deadline=None, max_examples=2000, print_blob=True, suppress_health_check=_QUIET)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "steady"))


@pytest.fixture(scope="session")
def root() -> Path:
    """The project's folder."""
    return ROOT


@pytest.fixture(scope="session")
def shared_traces() -> Path:
    """The folder of recorded traces; the test is skipped where there is none."""
    return _shared("traces")


@pytest.fixture(scope="session")
def shared_profiles() -> Path:
    """The folder of measured profiles; the test is skipped where there is none."""
    return _shared("profiles")


def _shared(name: str) -> Path:
    folder = SHARED / name
    if not folder.is_dir() or not os.access(folder, os.R_OK):
        pytest.skip(f"needs the optional folder ../shared/{name}, which is not here")
    return folder
