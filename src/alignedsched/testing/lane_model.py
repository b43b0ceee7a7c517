"""What an executor that keeps the contract has to remember: launched rows, what is done, what is still to be told."""

from __future__ import annotations

from collections import deque

from attrs import define, field

from ..cluster import Lane
from ..events import StepsFailed
from ..plan import Chunk, Step


@define(eq=False)
class Kv:
    """A request's KV in one tier: ``readable`` tokens, ``written`` ones (steps launched, copies under way)."""

    readable: int = 0
    written: int = 0
    weights: int = 0  # with which it was computed


@define(eq=False)
class Row:
    """What a launched step does to one request."""

    request: str
    rank: int
    before: int
    after: int
    chunk: Chunk | None = None


@define(eq=False)
class Fragment:
    """Something to report: steps ``done`` of one order up to ``through``."""

    order: int
    first: int
    through: int
    finished: list[tuple[str, int]] = field(factory=list)
    prefilled: list[str] = field(factory=list)
    chunked: bool = False
    failed: StepsFailed | None = None
    told: bool = False


@define(eq=False)
class LaneModel:
    """One lane: membership as of its next step, what is launched, and what is still to be told."""

    lane: Lane
    launched: int = -1
    done: int = -1
    told: int = -1  # the last step the scheduler has heard of
    order: Step | None = None
    first: int = 0
    ran: bool = False  # the order in force has launched a step
    members: dict[str, tuple[int, int]] = field(factory=dict)  # request -> (rank, base)
    pending: deque[tuple[int, Step]] = field(factory=deque)
    rows: dict[int, list[Row]] = field(factory=dict)  # by step, until the scheduler knows of it
    weights: dict[int, int] = field(factory=dict)  # in force when an order came
    by_order: dict[int, tuple[int, int, bool]] = field(factory=dict)  # step -> (order, first, chunks)
    took: deque[tuple[int, int]] = field(factory=deque)  # (first, order) in effect from a step that is not done yet
    mail: list[Fragment] = field(factory=list)
    lost: bool = False
    silent: bool = False  # what it has to tell is lost on the way, until it is given up
    failed: bool = False  # a step failed and the scheduler has not heard it: orders until then are void

    def reach(self) -> int:
        """The last step that may be launched: by run-ahead."""
        return self.told + self.lane.run_ahead + 1

    def touching(self, request: str, rank: int) -> bool:
        """Whether a launched step that has not ended touches a request's KV on a rank."""
        return any(
            row.request == request and row.rank == rank
            for step in range(self.done + 1, self.launched + 1)
            for row in self.rows.get(step, ())
        )
