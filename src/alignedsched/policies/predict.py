"""Predictors: how many tokens a request will still make, given what it has made already.

A predictor is told of every request that ends (it is a Watch) and is asked for the *residual life* of one that goes on:
the mean, or a quantile, of what is left given that ``produced`` tokens are made. ``History`` learns it from the ends it
has seen, ``Oracle`` knows it (for studies), ``NoPrediction`` says nothing.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from itertools import pairwise
from typing import Any, Protocol

from attrs import Factory, define, field

from ..errors import CallerError, ConfigError
from ..outside import is_count, is_number, show
from ..request import Request, RequestId
from .protocols import PlainData

PREDICTORS = ("none", "history", "oracle")
BINS_PER_OCTAVE = 8
LONGEST = 1 << 20  # outputs beyond count in the last bin
HALF_LIFE = 2048  # ends of a class until an older end counts half
COLD_TOKENS = 256  # expected of a request before anything has been seen
PRIOR_WEIGHT = 4.0  # what is known of all requests counts as so many ends of a class, and so does the cold start
CLASSES_AT_MOST = 256  # kinds x prompt classes; what comes later is known by all requests' history only


class Predictor(Protocol):
    """What a request will still make."""

    def remaining(
        self,
        request: RequestId,
        prompt_tokens: int,
        produced: int,
        kind: str | None = None,
        *,
        quantile: float | None = None,
    ) -> float | None:
        """Tokens left after ``produced``: at least 1; the mean, or a quantile. None: no idea.

        A limit on the request's output is not looked at: the caller knows it.
        """
        ...

    def stepped(self, facts: Any) -> None:
        """See Watch."""
        ...

    def ended(self, request: Request, produced: int, finished: bool) -> None:
        """See Watch."""
        ...

    def state(self) -> PlainData: ...
    def load(self, state: PlainData) -> None: ...


class NoPrediction:
    """Nothing is known of what is left."""

    def remaining(
        self,
        request: RequestId,
        prompt_tokens: int,
        produced: int,
        kind: str | None = None,
        *,
        quantile: float | None = None,
    ) -> float | None:
        return None

    def stepped(self, facts: Any) -> None:
        """Nothing to learn."""

    def ended(self, request: Request, produced: int, finished: bool) -> None:
        """Nothing to learn."""

    def state(self) -> PlainData:
        return None

    def load(self, state: PlainData) -> None:
        """Nothing to restore."""


@define(eq=False)
class Oracle(NoPrediction):
    """Knows every output in advance, for studies: the simulator tells it what it tells the executor."""

    outputs: dict[RequestId, int] = field(factory=dict)

    def expect(self, request: RequestId, output_tokens: int) -> None:
        """Hear how many tokens a request will make."""
        self.outputs[request] = output_tokens

    def remaining(
        self,
        request: RequestId,
        prompt_tokens: int,
        produced: int,
        kind: str | None = None,
        *,
        quantile: float | None = None,
    ) -> float | None:
        """O(1); None for a request it was not told of."""
        output = self.outputs.get(request)
        return None if output is None else float(max(1, output - produced))

    def ended(self, request: Request, produced: int, finished: bool) -> None:
        """Forget it."""
        self.outputs.pop(request.id, None)

    def state(self) -> PlainData:
        return dict(self.outputs)

    def load(self, state: PlainData) -> None:
        """Restore ``state()``. Raises CallerError if it is no such state."""
        if not isinstance(state, dict) or not all(is_count(tokens, 1) for tokens in state.values()):
            raise CallerError(f"Oracle: its state maps request ids to tokens, got {show(state)}")
        self.outputs = {request: int(tokens) for request, tokens in state.items()}  # type: ignore[arg-type]


def _edges() -> tuple[int, ...]:
    """Bins of outputs: 1, 2, ... each alone as long as a bin is no wider, then ``BINS_PER_OCTAVE`` to a doubling."""
    edges, at = [1], 1
    while at < LONGEST:
        at = max(at + 1, round(at * 2 ** (1 / BINS_PER_OCTAVE)))
        edges.append(at)
    return tuple(edges)


EDGES = _edges()  # bin b holds outputs EDGES[b] to EDGES[b + 1] - 1, the last one all from EDGES[-1] on
BINS = len(EDGES)
WIDTHS = tuple(high - low for low, high in pairwise(EDGES))
_GROWTH = 2.0 ** (1.0 / HALF_LIFE)  # instead of fading old ends, new ones count more
_RESCALE = 2.0**200


@define(eq=False)
class Lives:
    """How long requests of one class lived: ends by bin, the older ones fading; and the survival they imply.

    Ends that say only "longer than this" (cancelled, or stopped by a limit) are *censored*: they count among those at
    risk until then, as in the product-limit estimator (Kaplan and Meier, J. Am. Stat. Assoc. 53, 1958); the longest of
    all counts as finished (Efron 1967). Inside a bin lives are taken to be spread evenly, and beyond the longest one
    seen nothing is known. Memory O(bins); an end O(1); the first question after one O(bins), later ones O(log bins).
    """

    finished: list[float] = field(default=Factory(lambda: [0.0] * BINS))
    censored: list[float] = field(default=Factory(lambda: [0.0] * BINS))
    weight: float = 1.0  # of the next end
    _alive: list[float] | None = field(init=False, default=None)  # share that reaches each edge
    _ahead: list[float] = field(init=False, factory=list)  # expected tokens from each edge on, times that share
    _risk: list[float] = field(init=False, factory=list)  # ends at or after each edge, in units of the newest end

    def add(self, produced: int, finished: bool) -> None:
        """One end, after ``produced`` tokens."""
        at = bisect_right(EDGES, max(1, produced)) - 1
        (self.finished if finished else self.censored)[at] += self.weight
        self.weight *= _GROWTH
        if self.weight > _RESCALE:
            self.finished = [value / self.weight for value in self.finished]
            self.censored = [value / self.weight for value in self.censored]
            self.weight = 1.0
        self._alive = None

    def _tables(self) -> list[float]:
        finished, censored, above = self.finished, self.censored, self._above()
        risk, reach = [0.0] * (BINS + 1), 0.0
        for b in range(above - 1, -1, -1):
            reach = risk[b] = reach + finished[b] + censored[b]
        alive, share = [1.0] * (BINS + 1 if not above else 1), 1.0
        for b in range(above):
            left = risk[b] - finished[b] if risk[b + 1] > 0 else 0.0
            if risk[b] > 0:
                share *= left / risk[b]
            alive.append(share)
        alive += [0.0] * (BINS + 1 - len(alive))  # nobody is known to have lived longer
        ahead, rest = [0.0] * (BINS + 1), 0.0
        for b in range(min(above, BINS - 1) - 1, -1, -1):
            width = WIDTHS[b]
            rest = ahead[b] = rest + width * alive[b] - (alive[b] - alive[b + 1]) * (width - 1) / 2
        self._alive, self._ahead, self._risk = alive, ahead, [r / self.weight for r in risk]
        return alive

    def _above(self) -> int:
        """The bins up to the longest life there is; 0 if there is none."""
        both = zip(reversed(self.finished), reversed(self.censored), strict=True)
        return BINS - next((at for at, (ended, cut) in enumerate(both) if ended or cut), BINS)

    def residual(self, produced: int, quantile: float | None) -> tuple[float, float]:
        """(tokens left after ``produced``, ends that this rests on: 0 says that nothing lived so long)."""
        alive = self._alive or self._tables()
        at = min(bisect_right(EDGES, produced + 1) - 1, BINS - 1)
        if at >= BINS - 1:
            return 0.0, 0.0
        low, high = EDGES[at], EDGES[at + 1]
        slope = (alive[at] - alive[at + 1]) / (high - low)
        here = alive[at] - slope * (produced + 1 - low)  # share that makes at least one token more
        weight = self._risk[at] * here / alive[at] if alive[at] > 0 else 0.0
        if here <= 0 or weight <= 0:
            return 0.0, 0.0
        if quantile is None:
            rest = high - (produced + 1)
            inside = rest * here - slope * rest * (rest - 1) / 2
            return (inside + self._ahead[at + 1]) / here, weight
        return self._quantile(alive, produced, here * (1.0 - quantile)), weight

    @staticmethod
    def _quantile(alive: list[float], produced: int, level: float) -> float:
        """Tokens after ``produced`` until no more than ``level`` of all are alive."""
        at = bisect_left(alive, -level, key=lambda share: -share)  # the first edge that so few reach
        if at >= BINS:
            return float(EDGES[-1] - produced)
        low, high = EDGES[at - 1], EDGES[at]
        part = (alive[at - 1] - level) / (alive[at - 1] - alive[at])
        return max(1.0, math.ceil(low + part * (high - low)) - 1.0 - produced)


class History:
    """Running residual life, by class of request, out of the ends seen so far.

    A class is a kind and a factor of four in prompt length (1, 2-7, 8-31, 32-127, ...). What a class does not know yet
    is taken from the history of all requests, and what that does not know from the cold start: ``COLD_TOKENS``, or as
    many tokens as it has made already if that is more. Each counts as ``PRIOR_WEIGHT`` ends of the one before, so the
    answer goes over smoothly. Requests still alive are not counted, so that the first answers of a busy start are too
    short: the short ones end first. At most ``CLASSES_AT_MOST`` classes.
    """

    def __init__(self) -> None:
        self._all = Lives()
        self._classes: dict[str, Lives] = {}

    def remaining(
        self,
        request: RequestId,
        prompt_tokens: int,
        produced: int,
        kind: str | None = None,
        *,
        quantile: float | None = None,
    ) -> float | None:
        """See Predictor; never None. O(log bins), and O(bins) after an end. Raises CallerError for a bad quantile."""
        if quantile is not None and not 0 < quantile < 1:
            raise CallerError(f"quantile must be between 0 and 1, got {show(quantile)}")
        answer = float(max(COLD_TOKENS, produced))
        for lives in (self._all, self._classes.get(_class(prompt_tokens, kind))):
            if lives is not None:
                tokens, weight = lives.residual(produced, quantile)
                answer = (weight * tokens + PRIOR_WEIGHT * answer) / (weight + PRIOR_WEIGHT)
        return max(1.0, answer)

    def stepped(self, facts: Any) -> None:
        """Nothing to learn."""

    def ended(self, request: Request, produced: int, finished: bool) -> None:
        """An end; one at the request's own limit says only that it would have made at least so many. O(1)."""
        if produced < 1:
            return
        limit = request.output_limit
        told = finished and (limit is None or produced < limit)
        self._all.add(produced, told)
        name = _class(request.prompt_tokens, request.kind)
        lives = self._classes.get(name)
        if lives is None:
            if len(self._classes) >= CLASSES_AT_MOST:
                return
            lives = self._classes[name] = Lives()
        lives.add(produced, told)

    def state(self) -> PlainData:
        """Every class's ends by bin, empty bins left out."""
        return {"all": _plain(self._all), "classes": {name: _plain(lives) for name, lives in self._classes.items()}}

    def load(self, state: PlainData) -> None:
        """Restore ``state()``. Raises CallerError naming the class that is no such state, and then changes nothing."""
        if not isinstance(state, dict) or not isinstance(classes := state.get("classes"), dict):
            raise CallerError(f"History: its state is a dict with 'all' and 'classes', got {show(state)}")
        everything = _lives("all", state.get("all"))
        self._classes = {name: _lives(name, plain) for name, plain in classes.items()}
        self._all = everything


