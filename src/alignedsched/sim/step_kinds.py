"""One kind of cost surface fitted to the steps of a log: coefficients by robust least squares, the rest by search.

Each kind is ``t0 + per_row·n + per_token·x`` with another ``x``: the sum of the lengths (``balanced``), members times
the longest (``padded``), or the larger of the sum and ``r`` times the longest (``unsplit``; ``gated`` only from some
number of members on). Given ``r`` and the gate that is linear, so both are searched, and the rest is least squares in
the relative error, weighted after Huber (Ann. Math. Statist. 35, 1964), with no coefficient below zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from attrs import field, frozen

from ..adapters.step_log import StepLine
from ..arrays import FloatArray
from ..costs import AffineCosts
from ..errors import ConfigError

LEAST = 30  # steps: fewer say nothing
SEARCHED, KEPT = 2000, 20_000  # steps looked at while r and the gate are searched, and for the final fit
CLIPPED = 3.0  # errors beyond so many standard deviations count as that many
ROUNDS = 8

Where = np.ndarray[Any, np.dtype[Any]]  # a mask, or indexes


@frozen(eq=False)
class Steps:
    """Columns of a log, shape (steps,) each; seconds."""

    n: FloatArray
    total: FloatArray
    longest: FloatArray
    prefill: FloatArray
    seconds: FloatArray

    @classmethod
    def of(cls, lines: Iterable[StepLine]) -> Steps:
        """The columns of these lines, evenly thinned to ``KEPT``. Raises ConfigError for fewer than ``LEAST``."""
        rows = np.array([(s.n, s.total, s.longest, s.prefill, s.ms) for s in lines], dtype=np.float64).reshape(-1, 5)
        if len(rows) < LEAST:
            raise ConfigError(
                f"the step log has {len(rows)} steps; at least {LEAST} are needed, and thousands are better"
            )
        n, total, longest, prefill, ms = rows[spread(len(rows), KEPT)].T
        return cls(n, total, longest, prefill, ms / 1e3)

    def __len__(self) -> int:
        return len(self.n)

    def only(self, where: Where) -> Steps:
        """Some of the steps: a mask, or indexes."""
        return Steps(self.n[where], self.total[where], self.longest[where], self.prefill[where], self.seconds[where])


@frozen
class Made:
    """A kind with its coefficients: of 1, members, tokens and, where prefill is fitted along, prefill tokens."""

    kind: str
    betas: tuple[float, ...]
    r: float = 0.0
    gate: float = 0.0
    _feature: Callable[[Steps], FloatArray] = field(default=lambda steps: steps.total, repr=False)

    def seconds(self, steps: Steps) -> FloatArray:
        """What each step should take."""
        columns = _columns(steps, self._feature(steps), len(self.betas) == 4)
        seconds: FloatArray = np.maximum(columns @ np.array(self.betas), 1e-9)
        return seconds

    def errors(self, steps: Steps) -> FloatArray:
        """Logarithms of seconds over what was foreseen."""
        return np.log(steps.seconds / self.seconds(steps))

    def costs(self, per_prompt: float) -> AffineCosts:
        """The same as costs, with so many seconds for a prefill token."""
        t0, per_row, per_token = self.betas[:3]
        longest = per_token * self.r if self.kind in ("unsplit", "gated") else 0.0
        beyond = per_prompt - per_row
        return AffineCosts(t0, per_row, per_token, longest, self.kind, self.gate, per_prompt=beyond)

    def score(self, steps: Steps, width: float) -> float:
        """Squared errors in standard deviations, clipped, over all steps."""
        return float(np.minimum((self.errors(steps) / width) ** 2, CLIPPED**2).sum())


def balanced(steps: Steps) -> Made:
    """The kind whose steps depend on the sum of the lengths."""
    return make("balanced", steps, lambda s: s.total)


def padded(steps: Steps) -> Made:
    """The kind whose steps depend on members times the longest."""
    return make("padded", steps, lambda s: s.n * s.longest)


def bound(steps: Steps) -> list[Made]:
    """``unsplit`` and ``gated``: the ratio r and the gate that explain best, searched coarsely and then nearby."""
    few = steps.only(spread(len(steps), SEARCHED))
    share = few.total / few.longest  # the longest binds where this is below r
    low, high = max(1.0, float(share.min())), float(share.max()) * 1.001
    ratios = [float(r) for r in np.geomspace(low, high, 16)] if high > low * 1.01 else [high]
    made = [_best_ratio("unsplit", few, ratios, 0.0)]
    members = np.unique(few.n)
    if len(members) > 1:
        gates = np.unique(np.quantile(few.n, np.linspace(0.05, 0.95, 12)).round())
        gates = gates[gates > members[0]]
        if len(gates):
            coarse = min((_best_ratio("gated", few, ratios[::2], float(g)) for g in gates), key=lambda m: _l1(m, few))
            made.append(_near_gate(few, ratios, coarse, members))
    return [make(m.kind, steps, bound_feature(m.r, m.gate), m.r, m.gate) for m in made]


def bound_feature(r: float, gate: float) -> Callable[[Steps], FloatArray]:
    """What steps depend on where the longest member binds from ``gate`` members on."""
    return lambda steps: np.where(steps.n >= gate, np.maximum(steps.total, r * steps.longest), steps.total)


def _best_ratio(kind: str, steps: Steps, ratios: Sequence[float], gate: float) -> Made:
    """The best of these ratios, and then of those between its neighbours."""

    def made(r: float) -> Made:
        return make(kind, steps, bound_feature(r, gate), r, gate, rounds=3)

    best = min(map(made, ratios), key=lambda m: _l1(m, steps))
    step = ratios[1] / ratios[0] if len(ratios) > 1 else 1.2
    for _ in range(4):
        step = math.sqrt(step)
        best = min((best, made(best.r / step), made(best.r * step)), key=lambda m: _l1(m, steps))
    return best


def _near_gate(steps: Steps, ratios: Sequence[float], coarse: Made, members: FloatArray) -> Made:
    """The gate among the numbers of members seen around the coarse one, bisecting by thirds; then the ratio anew."""
    best, reach = coarse, max(1, len(members) // 12)
    while reach:
        at = int(np.searchsorted(members, best.gate))
        near = (members[max(0, at - reach)], members[min(len(members) - 1, at + reach)])
        tried = [make("gated", steps, bound_feature(best.r, float(g)), best.r, float(g), rounds=3) for g in near]
        better = min((best, *tried), key=lambda m: _l1(m, steps))
        reach = reach if better is not best else reach // 2
        best = better
    return _best_ratio("gated", steps, [best.r / 1.2, best.r, best.r * 1.2], best.gate)


def _l1(made: Made, steps: Steps) -> float:
    return float(np.minimum(np.abs(made.errors(steps)), 0.3).mean())


def per_prompt_of(steps: Steps, made: Made) -> float:
    """Seconds of a prefill token: what steps with prefill take beyond their decoding; a row's where there are none."""
    if len(made.betas) == 4:
        return made.betas[3]
    mixed = steps.only(steps.prefill > 0)
    if len(mixed) < LEAST:
        return made.betas[1]
    beyond = (mixed.seconds - made.seconds(mixed)) / mixed.prefill
    order = np.argsort(beyond)  # the median, weighted by tokens: the many short chunks say little
    passed = np.cumsum(mixed.prefill[order])
    return max(0.0, float(beyond[order][np.searchsorted(passed, passed[-1] / 2)]))


