"""Leave the tests of a folder out, with a word why, where a package they need is not installed."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import pytest


def missing(packages: Iterable[str]) -> str:
    """The first of these packages that is not installed, or nothing.

    By what is installed, not by what can be imported: the folder ``tests/torch`` would pass for a module called torch.
    """
    for name in packages:
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            return name
    return ""


class Absent(pytest.Module):
    """A test file that cannot be imported, and says why."""

    why: str

    def collect(self) -> list[pytest.Item]:
        raise pytest.skip.Exception(self.why)


def absent(parent: pytest.Collector, path: Path, why: str) -> pytest.Module:
    """What stands in for the test file at ``path``."""
    module: Absent = Absent.from_parent(parent, path=path)
    module.why = why
    return module
