"""The cost surface refitted from reported step seconds: the published one may be wrong, and may drift.

Decode steps without prefill are kept as a small set of *shapes* (members, tokens, unevenness: one fact a shape, the
latest; old ones fade). While what is believed explains them, nothing is done. Otherwise the factors of a
``Correction`` are fitted to the logarithm of the seconds by Gauss-Newton with Huber's weights (Huber, Ann. Math.
Statist. 35, 1964), drawn a little towards the published ones, so that a part without evidence stays as it was told.
Where no factors of the believed kind of surface explain them, the other kinds and gates are tried.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TypeGuard

from attrs import define, evolve, field, frozen

from ..errors import CallerError
from ..load import Costs, Load
from ..outside import is_number, show
from ..request import Request
from .believed import BelievedCosts, Correction, Parts, published_correction
from .protocols import PlainData, Stepped

SHAPES = 96  # kept at most
FADE = 400  # facts until an older one counts half
CLIP = 4.0  # a fact further off than this factor from what is believed counts as that far
GOOD = 0.012  # median error (of the logarithm) that is good enough
FIRST_LOOK, LAST_LOOK = 12, 512  # facts between two looks: the gap doubles while looking does not help
PROBE_SHARE = 1 / 50  # of all steps, at most
_PRIOR = 2e-4  # pull towards the published factors, per fact
_BETTER = 0.8  # another kind of surface must explain the facts so much better


@frozen
class Fact:
    """One shape and its seconds a step; ``at`` counts facts."""

    at: int
    parts: Parts
    seconds: float


@define(eq=False)
class SurfaceFit:
    """A Watch that believes something about costs. Memory O(SHAPES); a fact O(1), and now and then a fit.

    Of a lane of several ranks, the rank believed to be the slowest is taken to have been it.
    """

    published: Costs | None = None
    correction: Correction = field(factory=Correction)
    facts: dict[str, Fact] = field(factory=dict)  # by shape, the latest last
    seen: int = 0
    steps: int = 0
    probed: int = 0  # steps
    _told: Correction = field(init=False, factory=Correction)
    _costs: BelievedCosts | None = field(init=False, default=None)
    _gap: int = FIRST_LOOK
    _next: int = FIRST_LOOK
    _asked: bool = False
    _early: list[list[float]] = field(init=False, factory=list)  # facts since a restart, until costs are known again

    def costs(self, published: Costs) -> Costs:
        """What is believed now; the published costs themselves while they explain what is seen. O(1)."""
        if self._costs is None or published is not self.published:
            restored = self.published is None and self._asked
            self._asked = True
            self.published, self._told = published, published_correction(published)
            if not restored:
                self.correction, self.seen = self._told, 0
                self.facts.clear()
            self._costs = BelievedCosts(published, self.correction)
            early, self._early = self._early, []
            for steps, seconds, *rows in early:
                loads = zip(rows[::3], rows[1::3], rows[2::3], strict=True)
                self._learn([Load(int(n), int(total), int(longest)) for n, total, longest in loads], steps, seconds)
        return published if self.correction == self._told else self._costs

    # -- facts

    def stepped(self, facts: Stepped) -> None:
        """See Watch. Steps before ``costs`` was first asked, and those with prefill, say nothing here."""
        self.steps += facts.steps
        if not self._asked or facts.prefill or facts.seconds <= 0:
            return
        half = (facts.steps - 1) // 2
        loads = [Load(o.n, o.total + o.n * half, o.longest + half) for o in facts.loads if o.n]
        if self._costs is not None:
            self._learn(loads, facts.steps, facts.seconds)
        elif loads:
            rows = (value for load in loads for value in (load.n, load.total, load.longest))
            self._early.append([facts.steps, facts.seconds, *rows])

    def _learn(self, loads: Sequence[Load], steps: float, seconds: float) -> None:
        if not loads or self._costs is None:
            return
        load = max(loads, key=self._costs.step_seconds)
        parts = self._costs.parts(load)
        if not self.correction.padded:
            parts = evolve(parts, padded=self._costs.padded_seconds(load) - parts.base)
        self.seen += 1
        shape = _shape(load)
        self.facts.pop(shape, None)
        self.facts[shape] = Fact(self.seen, parts, seconds / steps)
        if len(self.facts) > SHAPES:
            del self.facts[next(iter(self.facts))]
        if self.seen >= self._next:
            self._look()

    def ended(self, request: Request, produced: int, finished: bool) -> None:
        """Nothing to learn."""

    def _look(self) -> None:
        """Refit if what is believed does not explain the facts well enough."""
        facts = tuple(self.facts.values())
        weights = [0.5 ** ((self.seen - fact.at) / FADE) for fact in facts]
        before = self.correction
        if _error(before, facts, weights) > GOOD:
            self.correction = _refit(before, self._told, facts, weights)
        changed = _error(self.correction, facts, weights) < 0.9 * _error(before, facts, weights)
        self._gap = FIRST_LOOK if changed else min(LAST_LOOK, 2 * self._gap)
        self._next = self.seen + self._gap
        if self.correction != before and self.published is not None:
            self._costs = BelievedCosts(self.published, self.correction)

    # -- probing

    def probe(self, steps: int) -> bool:
        """Whether ``steps`` steps may be spent on a batch that is believed to be slow, to see whether it is.

        Only where a finite gate above one is believed and nothing was seen from it on within ``FADE`` facts; never
        more than ``PROBE_SHARE`` of all steps. A yes counts them as spent. O(shapes).
        """
        gate = self.correction.gate
        if self.correction.padded or gate <= 1 or math.isinf(gate):
            return False
        if self.probed + steps > PROBE_SHARE * self.steps:
            return False
        if any(fact.parts.n >= gate and self.seen - fact.at < FADE for fact in self.facts.values()):
            return False
        self.probed += steps
        return True

    # -- memory

    def state(self) -> PlainData:
        """The correction and the facts it rests on."""
        facts: dict[str, PlainData] = {
            shape: [f.at, f.parts.n, f.parts.longest, f.parts.base, f.parts.even, f.parts.padded, f.seconds]
            for shape, f in self.facts.items()
        }
        counts: list[PlainData] = [self.seen, self.steps, self.probed, self._gap, self._next]
        early: list[PlainData] = [list(row) for row in self._early]
        plain = self.correction.plain()
        return {"correction": plain, "facts": facts, "counts": counts, "asked": self._asked, "early": early}

    def load(self, state: PlainData) -> None:
        """Restore ``state()``. Raises CallerError if it is no such state, and then changes nothing."""
        try:
            assert isinstance(state, dict)
            plain, rows, counts = state["correction"], state["facts"], state["counts"]
            assert isinstance(plain, dict)
            assert isinstance(rows, dict)
            assert isinstance(counts, list)
            base, even, longest = (_number(plain[key]) for key in ("base", "even", "longest"))
            assert base > 0
            assert even > 0
            gate = math.inf if plain["gate"] is None else _number(plain["gate"])
            correction = Correction(base, even, longest, gate, plain["padded"] is True)
            facts = {shape: _fact(row) for shape, row in rows.items()}
            seen, steps, probed, gap, following = (int(_number(count)) for count in counts)
            asked, early = state["asked"] is True, state["early"]
            assert isinstance(early, list)
            waiting = [[value for value in row if _is_number(value)] for row in early if isinstance(row, list)]
            assert list(map(len, waiting)) == list(map(len, early))  # type: ignore[arg-type]
            assert all(len(row) > 2 and len(row) % 3 == 2 and row[0] > 0 for row in waiting)
        except (AssertionError, KeyError, TypeError, ValueError) as error:
            raise CallerError(f"SurfaceFit: this is no state of it: {show(state)}") from error
        self.published, self._costs, self._asked, self._early = None, None, asked, waiting
        self.correction, self.facts = correction, facts
        self.seen, self.steps, self.probed, self._gap, self._next = seen, steps, probed, gap, following


def _is_number(value: object) -> TypeGuard[int | float]:
    """A number of at least 0; it stays of the kind it is."""
    return is_number(value, 0.0)


def _number(value: object) -> float:
    if not is_number(value, 0.0):
        raise ValueError("no number of at least 0")
    return float(value)


def _fact(row: PlainData) -> Fact:
    assert isinstance(row, list)
    at, n, longest, base, even, padded, seconds = (_number(value) for value in row)
    return Fact(int(at), Parts(int(n), int(longest), base, even, padded), seconds)


def _shape(load: Load) -> str:
    """Members by eighths of an octave (the gate is sharp), tokens and unevenness by half octaves."""
    uneven = load.longest * load.n / load.total
    return f"{round(8 * math.log2(load.n))} {round(2 * math.log2(load.total))} {round(2 * math.log2(uneven))}"


# -- fitting


def _error(correction: Correction, facts: Sequence[Fact], weights: Sequence[float]) -> float:
    """The weighted median of the errors. O(n log n)."""
    errors = sorted(
        (abs(math.log(correction.seconds(fact.parts) / fact.seconds)), weight)
        for fact, weight in zip(facts, weights, strict=True)
    )
    half, passed = sum(weights) / 2, 0.0
    for error, weight in errors:
        passed += weight
        if passed >= half:
            return error
    return 0.0


def _loss(c: Correction, told: Correction, facts: Sequence[Fact], weights: Sequence[float], width: float) -> float:
    """Huber's loss of the clipped errors, and the pull towards what was published."""
    total, most = 0.0, math.log(CLIP)
    for fact, weight in zip(facts, weights, strict=True):
        error = min(most, abs(math.log(c.seconds(fact.parts) / fact.seconds)))
        total += weight * (error * error / 2 if error <= width else width * (error - width / 2))
    return total + _PRIOR * sum(weights) * sum(pull * pull for pull in _pulls(c, told))