# -- least squares


def make(
    kind: str, steps: Steps, feature: Callable[[Steps], FloatArray], r: float = 0.0, gate: float = 0.0,
    rounds: int = ROUNDS,
) -> Made:  # fmt: skip
    """The coefficients of one kind, r and gate given."""
    columns = _columns(steps, feature(steps), bool((steps.prefill > 0).any()))
    seconds, weights = steps.seconds, 1.0 / steps.seconds**2
    betas = _solve(columns, seconds, weights)
    for _ in range(rounds):
        foreseen = np.maximum(columns @ betas, 1e-9)
        errors = np.abs(np.log(seconds / foreseen))
        width = max(1.5 * 1.4826 * float(np.median(errors)), 1e-6)
        weights = np.minimum(1.0, width / np.maximum(errors, 1e-12)) / foreseen**2
        betas = _solve(columns, seconds, weights)
    return Made(kind, tuple(map(float, betas)), r, gate, feature)


def _columns(steps: Steps, feature: FloatArray, prefill: bool) -> FloatArray:
    columns = [np.ones(len(steps)), steps.n, feature]
    return np.stack([*columns, steps.prefill] if prefill else columns, axis=1)


def _solve(columns: FloatArray, seconds: FloatArray, weights: FloatArray) -> FloatArray:
    """Weighted least squares with no coefficient below zero: the best of the subsets that have none.

    Columns are scaled first; where two cannot be told apart the smallest coefficients are taken. At most 15 systems.
    """
    scale = np.sqrt((weights[:, None] * columns**2).sum(axis=0))
    scale[scale == 0.0] = 1.0
    scaled = columns / scale
    weighted = scaled * weights[:, None]
    matrix, right = scaled.T @ weighted, weighted.T @ seconds
    width = columns.shape[1]
    best, least = np.zeros(width), 0.0
    for size in range(width, 0, -1):
        for chosen in combinations(range(width), size):
            some = np.ix_(chosen, chosen)
            answer = np.linalg.lstsq(matrix[some], right[list(chosen)], rcond=1e-10)[0]
            if (answer < 0).any():
                continue
            gain = float(2 * answer @ right[list(chosen)] - answer @ matrix[some] @ answer)
            if gain > least:
                best, least = np.zeros(width), gain
                best[list(chosen)] = answer
        if size == width and least > 0.0:
            break
    found: FloatArray = best / scale
    return found


def spread(count: int, most: int) -> Where:
    """At most ``most`` indexes, evenly."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.int64)) if count else np.zeros(0, np.int64)
