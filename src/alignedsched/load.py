"""One rank's step as the few numbers its cost depends on."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from attrs import frozen

from .errors import CallerError, ConfigError

SURFACES = ("balanced", "gated", "unsplit", "padded")
FloatArray = npt.NDArray[np.float64]


@frozen
class Load:
    """One rank's step: decode members, the sum of their context lengths, the longest, and prefill chunks.

    Chunks are (start, end) in tokens of their request. The numbers are trusted, not checked: schedulers make millions.
    """

    n: int
    total: int
    longest: int
    chunks: tuple[tuple[int, int], ...] = ()


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