def _pulls(c: Correction, told: Correction) -> tuple[float, float, float]:
    known = c.longest > 0 and told.longest > 0
    return math.log(c.base), math.log(c.even), math.log(c.longest / told.longest) if known else 0.0


def _refit(now: Correction, told: Correction, facts: Sequence[Fact], weights: Sequence[float]) -> Correction:
    """The correction that explains the facts best; what was published if that does about as well."""
    width = max(GOOD, 1.5 * min(_error(now, facts, weights), 0.1))

    def loss(correction: Correction) -> float:
        return _loss(correction, told, facts, weights, width)

    best = min((_descend(start, told, facts, weights, width) for start in (now, told)), key=loss)
    if _error(best, facts, weights) > GOOD:
        others = [_descend(start, told, facts, weights, width) for start in _starts(best, told, facts)]
        other = min(others, key=loss)
        if loss(other) < _BETTER * loss(best):
            best = other
    return told if loss(told) <= 1.05 * loss(best) else best


def _starts(best: Correction, told: Correction, facts: Sequence[Fact]) -> Iterable[Correction]:
    """Other kinds of surface to begin from: padded, even, and the longest binding from some number of members on."""
    yield Correction(base=best.base, padded=True)
    yield Correction(base=best.base, even=best.even)
    members = sorted(fact.parts.n for fact in facts)
    gates = dict.fromkeys((1.0, told.gate, *(float(members[len(members) * k // 6]) for k in range(1, 6))))
    tokens = sum(fact.parts.even for fact in facts) / max(1, sum(fact.parts.n * fact.parts.longest for fact in facts))
    slopes = [told.longest] if told.longest > 0 else [16 * tokens, 64 * tokens]
    for gate in gates:
        if not math.isinf(gate):
            for slope in slopes:
                yield Correction(base=1.0, longest=slope, gate=gate)


def _descend(
    c: Correction, told: Correction, facts: Sequence[Fact], weights: Sequence[float], width: float
) -> Correction:
    """Gauss-Newton in the logarithms of the three factors, with Huber's weights; only ever downhill. O(facts)."""
    least = _loss(c, told, facts, weights, width)
    for _ in range(12):
        step = _solve(*_normal(c, told, facts, weights, width))
        for share in (1.0, 0.3, 0.1):
            base, even, longest = (math.exp(max(-1.5, min(1.5, share * s))) for s in step)
            tried = evolve(c, base=c.base * base, even=c.even * even, longest=c.longest * longest)
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
    matrix = [[2 * pull if i == j else 0.0 for j in range(3)] for i in range(3)]
    right = [-2 * pull * p for p in _pulls(c, told)]
    for fact, weight in zip(facts, weights, strict=True):
        seconds = c.seconds(fact.parts)
        error = math.log(seconds / fact.seconds)
        error = max(-math.log(CLIP), min(math.log(CLIP), error))
        weight *= min(1.0, width / max(abs(error), 1e-12))
        base = c.base * fact.parts.base / seconds
        even = c.even * (fact.parts.padded if c.padded else fact.parts.even) / seconds
        binds = base + even < 1 - 1e-9
        slope = (base, 0.0, 1 - base) if binds else (base, 1 - base, 0.0)
        for i in range(3):
            right[i] -= weight * slope[i] * error
            for j in range(3):
                matrix[i][j] += weight * slope[i] * slope[j]
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
