"""What a simulated lane computes with: the order in force, uniform steps ahead, and what it says of steps done."""

from __future__ import annotations

from attrs import define, field

from ..events import StepsDone
from ..plan import Chunk, Step


@define(eq=False)
class Work:
    """What only the executor knows of requests: tokens each will still make, and who has made all of them."""

    to_make: dict[str, int] = field(factory=dict)
    finished: set[str] = field(factory=set)


@define(eq=False)
class InForce:
    """The order in force, and the first and last of its steps."""

    step: Step
    first: int
    last: int
    reported: bool = False


@define(eq=False)
class Segment:
    """Uniform steps ``start`` to ``last``; ``ends`` are absolute seconds; ``begin`` is when the first began.

    A plain list: most segments have a handful of steps, where calls into numpy cost more than the arithmetic.
    """

    start: int
    last: int
    begin: float
    ends: list[float]
    balanced: float  # seconds per step at zero imbalance
    members: int
    chunks: tuple[Chunk, ...]

    def end_of(self, step: int) -> float:
        """When a step of it ends (the step before its first: when it began)."""
        return self.ends[step - self.start] if step >= self.start else self.begin

    def cut(self, step: int) -> None:
        """Let it end before ``step``."""
        self.last = step - 1
        del self.ends[step - self.start :]


@define
class Span:
    """What a lane did for a while, for whoever measures: ``durations`` of consecutive steps, seconds."""

    lane: str
    begin: float
    end: float
    durations: list[float]
    balanced: float
    served: int  # members, and requests with a chunk


@define(eq=False)
class Ran:
    """What a report says of an order, but for how far the lane had launched when it was made."""

    order: int
    first: int
    through: int
    finished: tuple[tuple[str, int], ...]
    prefilled: tuple[str, ...]
    seconds: float
    ended: float

    def event(self, lane: str, launched: int) -> StepsDone:
        told = (self.finished, self.prefilled, self.seconds)
        return StepsDone(lane, self.order, self.first, self.through, *told, launched, self.ended)
