"""Forced rotation: policies that send requests out of the batch for no other reason than to see them come back."""

from __future__ import annotations

from attrs import define

from alignedsched.policies import ArrivalOrder, Composition, DirectResidency, PlainData, Policy
from alignedsched.policies.cost_aligned import cost_aligned
from alignedsched.policies.fcfs import ContinuousBatching
from alignedsched.policies.rounds import RoundSettings
from alignedsched.views import LaneView


@define(eq=False)
class Rotating(ContinuousBatching):
    """Requests decode in ``groups`` by arrival number, one group after the other, each for ``steps`` steps."""

    groups: int = 3
    steps: int = 4

    def compose(self, view: LaneView) -> Composition:
        turn = (view.step // self.steps) % self.groups
        members = list(view.ranks[0].batch)
        pooled = list(view.pool.by_order())
        if not members and not pooled:
            return Composition()
        orders = {request: view.entry(request).order for request in (*members, *pooled)}
        present = {order % self.groups for order in orders.values()}
        while turn not in present:
            turn = (turn + 1) % self.groups
        return Composition(
            joins=[request for request in pooled if orders[request] % self.groups == turn],
            parks=[request for request in members if orders[request] % self.groups != turn],
            wake_at=view.now + 1e-6,
            why="its group's turn",
        )

    def taken(self, view: LaneView, composition: Composition) -> None: ...
    def state(self) -> PlainData: ...
    def load(self, state: PlainData) -> None: ...


def soft(groups: int = 3, steps: int = 4) -> Policy:
    """KV stays in the device."""
    return Policy("soft", ArrivalOrder(), Rotating(groups=groups, steps=steps), DirectResidency(to_host="never"))


def hard(groups: int = 3, steps: int = 4) -> Policy:
    """Whoever does not decode goes to the host."""
    return Policy("hard", ArrivalOrder(), Rotating(groups=groups, steps=steps), DirectResidency(to_host="always"))


def grouping() -> Policy:
    """The default policy in a hurry: it looks for groups at every millisecond, by the surface it is given."""
    return cost_aligned(rounds=RoundSettings(round_s=1e-3), refit=False)


class Raising(Rotating):
    """It rotates for a while, and then it breaks."""

    def compose(self, view: LaneView) -> Composition:
        if view.step > 20:
            raise RuntimeError("broken on purpose")
        return super().compose(view)


def raising() -> Policy:
    """A policy that raises in the middle of its work."""
    return Policy("raising", ArrivalOrder(), Raising(), DirectResidency(to_host="never"))