def _class(prompt_tokens: int, kind: str | None) -> str:
    return f"{prompt_tokens.bit_length() // 2}" if kind is None else f"{prompt_tokens.bit_length() // 2} {kind}"


def _plain(lives: Lives) -> PlainData:
    finished: dict[str, PlainData] = {str(b): value for b, value in enumerate(lives.finished) if value}
    censored: dict[str, PlainData] = {str(b): value for b, value in enumerate(lives.censored) if value}
    return {"finished": finished, "censored": censored, "weight": lives.weight}


def _lives(name: str, plain: object) -> Lives:
    lives = Lives()
    tables = (lives.finished, lives.censored)
    if isinstance(plain, dict) and is_number(plain.get("weight"), 1.0):
        lives.weight = float(plain["weight"])
        if all(_fill(bins, plain.get(key)) for bins, key in zip(tables, ("finished", "censored"), strict=True)):
            return lives
    raise CallerError(f"History: class {show(name)} of its state is no table of ends: {show(plain)}")


def _fill(bins: list[float], sparse: object) -> bool:
    """Put plain data into bins; False if it does not belong there."""
    if not isinstance(sparse, dict):
        return False
    for b, value in sparse.items():
        if b not in _BIN_NAMES or not is_number(value, 0.0):
            return False
        bins[_BIN_NAMES[b]] = float(value)
    return True


_BIN_NAMES = {str(b): b for b in range(BINS)}


def predictor(name: str) -> Predictor:
    """A predictor by name. Raises ConfigError for an unknown one."""
    known: dict[str, Callable[[], Predictor]] = {"none": NoPrediction, "history": History, "oracle": Oracle}
    if name not in PREDICTORS:
        raise ConfigError(f"predictor must be one of {', '.join(PREDICTORS)}, got {show(name)}")
    return known[name]()
