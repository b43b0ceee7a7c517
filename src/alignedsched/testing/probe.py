"""A policy looked at while it works: what it is asked goes on to it, and every answer is examined.

The scheduler notices nothing of a ``Probe``: it hands on what the policy proposes, unchanged. What it finds wrong goes
to ``Findings``, by the name of the check. A probe may put a fresh policy, loaded with the old one's ``state()``, in
the place of the old one at any time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from random import Random
from typing import Any, TypeVar

from attrs import evolve, fields

from ..plan import Plan
from ..policies.protocols import Composition, Evict, PlainData, Policy, Sacrifice, Stepped, Take, Transfer, Watch
from ..request import Request
from ..views import LaneView
from .captured import Captured
from .proposals import composition_faults, place_faults, rank_faults, take_faults, victim_faults, wake_faults
from .results import Findings

T = TypeVar("T")
Question = Callable[[Policy, LaneView], T]


class SpoiledError(Exception):
    """A life need not go on: what is wrong is noted."""


class Probe:
    """Stands between a scheduler and the policy that ``make`` makes.

    ``examine``: with this probability an answer is examined. ``restore``: with this one a fresh policy, loaded with
    ``state()``, takes over before a question.
    """

    def __init__(
        self, make: Callable[[], Policy], findings: Findings, *, examine: float = 1.0, restore: float = 0.0
    ) -> None:
        self._make = make
        self._findings = findings
        self._examine = examine
        self._restore = restore
        self._rng = Random(0)
        self.inner = make()
        self.spoiled = False  # what the scheduler stands on may have been changed

    def policy(self) -> Policy:
        """The whole policy to give to a scheduler."""
        watches = tuple(_Watch(self, number) for number in range(len(self.inner.watches)))
        return evolve(self.inner, admission=self, batching=self, residency=self, watches=watches)

    # -- asking

    def _ask(self, what: str, view: LaneView, question: Question[T], faults: Callable[[T, Captured], Any]) -> T:
        if self._restore and self._rng.random() < self._restore:
            self._change()
        if self._rng.random() >= self._examine:
            return question(self.inner, view)
        before, memory = Captured.of(view), self._memory(whole=False)
        try:
            answer = question(self.inner, view)
        except Exception as error:
            self._findings.note("raises_nothing", f"{what} raised {type(error).__name__}: {error}")
            raise
        for fault in faults(answer, before):
            self._findings.note("proposals_legal", fault)
        after = Captured.of(view)
        if after != before:
            self.spoiled = True
            self._findings.note("views_unmodified", f"{what} changed {_difference(before, after)} of its view")
        elif self._memory(whole=False) != memory:
            self._findings.note("pure_until_taken", f"{what} changed state(), but only taken() may")
        else:
            self._ask_again(what, view, question, before, answer)
        return answer

    def _ask_again(self, what: str, view: LaneView, question: Question[T], before: Captured, answer: T) -> None:
        """The same question over the same view made of plain values has the same answer."""
        try:
            over_plain = _plain(question(self.inner, before.view(view)))
        except Exception as error:  # noqa: BLE001 - whatever it raises, over the scheduler's view it did not
            over_plain = f"{type(error).__name__}: {error}"
        if over_plain == _plain(answer):
            return
        if _plain(question(self.inner, view)) != _plain(answer):
            self._findings.note("pure_until_taken", f"{what}, asked twice over the same view, gives two answers")
        else:
            told = f"{over_plain!r:.120}, not {_plain(answer)!r:.120}"
            self._findings.note("same_over_plain_views", f"{what} over a view of plain values gives {told}")

    def _memory(self, *, whole: bool = True) -> str:
        """What the policy remembers, as text; ``whole``: also what its watches have learnt."""
        try:
            watches = self.inner.watches if whole else ()
            parts = [self.inner.batching.state(), *(watch.state() for watch in watches)]
            return json.dumps(parts, sort_keys=True, allow_nan=False)
        except (TypeError, ValueError) as error:
            self._findings.note("state_is_plain", f"state() is no plain data: {error}")
        except Exception as error:  # noqa: BLE001 - a policy may raise anything
            self._findings.note("raises_nothing", f"state() raised {type(error).__name__}: {error}")
        return "?"

    def _change(self) -> None:
        """A fresh policy takes over, with what ``state()`` says and nothing else."""
        memory = self._memory()
        if memory == "?":
            return
        self.inner = self._make()
        try:
            first, *others = json.loads(memory)
            self.inner.batching.load(first)
            for watch, part in zip(self.inner.watches, others, strict=True):
                watch.load(part)
        except Exception as error:  # noqa: BLE001 - a policy may raise anything
            self._findings.note("restored_goes_on", f"load(state()) raised {type(error).__name__}: {error}")
            self.spoiled = True
            return
        if self._memory() != memory:
            self._findings.note("restored_goes_on", "state() after load(state()) is another")

    # -- the three protocols

    def rank(self, request: Request) -> float:
        try:
            answer = self.inner.admission.rank(request)
        except Exception as error:
            self._findings.note("raises_nothing", f"rank raised {type(error).__name__}: {error}")
            raise
        for fault in rank_faults(answer):
            self._findings.note("proposals_legal", fault)
        return answer

    def admit(self, view: LaneView) -> Iterable[Take]:
        most = view.lane.max_tokens
        return self._ask(
            "admit", view, lambda p, v: list(p.admission.admit(v)), lambda takes, was: take_faults(takes, was, most)
        )

    def compose(self, view: LaneView) -> Composition:
        def faults(composition: Composition, was: Captured) -> Iterator[str]:
            for fault in wake_faults(composition, was.now):
                self._findings.note("wakes_later", fault)
            return composition_faults(composition, was)

        return self._ask("compose", view, lambda p, v: p.batching.compose(v), faults)

    def victims(self, view: LaneView, rank: int, blocks: int) -> Iterable[tuple[str, Sacrifice]]:
        return self._ask(
            "victims",
            view,
            lambda p, v: list(p.batching.victims(v, rank, blocks)),
            lambda victims, was: victim_faults(victims, was, rank),
        )

    def place(self, view: LaneView) -> Iterable[Transfer | Evict]:
        return self._ask(
            "place",
            view,
            lambda p, v: list(p.residency.place(v)),
            lambda wishes, was: place_faults(wishes, was, view.cluster),
        )

    def taken(self, view: LaneView, composition: Composition) -> None:
        try:
            self.inner.batching.taken(view, composition)
        except Exception as error:
            self._findings.note("raises_nothing", f"taken raised {type(error).__name__}: {error}")
            raise

    def state(self) -> PlainData:
        return self.inner.batching.state()

    def load(self, state: PlainData) -> None:
        self.inner.batching.load(state)


class _Watch:
    """Hands on to a watch of whoever the probe's policy is at the time."""

    def __init__(self, probe: Probe, number: int) -> None:
        self._probe = probe
        self._number = number

    def _inner(self) -> Watch:
        return self._probe.inner.watches[self._number]

    def stepped(self, facts: Stepped) -> None:
        self._inner().stepped(facts)

    def ended(self, request: Request, produced: int, finished: bool) -> None:
        self._inner().ended(request, produced, finished)

    def state(self) -> PlainData:
        return self._inner().state()

    def load(self, state: PlainData) -> None:
        self._inner().load(state)


def _plain(answer: object) -> object:
    """An answer to compare: sequences of a composition as lists, whatever the policy made them of."""
    if not isinstance(answer, Composition):
        return answer
    sequences = [list(ids) for ids in (answer.joins, answer.candidates, answer.parks, answer.unclaims)]
    return (*sequences, answer.wake_at, answer.look_at, answer.memory)


def overruled(plan: Plan) -> str:
    """Who was overruled, as the orders of a plan say."""
    whys = sorted({step.why for step in plan.steps if step.why.startswith("overruled")})
    return "; ".join(whys) or "overruled: it chose nothing although work waited and nothing was under way"


def _difference(before: Captured, after: Captured) -> str:
    return next(f.name for f in fields(Captured) if getattr(before, f.name) != getattr(after, f.name))
