"""A cost surface fitted to a step log: which kind it is, its coefficients, and which kinds the log excludes.

A kind is excluded when the log is explained clearly worse by it; of the others the simplest is taken. Kinds are often
not excluded: a log in which all lengths are alike cannot tell them apart, and that is part of the answer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from attrs import frozen

from ..costs import AffineCosts
from ..errors import ConfigError
from .step_kinds import (
    CLIPPED,
    LEAST,
    SEARCHED,
    Made,
    Steps,
    balanced,
    bound,
    bound_feature,
    make,
    padded,
    per_prompt_of,
    spread,
)

SURE, CLEARLY = 20.0, 0.02  # a kind is excluded if it explains worse by both: in all, and a step
FINEST = 0.01  # standard deviation: a surface that is wrong by less decides no worse
_FREE = {"balanced": 0, "padded": 0, "unsplit": 1, "gated": 2}  # what is searched for beside the coefficients


@frozen
class Kind:
    """One kind fitted: its costs, its median relative error, and the share of steps it is ``off`` by more than ``far``.

    ``worse`` is how much worse it explains the log than the best: squared standard deviations, over all steps.
    """

    costs: AffineCosts
    error: float
    off: float
    worse: float
    excluded: bool

    @property
    def name(self) -> str:
        return self.costs.surface


@frozen
class Fit:
    """What a log says: the simplest kind it does not exclude, all kinds tried, and what was in it.

    ``allowed`` are other surfaces that explain the log as well: kinds that are not excluded, and, where balanced ones
    do, the strongest longest members that the log would not have shown. ``stretch`` are the 5th and 95th percentile of
    longest over mean length: where both are near 1, lengths were alike. ``far`` is a relative error of three standard
    deviations.
    """

    chosen: Kind
    kinds: tuple[Kind, ...]
    allowed: tuple[AffineCosts, ...]
    steps: int
    decode_only: int
    with_prefill: int
    far: float
    p90_error: float
    most_members: int
    longest: int
    most_total: int
    most_tokens: int
    stretch: tuple[float, float]

    @property
    def costs(self) -> AffineCosts:
        return self.chosen.costs


def fit(steps: Steps) -> Fit:
    """Fit every kind and compare them. O(steps), some hundred small least squares.

    Raises ConfigError where fewer than ``LEAST`` steps decode.
    """
    decode = steps.only((steps.prefill == 0) & (steps.n > 0))
    looked = decode if len(decode) >= LEAST else steps.only(steps.n > 0)
    if len(looked) < LEAST:
        raise ConfigError(f"the step log has {len(looked)} steps that decode; at least {LEAST} are needed")
    tried = [balanced(looked), padded(looked), *bound(looked)]
    judge = _Judge.of(looked, tried)
    chosen = min(
        (made for made in tried if not judge.excludes(made)),
        key=lambda made: (made.kind != "balanced", _FREE[made.kind], judge.worse(made)),
    )
    per_prompt = per_prompt_of(steps, chosen)
    kinds = {made.kind: judge.kind(made, per_prompt) for made in tried}
    errors = np.abs(chosen.errors(looked))
    stretch = np.percentile(looked.longest * looked.n / looked.total, (5, 95))
    return Fit(
        chosen=kinds[chosen.kind],
        kinds=tuple(sorted(kinds.values(), key=lambda kind: kind.worse)),
        allowed=tuple(_allowed(looked, judge, chosen, tried, per_prompt)),
        steps=len(steps),
        decode_only=len(decode),
        with_prefill=int((steps.prefill > 0).sum()),
        far=math.expm1(CLIPPED * judge.width),
        p90_error=float(np.expm1(np.percentile(errors, 90))),
        most_members=int(steps.n.max()),
        longest=int(steps.longest.max()),
        most_total=int(steps.total.max()),
        most_tokens=int((steps.n + steps.prefill).max()),
        stretch=(float(stretch[0]), float(stretch[1])),
    )


def _allowed(
    steps: Steps, judge: _Judge, chosen: Made, tried: Iterable[Made], per_prompt: float
) -> Iterator[AffineCosts]:
    """Other surfaces that explain the log as well; see Fit."""
    for made in tried:
        if made.kind == chosen.kind or judge.excludes(made):
            continue
        if chosen.kind == "balanced" and made.kind != "padded":
            continue  # it adds next to nothing to a balanced one; what it might add is asked below
        if made.kind != "gated" or made.gate > steps.n.min():  # else it is unsplit
            yield made.costs(per_prompt)
    if chosen.kind == "balanced":
        for made in _strongest(steps, judge):
            yield made.costs(per_prompt)


def _strongest(steps: Steps, judge: _Judge) -> list[Made]:
    """For some gates, the largest ratio with which the longest member could bind and the log would not show it."""
    few = steps.only(spread(len(steps), SEARCHED))
    judge = _Judge.of(few, [judge.best])
    found = []
    gates = np.unique(np.quantile(few.n, (0.0, 0.25, 0.5, 0.75, 0.95)).round())
    for gate in gates:
        kind = "gated" if gate > few.n.min() else "unsplit"
        for r in np.geomspace(float(few.n.max()), 1.0, 16)[:-1]:
            made = make(kind, few, bound_feature(float(r), float(gate)), float(r), float(gate), rounds=3)
            if not judge.excludes(made):
                found.append(made)
                break
    return found


@frozen
class _Judge:
    """Compares fits of the same steps with the best of them; ``width`` is a standard deviation."""

    steps: Steps
    best: Made
    width: float
    least: float

    @classmethod
    def of(cls, steps: Steps, tried: Sequence[Made]) -> _Judge:
        def median(made: Made) -> float:
            return float(np.median(np.abs(made.errors(steps))))

        width = max(1.4826 * min(map(median, tried)), FINEST)
        best = min(tried, key=lambda made: made.score(steps, width))
        return cls(steps, best, width, best.score(steps, width))

    def worse(self, made: Made) -> float:
        """Squared standard deviations beyond the best, over all steps."""
        return made.score(self.steps, self.width) - self.least

    def excludes(self, made: Made) -> bool:
        worse = self.worse(made)
        return worse > SURE and worse > CLEARLY * len(self.steps)

    def kind(self, made: Made, per_prompt: float) -> Kind:
        errors = np.abs(made.errors(self.steps))
        error, off = float(np.expm1(np.median(errors))), float((errors > CLIPPED * self.width).mean())
        return Kind(made.costs(per_prompt), error, off, self.worse(made), self.excludes(made))
