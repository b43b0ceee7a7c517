"""Everything the scheduler can ask of an executor, as frozen records a dumb executor can carry out.

Within one plan the members of a lane at rest that its orders take out, up to the first order that lets it run, leave
first; then come drops and releases, then copies, then the orders, each lane's in the order of their numbers. A
``Step`` order stands until the next order of its lane replaces it: it holds from the first step the executor has not
launched yet, for at most ``horizon`` steps. An order with prefill chunks runs exactly one step (``horizon`` 1) and is
never replaced before it has run; the order after it holds from the step after.
"""

from __future__ import annotations

import enum

from attrs import frozen

from .request import RequestId


@frozen
class Chunk:
    """Prefill tokens ``start`` to ``end`` (exclusive) of a request on rank ``rank``; ``last`` gives its next token.

    After a preemption by recompute the tokens produced so far are prefilled again behind the prompt.
    """

    request: RequestId
    start: int
    end: int
    rank: int = 0
    last: bool = False


@frozen
class Join:
    """A request becomes a decoding member of rank ``rank``; its first step reads ``context_length`` tokens."""

    request: RequestId
    context_length: int
    rank: int = 0


@frozen
class Step:
    """A standing order to a lane. Membership is a delta: ``leaves`` go, ``joins`` come, finished members left already.

    ``horizon`` 0 stops the lane. ``why`` names the rule that made the order.
    """

    lane: str
    order: int
    horizon: int
    joins: tuple[Join, ...] = ()
    leaves: tuple[RequestId, ...] = ()
    chunks: tuple[Chunk, ...] = ()
    why: str = ""


@frozen
class Copy:
    """Copy KV of tokens ``start`` to ``end`` (exclusive) between tiers; wanted by ``deadline`` (absolute seconds).

    The target's first ``start`` tokens are readable already. Ends in exactly one CopyDone or CopyFailed.
    """

    copy: int
    request: RequestId
    source: str
    target: str
    start: int
    end: int
    deadline: float | None = None
    why: str = ""


@frozen
class Abort:
    """Nobody wants this copy any more: it may end early, but ends in its one completion all the same."""

    copy: int


@frozen
class Drop:
    """The KV of a request in a tier is no longer needed beyond its first ``keep`` tokens; its blocks may be reused.

    Where a copy still writes there (its lease has ended and it was aborted), the blocks may be reused when that copy
    has ended; the request may get other KV in the tier meanwhile.
    """

    request: RequestId
    tier: str
    keep: int = 0


class Outcome(enum.Enum):
    """How a request ended."""

    FINISHED = "finished"
    CANCELLED = "cancelled"
    REJECTED = "rejected"
    FAILED = "failed"


@frozen
class Release:
    """The last word on a request, exactly once: everything of it may be forgotten."""

    request: RequestId
    outcome: Outcome
    why: str = ""


@frozen
class Plan:
    """What to do now. ``wake_at``: call ``handle`` again at the latest then, without events if nothing happened.

    ``given_up``: lanes that owed a report for longer than the lease. What they have not reported has not happened;
    they get no orders, and nothing is copied to their devices, until ``LaneBack`` says that their steps have ended.
    This comes before everything else in the plan.
    """

    steps: tuple[Step, ...] = ()
    copies: tuple[Copy, ...] = ()
    aborts: tuple[Abort, ...] = ()
    drops: tuple[Drop, ...] = ()
    releases: tuple[Release, ...] = ()
    wake_at: float | None = None
    given_up: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.steps or self.copies or self.aborts or self.drops or self.releases or self.given_up)
