"""The built-in workloads by name: shapes fitted to published traces, and synthetic extremes."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import ConfigError
from .columns import Workload
from .fitted import FITTED
from .synthesis import Arrivals, Giant, Marginal, Shape, synthesise

_OURS = "chosen for this library as an extreme; no trace"
_STEADY = Arrivals(6.0)

EXTREMES = (
    Shape(
        "uniform",
        f"{_OURS}: equal lengths, nothing to align",
        Marginal((0.0, 1.0), (1024, 1024)),
        Marginal((0.0, 1.0), (256, 256)),
        _STEADY,
    ),
    Shape(
        "bimodal",
        f"{_OURS}: 95 % short, 5 % of them about 64 times as long",
        Marginal((0.0, 0.95, 0.950001, 1.0), (400, 600, 25_600, 38_400)),
        Marginal((0.0, 1.0), (128, 384)),
        _STEADY,
    ),
    Shape(
        "giant",
        f"{_OURS}: one giant among 256",
        Marginal((0.0, 1.0), (256, 1024)),
        Marginal((0.0, 1.0), (64, 512)),
        _STEADY,
        giant=Giant(120_000, 4_000, every=256, within=32),
    ),
    Shape(
        "long-tail-mix",
        f"{_OURS}: chat, documents and long reasoning, prompts with a Pareto tail of index about 1",
        Marginal((0.0, 0.2, 0.5, 0.8, 0.9, 0.99, 0.999, 1.0), (16, 128, 512, 1500, 3000, 30_000, 98_000, 98_000)),
        Marginal((0.0, 0.2, 0.5, 0.8, 0.9, 0.99, 0.999, 1.0), (4, 48, 192, 512, 1000, 8_000, 32_000, 32_000)),
        _STEADY,
    ),
)

SHAPES: Mapping[str, Shape] = {shape.name: shape for shape in (*FITTED, *EXTREMES)}


def workload(name: str, *, seed: int = 0, n: int | None = None) -> Workload:
    """A built-in workload: ``n`` requests, or an hour of its traffic; the same for the same seed. O(n).

    The first k requests are the same whatever ``n`` is. Raises ConfigError for an unknown name (listing the known
    ones), a seed or an ``n`` that is no integer of at least 0.
    """
    if name not in SHAPES:
        raise ConfigError(f"unknown workload {name!r}; known: {', '.join(SHAPES)}")
    for option, value in (("seed", seed), ("n", 0 if n is None else n)):
        if type(value) is not int or value < 0:
            raise ConfigError(f"workload {name!r}: {option} must be an integer of at least 0, got {value!r}")
    return synthesise(SHAPES[name], seed=seed, n=n)
