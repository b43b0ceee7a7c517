"""One rank's step as the few numbers its cost depends on, and what an executor publishes about that cost.

This much the scheduler knows of costs; it is kept free of numpy, which would be half of its import time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from attrs import frozen

from .errors import CallerError, ConfigError

if TYPE_CHECKING:
    from .arrays import FloatArray

SURFACES = ("balanced", "gated", "unsplit", "padded")


@frozen
class Load:
    """One rank's step: decode members, the sum of their context lengths, the longest, and prefill chunks.

    Chunks are (start, end) in tokens of their request. The numbers are trusted, not checked: schedulers make millions.
    """

    n: int
    total: int
    longest: int
    chunks: tuple[tuple[int, int], ...] = ()


@runtime_checkable
class Costs(Protocol):
    """What a rank's step costs, in seconds. A load without members and chunks costs nothing."""

    @property
    def surface(self) -> str:
        """The name of the surface."""
        ...

    def step_seconds(self, load: Load) -> float:
        """One rank's step, host time included."""
        ...

    def balanced_seconds(self, load: Load) -> float:
        """The same step if imbalance among its members cost nothing; at most ``step_seconds``."""
        ...

    def finishing_times(self, load: Load, steps: int) -> FloatArray:
        """Seconds until each of the next ``steps`` uniform steps ends, shape (steps,).

        Step j has ``total + n·j`` and ``longest + j``. Decode only. O(steps). Raises CallerError when the load has
        chunks or ``steps`` is below 1.
        """
        ...


def check_uniform(steps: int, *loads: Load) -> None:
    """Raise CallerError unless the next ``steps`` uniform steps of these loads can be foreseen."""
    if steps < 1:
        raise CallerError(f"steps must be at least 1, got {steps!r}")
    for load in loads:
        if load.chunks:
            raise CallerError(f"finishing times are of decode-only loads; this one has chunks {load.chunks!r}")


def check_surface(instance: object, attribute: Any, value: object) -> None:
    """Raise ConfigError unless ``value`` names a closed-form surface (an attrs validator)."""
    if value not in SURFACES:
        raise ConfigError(f"{type(instance).__name__}: surface must be one of {', '.join(SURFACES)}, got {value!r}")
