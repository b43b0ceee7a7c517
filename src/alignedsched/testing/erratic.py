"""A policy that proposes anything at all: unknown ids, duplicates, wrong states, and now and then it raises."""

from __future__ import annotations

from collections.abc import Iterable
from random import Random

from .. import policies
from ..policies.admission import ArrivalOrder
from ..policies.fcfs import ContinuousBatching
from ..policies.protocols import Composition, Evict, PlainData, Policy, Sacrifice, Take, Transfer
from ..policies.residency import DirectResidency
from ..request import Request
from ..views import LaneView


class Erratic:
    """A policy that proposes anything at all, until it is told to be sane."""

    def __init__(self, seed: int) -> None:
        self.rng = Random(seed)
        self.sane = False
        self.raises = self.rng.choice((0.0, 0.03))
        self.cleaned: set[str] = set()
        self.swap = self.rng.random() < 0.5
        self.good = ContinuousBatching(swap=self.swap)
        self.admission = ArrivalOrder()
        self.residency = DirectResidency(to_host="short" if self.swap else "never")

    def rank(self, request: Request) -> float:
        return 0.0

    def _some(self, view: LaneView, most: int = 4) -> list[str]:
        if self.rng.random() < self.raises:
            raise RuntimeError("a bug in a policy")
        known = [*view.pool.by_order(), *view.candidates, *view.joining, *view.expected, "nobody"]
        known += [member for rank in view.ranks for member in rank.batch]
        known += [waiting.request.id for waiting in view.queue]
        known += [begun.request for begun in view.prefilling]
        return self.rng.choices(known, k=self.rng.randint(0, most))

    def admit(self, view: LaneView) -> Iterable[Take]:
        if self.sane:
            return list(self.admission.admit(view))
        known = [begun.request for begun in view.prefilling] + [w.request.id for w in view.queue]
        ranks = len(view.ranks)
        some = [request for request in known if self.rng.random() < 0.5]
        takes = [Take(request, self.rng.randint(0, 40), self.rng.randint(-1, ranks)) for request in some]
        return takes + [Take(r, self.rng.randint(1, 9), 0) for r in self._some(view, 1)]

    def compose(self, view: LaneView) -> Composition:
        if self.sane:
            if view.lane.id not in self.cleaned:  # what nobody sane would have claimed goes back first
                self.cleaned.add(view.lane.id)
                return Composition(unclaims=[*view.candidates, *view.joining], wake_at=view.now)
            return self.good.compose(view)
        return Composition(
            joins=[*self._some(view), *view.expected] if self.rng.random() < 0.7 else self._some(view),
            candidates=self._some(view),
            parks=self._some(view, 2) if self.rng.random() < 0.3 else (),
            unclaims=self._some(view, 2),
            wake_at=view.now + 1.0 if self.rng.random() < 0.3 else None,
        )

    def victims(self, view: LaneView, rank: int, blocks: int) -> Iterable[tuple[str, Sacrifice]]:
        if self.sane:
            return self.good.victims(view, rank, blocks)
        return [(request, self.rng.choice(list(Sacrifice))) for request in self._some(view)]

    def place(self, view: LaneView) -> Iterable[Transfer | Evict]:
        if self.sane:
            return list(self.residency.place(view))
        tiers = [*view.cluster.tiers, "nowhere"]
        wishes: list[Transfer | Evict] = []
        for request in [*self._some(view), *view.joining]:
            if self.rng.random() < 0.2:
                wishes.append(Evict(request, self.rng.choice(tiers)))
            else:
                own = self.rng.random() < 0.5
                target = self.rng.choice(view.lane.ranks) if own else self.rng.choice(tiers)
                wishes.append(Transfer(request, target, keep=self.rng.random() < 0.5))
        return wishes

    def taken(self, view: LaneView, composition: Composition) -> None:
        """Nothing to remember."""

    def state(self) -> PlainData:
        return None

    def load(self, state: PlainData) -> None:
        """Nothing to restore."""


def random_policy(rng: Random) -> tuple[Policy, Erratic | None]:
    """A shipped policy, or an erratic one (given beside it, so that it can be told to be sane)."""
    kind = rng.choice(("fcfs", "swap", "density", "erratic", "erratic"))
    if kind == "erratic":
        erratic = Erratic(rng.randint(0, 1 << 30))
        return Policy("erratic", erratic, erratic, erratic), erratic
    if kind == "density":
        return policies.density_first(), None
    return policies.fcfs(swap=kind == "swap"), None
