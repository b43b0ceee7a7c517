"""The cost surface refitted from reported step seconds: the published one may be wrong, and may drift.

Steps are kept as a small set of *shapes* (members, tokens, unevenness, prefill tokens: one fact a shape, the latest;
old ones fade). What a chunk costs is known less well than what decode costs, so that a step counts the less the more
of it is prefill; but where a backlog is begun there is hardly a step without. While what is believed explains the
facts, nothing is done; else another correction is looked for (``refit``), at intervals, and soon after surprises.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from attrs import astuple, define, field

from ..errors import CallerError
from ..load import Costs, Load
from ..outside import is_count, is_number, show
from ..request import Request
from .believed import BelievedCosts, Correction, Parts, published_correction
from .protocols import PlainData, Stepped
from .refit import FAR_OFF, GOOD, Fact, error_of, explains, fact_of, refit

SHAPES = 96  # kept at most
FADE, LATEST = 400, 8  # facts until an older one counts half; the same where only the latest are asked
# Facts, and surprises, between two looks: either number doubles while looking because of it does not help. Surprises
# are taken seriously again when there were few for long.
FIRST_LOOK, LAST_LOOK = 12, 512
FIRST_SURPRISES, LAST_SURPRISES = 2, 32
LULL = 250  # facts without a telling one, after which one is wanted
SURE, REFUTED = 64, 4  # facts, and of them such that contradict it, before a surface published as balanced is not


@define(eq=False)
class SurfaceFit:
    """A Watch that believes something about costs. A fact O(1), and now and then a fit. Memory O(SHAPES), and after a
    restart O(facts) until costs are asked for again: up to then it does not know what was published.

    Of a lane of several ranks, the rank believed to be the slowest is taken to have been it.
    """

    published: Costs | None = None
    correction: Correction = field(factory=Correction)
    facts: dict[str, Fact] = field(factory=dict)  # by shape, the latest last
    seen: int = 0
    beliefs: int = 0  # how often it has settled on something clearly else: it explains well what is seen
    settled: Correction = field(factory=Correction)  # the last of these
    _told: Correction = field(init=False, factory=Correction)
    _costs: BelievedCosts | None = field(init=False, default=None)
    _gap: int = FIRST_LOOK
    _since: int = 0  # facts since the last look
    _patience: int = FIRST_SURPRISES
    _surprises: int = 0  # since the last look
    _usual: float = GOOD  # the error at the last look
    _asked: bool = False
    _early: list[tuple[int, float, list[Load]]] = field(init=False, factory=list)  # facts since a restart

    def costs(self, published: Costs) -> Costs:
        """What is believed now; the published costs themselves while they explain what is seen. O(1)."""
        if self._costs is None or published is not self.published:
            restored = self.published is None and self._asked
            self._asked = True
            self.published, self._told = published, published_correction(published)
            if not restored:
                self.correction, self.settled, self.seen = self._told, self._told, 0
                self.facts.clear()
            self._costs = BelievedCosts(published, self.correction)
            early, self._early = self._early, []
            for steps, seconds, loads in early:
                self._learn(loads, steps, seconds)
        return published if self.correction == self._told else self._costs

    # -- facts

    def stepped(self, facts: Stepped) -> None:
        """See Watch. Steps before ``costs`` was first asked, and those without decode members, say nothing here."""
        if not self._asked or facts.seconds <= 0:
            return
        half = (facts.steps - 1) // 2
        loads = [o for o in facts.loads if o.n]
        if half:
            loads = [Load(o.n, o.total + o.n * half, o.longest + half, o.chunks) for o in loads]
        if self._costs is not None:
            self._learn(loads, facts.steps, facts.seconds)
        elif loads:
            self._early.append((facts.steps, facts.seconds, loads))

    def _learn(self, loads: Sequence[Load], steps: float, seconds: float) -> None:
        if not loads or self._costs is None:
            return
        load = loads[0] if len(loads) == 1 else max(loads, key=self._costs.step_seconds)
        self.seen += 1
        shape = _shape(load)
        self.facts.pop(shape, None)
        fact = self.facts[shape] = fact_of(self.seen, self._costs.parts(load, padded=True), seconds / steps)
        if len(self.facts) > SHAPES:
            del self.facts[next(iter(self.facts))]
        self._since += 1
        self._surprises += abs(fact.error(self.correction)) > FAR_OFF * max(GOOD, self._usual)
        if self._since >= self._gap or self._surprises >= self._patience:
            self._look()

    def ended(self, request: Request, produced: int, finished: bool) -> None:
        """Nothing to learn."""

    def _look(self) -> None:
        """Refit if what is believed does not explain the facts well enough.

        If after surprises nothing explains the old and the new, the surface is another than it was: then the new alone
        are explained, and what contradicts them is forgotten.
        """
        facts, before = tuple(self.facts.values()), self.correction
        weights, latest = ([0.5 ** ((self.seen - fact.at) / half) for fact in facts] for half in (FADE, LATEST))
        surprised = self._surprises >= self._patience
        if not explains(before, facts, weights):
            self.correction = refit(before, self._told, facts, weights)
        if surprised and error_of(self.correction, facts, latest) > FAR_OFF * GOOD:
            self.correction = refit(self.correction, self._told, facts, latest)
            self.facts = {shape: fact for shape, fact in self.facts.items() if not fact.contradicts(self.correction)}
        if self._told.surface == "balanced" != self.correction.surface and not self._sure(facts):
            self.correction = self._told
        changed = self.correction != before
        self._usual = error_of(self.correction, facts, weights)
        if self._usual <= GOOD and self.correction.unlike(self.settled):
            self.beliefs, self.settled = self.beliefs + 1, self.correction
        if changed:
            self._gap, self._patience = FIRST_LOOK, FIRST_SURPRISES
            self._costs = BelievedCosts(self.published, self.correction) if self.published is not None else None
        elif surprised:
            self._patience = min(LAST_SURPRISES, 2 * self._patience)
        else:
            self._gap = min(LAST_LOOK, 2 * self._gap)
            self._patience = max(FIRST_SURPRISES, self._patience // 2)
        self._since = self._surprises = 0

    def _sure(self, facts: Sequence[Fact]) -> bool:
        """Whether it is refuted that imbalance costs nothing: steps reported amid changes look uneven now and then."""
        return self.seen >= SURE and sum(fact.contradicts(self._told) for fact in facts) >= REFUTED

    @property
    def curious(self) -> bool:
        """Whether no step of the last ``LULL`` facts could have told that imbalance costs less than is believed.

        So it is where members run in groups only; one step of all together would tell. O(shapes).
        """
        return not any(self.seen - fact.at < LULL and fact.tells(self.correction) for fact in self.facts.values())

    # -- memory

    def state(self) -> PlainData:
        """The correction and the facts it rests on."""
        facts: dict[str, PlainData] = {shape: [f.at, *astuple(f.parts), f.seconds] for shape, f in self.facts.items()}
        counts: list[PlainData] = [
            self.seen, self.beliefs, self._gap, self._since, self._patience, self._surprises, self._usual,
        ]  # fmt: skip
        plain, settled = self.correction.plain(), self.settled.plain()
        early: list[PlainData] = [[steps, seconds, *map(_plain, loads)] for steps, seconds, loads in self._early]
        return {
            "correction": plain, "settled": settled, "facts": facts, "counts": counts, "asked": self._asked,
            "early": early,
        }  # fmt: skip

    def load(self, state: PlainData) -> None:
        """Restore ``state()``. Raises CallerError if it is no such state, and then changes nothing."""
        try:
            if not isinstance(state, dict):
                raise TypeError("no mapping")
            correction, settled = (Correction.from_plain(state[key]) for key in ("correction", "settled"))
            rows, counts = state["facts"], state["counts"]
            if not isinstance(rows, dict) or not isinstance(counts, list):
                raise TypeError("facts by shape, and counts in a list")
            facts = {shape: _restored(row) for shape, row in rows.items()}
            *whole, usual = map(_number, counts)
            seen, beliefs, gap, since, patience, surprises = map(int, whole)
            asked, early = state["asked"] is True, _early(state["early"])
        except (KeyError, TypeError, ValueError) as error:
            raise CallerError(f"SurfaceFit: this is no state of it: {show(state)}") from error
        self.published, self._costs, self._asked, self._early = None, None, asked, early
        self.correction, self.settled, self.facts = correction, settled, facts
        self.seen, self.beliefs, self._gap, self._since, self._usual = seen, beliefs, gap, since, usual
        self._patience, self._surprises = patience, surprises


def _number(value: object) -> float:
    if not is_number(value, 0.0):
        raise ValueError("no number of at least 0")
    return float(value)


def _restored(row: PlainData) -> Fact:
    if not isinstance(row, list):
        raise TypeError("a fact is a row of numbers")
    at, n, longest, base, even, padded, prefill, seconds = (_number(value) for value in row)
    if min(base, seconds) <= 0 or min(n, longest) < 1:
        raise ValueError("a step of somebody takes time")
    return fact_of(int(at), Parts(int(n), int(longest), base, even, padded, prefill), seconds)


def _plain(load: Load) -> PlainData:
    return [load.n, load.total, load.longest, [[start, end] for start, end in load.chunks]]


def _early(state: PlainData) -> list[tuple[int, float, list[Load]]]:
    if not isinstance(state, list):
        raise TypeError("facts since a restart are a list")
    found = []
    for row in state:
        if not isinstance(row, list):
            raise TypeError("such a fact is a row")
        steps, seconds, *loads = row
        if not is_count(steps) or not steps or _number(seconds) <= 0 or not loads:
            raise ValueError("steps, the seconds they took, and loads")
        found.append((int(steps), _number(seconds), [_load(load) for load in loads]))
    return found


def _load(row: PlainData) -> Load:
    if not isinstance(row, list) or len(row) != 4 or not isinstance(row[3], list):
        raise TypeError("a load is members, tokens, the longest, and chunks")
    n, total, longest = (int(_number(value)) for value in row[:3])
    chunks = []
    for chunk in row[3]:
        if not isinstance(chunk, list) or len(chunk) != 2:
            raise TypeError("a chunk is a beginning and an end")
        start, end = (int(_number(value)) for value in chunk)
        if end <= start:
            raise ValueError("a chunk has tokens")
        chunks.append((start, end))
    if not 1 <= n <= total or not 1 <= longest <= total:
        raise ValueError("whoever decodes has a context length")
    return Load(n, total, longest, tuple(chunks))


def _shape(load: Load) -> str:
    """Members by sixteenths of an octave (the gate is sharp), tokens and unevenness by half octaves.

    With prefill all by octaves, and so are the tokens prefilled.
    """
    n, total, uneven = math.log2(load.n), math.log2(load.total), math.log2(load.longest * load.n / load.total)
    if load.chunks:
        tokens = math.log2(sum(end - start for start, end in load.chunks))
        return f"{round(n)} {round(total)} {round(uneven)} +{round(tokens)}"
    return f"{round(16 * n)} {round(2 * total)} {round(2 * uneven)}"
