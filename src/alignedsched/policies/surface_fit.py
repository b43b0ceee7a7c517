"""The cost surface refitted from reported step seconds: the published one may be wrong, and may drift.

Steps are kept as a small set of *shapes* (members, tokens, unevenness, prefill tokens: one fact a shape, the latest; old
ones fade). What a chunk costs is known less well than what decode costs, so that a step counts the less the more of it
is prefill; but where a backlog is begun there is hardly a step without. While what is believed explains the facts,
nothing is done. Otherwise the factors of a
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
NEARLY_ALL = 0.9  # of the facts
FAR_OFF = 4.0  # a fact that much further off than usual is a surprise,
SURPRISE = 8  # and counts as so many where a look is due
FIRST_LOOK, LAST_LOOK = 12, 512  # facts between two looks: the gap doubles while looking does not help
PROBE_SHARE = 1 / 50  # of all steps, at most
_PRIOR = 2e-5  # pull towards the published factors, per fact
CLEAR = 3.0  # a fact of less doubt is clear enough to begin from
_CHUNK_DOUBT = 0.1  # how far off the price of a chunk may be (relative) while its factor is right
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


def _fact(at: int, parts: Parts, seconds: float) -> Fact:
    share = parts.prefill / (parts.base + parts.even + parts.prefill)
    return Fact(at, parts, seconds, math.hypot(1.0, share * _CHUNK_DOUBT / GOOD))


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
    _due: int = 0  # facts since the last look, a surprising one counting as SURPRISE
    _usual: float = GOOD  # the error at the last look
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
        """See Watch. Steps before ``costs`` was first asked, and those without decode members, say nothing here."""
        self.steps += facts.steps
        if not self._asked or facts.seconds <= 0:
            return
        half = (facts.steps - 1) // 2
        loads = [Load(o.n, o.total + o.n * half, o.longest + half, o.chunks) for o in facts.loads if o.n]
        if self._costs is not None:
            self._learn(loads, facts.steps, facts.seconds)
        elif loads and not facts.prefill:
            rows = (value for load in loads for value in (load.n, load.total, load.longest))
            self._early.append([facts.steps, facts.seconds, *rows])

    def _learn(self, loads: Sequence[Load], steps: float, seconds: float) -> None:
        if not loads or self._costs is None:
            return
        load = max(loads, key=self._costs.step_seconds)
        self.seen += 1
        shape = _shape(load)
        self.facts.pop(shape, None)
        fact = self.facts[shape] = _fact(self.seen, self._costs.parts(load, padded=True), seconds / steps)
        if len(self.facts) > SHAPES:
            del self.facts[next(iter(self.facts))]
        surprising = abs(fact.error(self.correction)) > FAR_OFF * max(GOOD, self._usual)
        self._due += SURPRISE if surprising else 1
        if self._due >= self._gap:
            self._look()

    def ended(self, request: Request, produced: int, finished: bool) -> None:
        """Nothing to learn."""

    def _look(self) -> None:
        """Refit if what is believed does not explain the facts well enough."""
        facts = tuple(self.facts.values())
        weights = [0.5 ** ((self.seen - fact.at) / FADE) for fact in facts]
        before = self.correction
        if not _explains(before, facts, weights):
            self.correction = _refit(before, self._told, facts, weights)
        changed = self.correction != before
        self._usual = _error(self.correction, facts, weights)
        self._gap = FIRST_LOOK if changed else min(LAST_LOOK, 2 * self._gap)
        self._due = 0
        if changed and self.published is not None:
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
            shape: [
                f.at, f.parts.n, f.parts.longest, f.parts.base, f.parts.even, f.parts.padded, f.parts.prefill, f.seconds,
            ]  # fmt: skip
            for shape, f in self.facts.items()
        }
        counts: list[PlainData] = [self.seen, self.steps, self.probed, self._gap, self._due, self._usual]
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
            base, even, longest, prefill = (_number(plain[key]) for key in ("base", "even", "longest", "prefill"))
            assert min(base, even, prefill) > 0
            gate = math.inf if plain["gate"] is None else _number(plain["gate"])
            correction = Correction(base, even, longest, gate, plain["padded"] is True, prefill)
            facts = {shape: _restored(row) for shape, row in rows.items()}
            seen, steps, probed, gap, due = (int(_number(count)) for count in counts[:-1])
            usual = _number(counts[-1])
            asked, early = state["asked"] is True, state["early"]
            assert isinstance(early, list)
            waiting = [[value for value in row if _is_number(value)] for row in early if isinstance(row, list)]
            assert list(map(len, waiting)) == list(map(len, early))  # type: ignore[arg-type]
            assert all(len(row) > 2 and len(row) % 3 == 2 and row[0] > 0 for row in waiting)
        except (AssertionError, KeyError, TypeError, ValueError) as error:
            raise CallerError(f"SurfaceFit: this is no state of it: {show(state)}") from error
        self.published, self._costs, self._asked, self._early = None, None, asked, waiting
        self.correction, self.facts = correction, facts
        self.seen, self.steps, self.probed, self._gap, self._due, self._usual = seen, steps, probed, gap, due, usual


def _is_number(value: object) -> TypeGuard[int | float]:
    """A number of at least 0; it stays of the kind it is."""
    return is_number(value, 0.0)


def _number(value: object) -> float:
    if not is_number(value, 0.0):
        raise ValueError("no number of at least 0")
    return float(value)


def _restored(row: PlainData) -> Fact:
    assert isinstance(row, list)
    at, n, longest, base, even, padded, prefill, seconds = (_number(value) for value in row)
    return _fact(int(at), Parts(int(n), int(longest), base, even, padded, prefill), seconds)


def _shape(load: Load) -> str:
    """Members by eighths of an octave (the gate is sharp), tokens and unevenness by half octaves.

    With prefill all by octaves, and so are the tokens prefilled.
    """
    n, total, uneven = math.log2(load.n), math.log2(load.total), math.log2(load.longest * load.n / load.total)
    if load.chunks:
        tokens = math.log2(sum(end - start for start, end in load.chunks))
        return f"{round(n)} {round(total)} {round(uneven)} +{round(tokens)}"
    return f"{round(8 * n)} {round(2 * total)} {round(2 * uneven)}"


# -- fitting


def _error(correction: Correction, facts: Sequence[Fact], weights: Sequence[float], share: float = 0.5) -> float:
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


def _explains(correction: Correction, facts: Sequence[Fact], weights: Sequence[float]) -> bool:
    """Whether there is no need to look for something better: half are explained well, and nearly all passably."""
    half, most = (_error(correction, facts, weights, share) for share in (0.5, NEARLY_ALL))
    return half <= GOOD and most <= FAR_OFF * GOOD


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


def _refit(now: Correction, told: Correction, facts: Sequence[Fact], weights: Sequence[float]) -> Correction:
    """The correction that explains the facts clearly best; what was published if that does about as well."""
    width = max(GOOD, 1.5 * min(_error(now, facts, weights), 0.1))

    def loss(correction: Correction) -> float:
        return _loss(correction, told, facts, weights, width)

    best = min((_descend(start, told, facts, weights, width) for start in (now, told)), key=loss)
    if not _explains(best, facts, weights):
        others = [_descend(start, told, facts, weights, width) for start in _starts(best, told, facts)]
        other = min(others, key=loss)
        if loss(other) < _BETTER * loss(best):
            best = other
    if loss(told) <= 1.05 * loss(best):
        return told
    return best if loss(best) < 0.9 * loss(now) else now


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
    c: Correction, told: Correction, facts: Sequence[Fact], weights: Sequence[float], width: float
) -> Correction:
    """Gauss-Newton in the logarithms of the four factors, with Huber's weights; only ever downhill. O(facts)."""
    least = _loss(c, told, facts, weights, width)
    for _ in range(12):
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
