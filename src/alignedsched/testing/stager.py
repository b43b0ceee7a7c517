"""A residency policy that stages whatever it can, so that copies from and to staging memory are not rare."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

from attrs import evolve

from ..policies import density_first
from ..policies.protocols import Evict, Policy, Residency, Transfer
from ..views import LaneView


class EagerStaging:
    """Another residency policy, and copies of the oldest pooled requests into every staging memory there is."""

    def __init__(self, residency: Residency) -> None:
        self._residency = residency

    def place(self, view: LaneView) -> Iterable[Transfer | Evict]:
        staging = [tier.id for tier in view.cluster.tiers.values() if tier.staged]
        oldest = [*view.joining, *view.candidates, *islice(view.pool.by_order(), 4)]
        return [*self._stage(view, staging, oldest), *self._residency.place(view)]

    @staticmethod
    def _stage(view: LaneView, staging: list[str], oldest: list[str]) -> Iterator[Transfer]:
        for request in oldest:
            there = view.entry(request).tiers
            for tier in staging:
                if tier not in there and not view.flying(request):
                    yield Transfer(request, tier, keep=True)


def stager() -> Policy:
    """``density_first`` with the pool in host memory and eager staging."""
    policy = density_first(k_min=2, guard_s=2.0, to_host="always")
    return evolve(policy, name="stager", residency=EagerStaging(policy.residency))
