"""A declared window of engine versions, checked when an adapter starts: outside it, one loud and clear error.

Adapters reach into engines beyond their public interface, so what is not tested is refused rather than hoped for.
"""

from __future__ import annotations

import os
import re
import warnings
from importlib.metadata import PackageNotFoundError, version

from attrs import frozen

from ..errors import ConfigError

ANY_VERSION = "ALIGNEDSCHED_ANY_ENGINE_VERSION"  # environment: comma-separated engines that are not checked


class EngineVersionWarning(UserWarning):
    """An engine outside the tested window is used because its user said so."""


@frozen
class Window:
    """The versions of an engine that an adapter's tests ran with: from ``first`` to ``last``, both releases included.

    ``packages`` are the distributions that may hold the engine, the first installed one counts. ``first`` and ``last``
    are compared as far as they are written: a window up to "5.23" includes 5.23.1.
    """

    engine: str
    packages: tuple[str, ...]
    first: str
    last: str

    def installed(self) -> tuple[str, str]:
        """Package and version of the engine. Raises ConfigError if it is not installed."""
        for package in self.packages:
            try:
                return package, version(package)
            except PackageNotFoundError:
                continue
        raise ConfigError(f"{self.engine} is not installed: none of the packages {', '.join(self.packages)} was found")

    def holds(self, found: str) -> bool:
        """Whether a version lies in the window; pre-releases of a release count as that release."""
        low, high = release(self.first), release(self.last)
        numbers = release(found)
        numbers += (0,) * (max(len(low), len(high)) - len(numbers))
        return numbers >= low and numbers[: len(high)] <= high

    def check(self, *, override: bool = False, found: str | None = None) -> str:
        """The engine's version, if it lies in the window or the user takes it upon himself; else ConfigError.

        It is overridden by ``override``, or by naming the engine in the environment variable
        ``ALIGNEDSCHED_ANY_ENGINE_VERSION``; that warns (EngineVersionWarning). ``found`` is looked up if not given.
        """
        package = self.engine
        if found is None:
            package, found = self.installed()
        if self.holds(found):
            return found
        window = f"{self.first} to {self.last}" if self.first != self.last else f"{self.first}"
        told = [name.strip() for name in os.environ.get(ANY_VERSION, "").split(",")]
        if override or self.engine in told:
            warnings.warn(
                f"{package} {found} is outside the tested versions of the alignedsched adapter ({window}); "
                "used because the check is overridden",
                EngineVersionWarning,
                stacklevel=2,
            )
            return found
        raise ConfigError(
            f"the alignedsched adapter for {self.engine} was tested with {window}, but {package} {found} is installed. "
            f"Install a tested version, or set {ANY_VERSION}={self.engine} to use this one untested"
        )


def release(text: str) -> tuple[int, ...]:
    """The release numbers that a version begins with: (5, 23, 0) of "5.23.0rc1+cpu". Raises ConfigError for none."""
    found = re.match(r"v?(?:\d+!)?(\d+(?:\.\d+)*)", text.strip())
    if found is None:
        raise ConfigError(f"{text!r} is no version: expected numbers with dots between them")
    return tuple(int(part) for part in found.group(1).split("."))
