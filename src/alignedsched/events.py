"""Everything that can happen to the scheduler, as frozen records.

Events come from the caller (arrivals, cancels, standing wishes) and from the executor (reports). Every copy ends in
exactly one ``CopyDone`` or ``CopyFailed``; every order is named by a ``StepsDone`` or ``StepsFailed``, but for one that
was replaced before it ran: the report of the order that replaced it speaks for both.
"""

from __future__ import annotations

from attrs import frozen

from .request import Request, RequestId


@frozen
class Arrived:
    """A client's request is here."""

    request: Request


@frozen
class Cancelled:
    """The client no longer wants it. Unknown or ended ids are counted and ignored."""

    request: RequestId


@frozen
class StepsDone:
    """A lane has run steps of an order, up to and including step ``through``.

    ``first`` is the step at which the order took effect (its members' lengths are fixed by it); ``through ==
    first - 1`` says that it took effect and ran nothing (replaced at once, or a stop). Reports of one order come in
    the order of its steps. ``finished`` names requests and the step that gave each its last token, ``prefilled`` the
    requests whose chunk of this order is written. ``seconds`` is the time the newly reported steps took, ``ended``
    when the last of them ended (default: the ``now`` of the call). ``launched`` is the last step launched when the
    report was made (default: ``through`` plus the lane's run-ahead, as when a report is made at the end of a step).
    """

    lane: str
    order: int
    first: int
    through: int
    finished: tuple[tuple[RequestId, int], ...] = ()
    prefilled: tuple[RequestId, ...] = ()
    seconds: float = 0.0
    launched: int | None = None
    ended: float | None = None


@frozen
class StepsFailed:
    """A lane stopped: steps up to ``through`` are done, the next one failed, and the lane waits for a new order.

    ``poisoned`` names requests known to have caused it: they end as failed. The KV that was readable before stays so.
    """

    lane: str
    order: int
    first: int
    through: int
    reason: str
    poisoned: tuple[RequestId, ...] = ()
    finished: tuple[tuple[RequestId, int], ...] = ()


@frozen
class CopyDone:
    """A copy arrived whole; its target extent is readable."""

    copy: int


@frozen
class CopyFailed:
    """A copy ended without arriving (also the answer to an abort); nothing of it is readable."""

    copy: int
    reason: str = ""


@frozen
class CapacityChanged:
    """A tier now has this many KV blocks; what lies above is freed as soon as nothing may touch it."""

    tier: str
    blocks: int


@frozen
class LaneLost:
    """A lane runs no more steps (its devices keep their memory); what it decoded goes back to the pool."""

    lane: str


@frozen
class LaneBack:
    """A lost lane takes orders again, from step ``next_step`` on."""

    lane: str
    next_step: int


@frozen
class DeviceLost:
    """A device is gone with all KV in it; its lane is lost with it."""

    device: str


@frozen
class DeviceBack:
    """A lost device is back, its memory empty, its lane stepping from ``next_step`` on."""

    device: str
    next_step: int = 0


@frozen
class LinkChanged:
    """A link now runs at this rate (bytes/s); 0 says it is down and copies over it will fail."""

    source: str
    target: str
    bytes_per_s: float


@frozen
class StagedLost:
    """A helper took its staging memory back: the named requests' staged extents are void (empty: all of them)."""

    device: str
    requests: tuple[RequestId, ...] = ()


@frozen
class WeightsChanged:
    """The model's weights are new: all KV is void, and every live request is prefilled again with what it has."""


@frozen
class Paused:
    """Stop every lane as soon as possible and start nothing; KV stays where it is."""


@frozen
class Resumed:
    """Go on after ``Paused`` or ``Draining``."""


@frozen
class Draining:
    """Finish what has begun, start nothing that still queues; ``Scheduler.idle`` does not wait for it."""


ExecutorEvent = (
    StepsDone
    | StepsFailed
    | CopyDone
    | CopyFailed
    | CapacityChanged
    | LaneLost
    | LaneBack
    | DeviceLost
    | DeviceBack
    | LinkChanged
    | StagedLost
)
CallerEvent = Arrived | Cancelled | WeightsChanged | Paused | Resumed | Draining
Event = ExecutorEvent | CallerEvent
