"""The correction of a cost surface that explains what steps were seen to take.

The factors of a ``Correction`` are fitted to the logarithm of the seconds by Gauss-Newton with Huber's weights (Huber,
Ann. Math. Statist. 35, 1964), drawn a little towards the published ones, so that a part without evidence stays as it
was told. Where no factors of the believed kind of surface explain the facts, the other kinds and gates are tried.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import compress

from attrs import evolve, frozen

from .believed import UNLIKE, Correction, Parts

CLIP = 4.0  # a fact further off than this factor from what is believed counts as that far
GOOD = 0.012  # median error (of the logarithm) that is good enough
NEARLY_ALL = 0.9  # of the facts
FAR_OFF, FAR_OUT = 4.0, 16.0  # times as far off as what is good enough, or usual: not explained; not a little
TELLING = 1.1  # a step believed to take so many times what it would if balanced tells the surfaces apart
CLEAR = 3.0  # a fact of less doubt is clear enough to begin from
_CHUNK_DOUBT = 0.1  # how far off the price of a chunk may be (relative) while its factor is right
STEPS, FEW_STEPS = 12, 3  # of a descent, and of one that only shows whether it is worth a whole one
_PRIOR = 2e-5  # pull towards the published factors, per fact
_MOST = math.log(CLIP)
_BETTER = 0.8  # another kind of surface must explain the facts so much better


@frozen
class Fact:
    """One shape and its seconds a step; ``at`` counts facts."""

    at: int
    parts: Parts
    seconds: float
    doubt: float  # how many times an error weighs less than that of a step without prefill

    def error(self, correction: Correction) -> float:
        """How much too long the step is believed to be: of the logarithm, doubt taken into account. At most CLIP."""
        error = math.log(correction.seconds(self.parts) / self.seconds)
        return max(-_MOST, min(_MOST, error)) / self.doubt

    def contradicts(self, correction: Correction) -> bool:
        """Whether it is far out."""
        return abs(self.error(correction)) > FAR_OUT * GOOD

    def tells(self, correction: Correction) -> bool:
        """Whether imbalance is believed to have cost much in it."""
        return self.doubt < CLEAR and correction.seconds(self.parts) > TELLING * correction.balanced(self.parts)


def fact_of(at: int, parts: Parts, seconds: float) -> Fact:
    """A fact, doubted for what its chunks may have cost otherwise."""
    if not parts.prefill:
        return Fact(at, parts, seconds, 1.0)
    share = parts.prefill / (parts.base + parts.even + parts.prefill)
    return Fact(at, parts, seconds, math.hypot(1.0, share * _CHUNK_DOUBT / GOOD))


def error_of(correction: Correction, facts: Sequence[Fact], weights: Sequence[float], share: float = 0.5) -> float:
    """What the errors of this share of the facts do not exceed; weighted. O(n log n)."""
    errors = sorted(
        (abs(fact.error(correction)), weight / fact.doubt) for fact, weight in zip(facts, weights, strict=True)
    )
    upto, passed = share * sum(weight for _, weight in errors), 0.0
    for error, weight in errors:
        passed += weight
        if passed >= upto:
            return error
    return 0.0


def explains(correction: Correction, facts: Sequence[Fact], weights: Sequence[float]) -> bool:
    """Whether there is no need to look for something better: half are explained well, and nearly all passably.

    So must be half of those that tell what imbalance costs, however few these are; and one alone may be far out: two
    are where a gate shows first.
    """
    half, most = (error_of(correction, facts, weights, share) for share in (0.5, NEARLY_ALL))
    telling = [fact.tells(correction) for fact in facts]
    told = error_of(correction, list(compress(facts, telling)), list(compress(weights, telling)))
    out = sum(fact.contradicts(correction) for fact in facts)
    return half <= GOOD and max(most, told) <= FAR_OFF * GOOD and out < 2


def _loss(c: Correction, told: Correction, facts: Sequence[Fact], weights: Sequence[float], width: float) -> float:
    """Huber's loss of the errors, and the pull towards what was published."""
    total = 0.0
    for fact, weight in zip(facts, weights, strict=True):
        error = abs(fact.error(c))
        total += weight * (error * error / 2 if error <= width else width * (error - width / 2))
    return total + _PRIOR * sum(weights) * sum(pull * pull for pull in _pulls(c, told))


def _pulls(c: Correction, told: Correction) -> tuple[float, float, float, float]:
    known = c.longest > 0 and told.longest > 0
    return math.log(c.base), math.log(c.even), math.log(c.longest / told.longest) if known else 0.0, math.log(c.prefill)


def refit(now: Correction, told: Correction, facts: Sequence[Fact], weights: Sequence[float]) -> Correction:
    """The correction that explains the facts clearly best; what was published if that does about as well."""
    width = max(GOOD, 1.5 * min(error_of(now, facts, weights), 0.1))

    def loss(correction: Correction) -> float:
        return _loss(correction, told, facts, weights, width)

    best = min((_descend(start, told, facts, weights, width) for start in (now, told)), key=loss)
    if not explains(best, facts, weights):
        others = [_descend(start, told, facts, weights, width, FEW_STEPS) for start in _starts(best, told, facts)]
        other = _descend(min(others, key=loss), told, facts, weights, width)
        if not math.isinf(other.gate):
            seen = sorted({fact.parts.n for fact in facts if fact.doubt < CLEAR}, reverse=True)
            gated = [*(evolve(other, gate=float(gate)) for gate in (told.gate, *seen)), other]
            near = min(map(loss, gated)) + GOOD * GOOD * sum(weights) / 2
            other = next(each for each in gated if loss(each) <= near)  # the highest, as running fewer would tell
        if loss(other) < _BETTER * loss(best):
            best = other
    if loss(told) <= 1.05 * loss(best):
        return told
    return _beyond(best, told, facts, weights) if loss(best) < 0.9 * loss(now) else now


