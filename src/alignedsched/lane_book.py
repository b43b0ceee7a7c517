"""What the books keep per lane beside its orders, and the outbox in which instructions wait for the next plan."""

from __future__ import annotations

from attrs import Factory, define, field

from .lanes import LaneState
from .plan import Abort, Copy, Drop, Plan, Release, Step
from .request import RequestId
from .states import RequestState

_NOTHING = Plan()


@define
class Outbox:
    """Instructions on their way out; kept for the next plan if a call ends in an error."""

    steps: list[Step] = field(factory=list)
    copies: list[Copy] = field(factory=list)
    aborts: list[Abort] = field(factory=list)
    drops: list[Drop] = field(factory=list)
    releases: list[Release] = field(factory=list)
    given_up: list[str] = field(factory=list)  # lanes

    def plan(self, wake_at: float | None) -> Plan:
        """Everything in it as a plan; the box is empty afterwards."""
        if not (self.steps or self.copies or self.aborts or self.drops or self.releases or self.given_up):
            return _NOTHING if wake_at is None else Plan(wake_at=wake_at)
        plan = Plan(
            tuple(self.steps), tuple(self.copies), tuple(self.aborts), tuple(self.drops), tuple(self.releases), wake_at,
            tuple(self.given_up),
        )  # fmt: skip
        for box in (self.steps, self.copies, self.aborts, self.drops, self.releases, self.given_up):
            box.clear()
        return plan


@define(eq=False)
class LaneBook:
    """What the core keeps per lane beside its orders."""

    state: LaneState
    tiers: tuple[str, ...]  # of the ranks
    prefilling: dict[RequestId, None] = field(factory=dict)  # begun, not all ordered
    expected: dict[RequestId, None] = field(factory=dict)  # last chunk ordered, not reported
    candidates: dict[RequestId, None] = field(factory=dict)
    joining: dict[RequestId, None] = field(factory=dict)
    going: dict[RequestId, RequestState] = field(factory=dict)  # members to leave in the next order, and whereto
    fences: dict[RequestId, tuple[int, int]] = field(factory=dict)  # (step, order) that end what may touch its KV
    kinds: dict[str, int] = field(factory=dict)  # members by kind, where kinds are limited
    dirty: bool = True
    renew: bool = False
    put_off: bool = False  # its next step does not fit yet, and who makes room is decided when a report comes
    relieved: bool = False  # members made room in this very call
    wake_at: float | None = None  # batching wants to be asked again then (seconds)
    look_at: float | None = None  # or then, if nothing waits
    looked: bool = False  # such a moment has come: it is asked even if nothing waits
    why: str = ""  # what batching said of its last composition
    heard: float | None = None  # since when it owes a report, or the time of the last one

    def may_plan(self) -> bool:
        """Whether an order may be decided on now."""
        return self.state.may_order() and not (self.put_off and self.state.awaits_report())

    id: str = field(init=False, default=Factory(lambda book: book.state.lane.id, takes_self=True))