def _beyond(c: Correction, told: Correction, facts: Sequence[Fact], weights: Sequence[float]) -> Correction:
    """The same with attention believed to cost less where the facts only say what it costs at most.

    Of what all members' attention takes and what the longest's does, the larger is seen; a fit leaves the other at the
    bound nearest to what was published. What is refuted by that much seldom just is: half as far again is likelier.
    """
    enough = _loss(c, told, facts, weights, GOOD) + GOOD * GOOD * sum(weights) / 2
    for part in ("even", "longest"):
        bound, published = getattr(c, part), getattr(told, part)
        if 0 < UNLIKE * bound < published:
            further = evolve(c, **{part: bound * math.sqrt(bound / published)})
            c = further if _loss(further, told, facts, weights, GOOD) <= enough else c
    return c


def _starts(best: Correction, told: Correction, facts: Sequence[Fact]) -> Iterable[Correction]:
    """Other kinds of surface to begin from: padded, even, and the longest binding from some number of members on.

    Where the longest member binds, attention is its length times the slope; where it does not, attention is more than
    that: the least quotients are of the first kind.
    """
    yield Correction(base=best.base, prefill=best.prefill, padded=True)
    yield Correction(base=best.base, prefill=best.prefill, even=best.even)
    members = sorted(fact.parts.n for fact in facts)
    for gate in dict.fromkeys((1.0, told.gate, *(float(members[len(members) * k // 6]) for k in range(1, 6)))):
        slopes = sorted(
            (fact.seconds - told.base * fact.parts.base - told.prefill * fact.parts.prefill) / fact.parts.longest
            for fact in facts
            if fact.parts.n >= gate and fact.doubt < CLEAR
        )
        if slopes and (slope := slopes[len(slopes) // 5]) > 0:
            yield evolve(told, longest=slope, gate=gate, padded=False)


def _descend(
    c: Correction,
    told: Correction,
    facts: Sequence[Fact],
    weights: Sequence[float],
    width: float,
    steps: int = STEPS,
) -> Correction:
    """Gauss-Newton in the logarithms of the four factors, with Huber's weights; only ever downhill. O(facts)."""
    least = _loss(c, told, facts, weights, width)
    for _ in range(steps):
        step = _solve(*_normal(c, told, facts, weights, width))
        for share in (1.0, 0.3, 0.1):
            base, even, longest, prefill = (math.exp(max(-1.5, min(1.5, share * s))) for s in step)
            tried = evolve(
                c, base=c.base * base, even=c.even * even, longest=c.longest * longest, prefill=c.prefill * prefill
            )
            loss = _loss(tried, told, facts, weights, width)
            if loss < least:
                break
        else:
            return c
        done = least - loss < 1e-3 * least
        c, least = tried, loss
        if done:
            return c
    return c


def _normal(
    c: Correction, told: Correction, facts: Sequence[Fact], weights: Sequence[float], width: float
) -> tuple[list[list[float]], list[float]]:
    """The normal equations of one step."""
    pull = _PRIOR * sum(weights) + 1e-12
    right = [-2 * pull * p for p in _pulls(c, told)]
    matrix = [[2 * pull if i == j else 0.0 for j in range(len(right))] for i in range(len(right))]
    for fact, weight in zip(facts, weights, strict=True):
        parts, error = fact.parts, fact.error(c)
        seconds = c.seconds(parts) * fact.doubt
        weight *= min(1.0, width / max(abs(error), 1e-12))
        base, prefill = c.base * parts.base, c.prefill * parts.prefill
        even = c.even * (parts.padded if c.padded else parts.even)
        alone = c.seconds(parts) - base - prefill  # attention; the longest member's, where that binds
        even, longest = (0.0, alone) if alone > even * (1 + 1e-9) else (even, 0.0)
        slope = (base / seconds, even / seconds, longest / seconds, prefill / seconds)
        for i, left in enumerate(slope):
            right[i] -= weight * left * error
            for j, other in enumerate(slope):
                matrix[i][j] += weight * left * other
    return matrix, right


def _solve(matrix: list[list[float]], right: list[float]) -> list[float]:
    """A small positive definite system, by elimination."""
    n = len(right)
    rows = [[*row, value] for row, value in zip(matrix, right, strict=True)]
    for i in range(n):
        for j in range(i + 1, n):
            factor = rows[j][i] / rows[i][i]
            rows[j] = [a - factor * b for a, b in zip(rows[j], rows[i], strict=True)]
    answer = [0.0] * n
    for i in reversed(range(n)):
        answer[i] = (rows[i][n] - sum(rows[i][j] * answer[j] for j in range(i + 1, n))) / rows[i][i]
    return answer
