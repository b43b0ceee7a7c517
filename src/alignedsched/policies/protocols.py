"""What a policy is: small Protocols that propose; the scheduler checks, owns every block, and disposes.

Four decisions, one Protocol each for three of them (formation is a detail of batching and has its own in
``formation``). A policy reads a ``LaneView`` and returns a proposal; nothing it does has an effect until the
scheduler takes the proposal. It keeps memory only in ``taken``, which is called when that happened, and shows it as
plain data in ``state()`` (restored by ``load``), so that snapshots hold it.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from attrs import field, frozen

from ..load import Load
from ..narrator import Reason
from ..queue import Waiting
from ..request import Request, RequestId
from ..views import LaneView

PlainData = None | bool | int | float | str | list["PlainData"] | dict[str, "PlainData"]


@frozen
class Take:
    """Prefill ``tokens`` further tokens of a request on rank ``rank``."""

    request: RequestId
    tokens: int
    rank: int = 0


class Admission(Protocol):
    """Which requests get prefill tokens in the lane's next step, and how many."""

    def rank(self, request: Request) -> float:
        """Where a request queues: smaller first, equal ranks by arrival. Asked once per stay in the queue."""
        ...

    def admit(self, view: LaneView) -> Iterable[Take]:
        """Chunks for the next step: at most the lane's ``max_tokens`` per rank, decode rows included.

        A request's first chunk reserves room for its whole prefill; a proposal without room is not taken.
        """
        ...


class HoldsBack(Protocol):
    """What an admission policy may have beside ``admit``, so that ``explain`` can tell why requests queue."""

    def held_back(self, view: LaneView, first: Waiting, ordered: int) -> Reason | None:
        """Why ``first``, which still queues, did not begin; None: nothing this policy knows of.

        Asked only while somebody listens, right after ``admit``: ``ordered`` prefill tokens were taken of it. Do not
        ask ``view.eligible`` here: the caller's hook may count how often it is asked.
        """
        ...


class PassesOver(Protocol):
    """What batching may have beside ``compose``, so that ``explain`` can tell why requests wait in the pool."""

    def passed_over(self, view: LaneView, request: RequestId) -> Reason | None:
        """Why a pooled request was left in the pool; None: nothing this policy knows of. Asked as ``held_back`` is."""
        ...


@frozen
class Composition:
    """What batching wants of a lane. Ids the scheduler cannot use (no room, wrong state) are passed over.

    ``joins``: into the running batch, in this order, at once where the KV is on the device and otherwise as soon as
    it is. ``candidates``: chosen for the next batch, so that residency may stage them. ``parks``: members that go
    back to the pool. ``unclaims``: candidates or joining requests that go back to it. ``wake_at``: ask again then
    (seconds). ``look_at``: ask then if nothing waits, and leave the lane as it is if nothing is proposed.
    """

    joins: Sequence[RequestId] = ()
    candidates: Sequence[RequestId] = ()
    parks: Sequence[RequestId] = ()
    unclaims: Sequence[RequestId] = ()
    wake_at: float | None = None
    look_at: float | None = None
    why: str = ""
    memory: PlainData = None  # handed back in ``taken``


class Sacrifice(enum.Enum):
    """How a member makes room."""

    RECOMPUTE = "recompute"  # its KV is dropped; it queues again and is prefilled with all it has
    PARK = "park"  # it goes to the pool; its KV is copied out before its room is free


class Batching(Protocol):
    """Who decodes together on a lane, who comes next, and who makes room."""

    def compose(self, view: LaneView) -> Composition:
        """Called when something changed that may matter to the lane."""
        ...

    def victims(self, view: LaneView, rank: int, blocks: int) -> Iterable[tuple[RequestId, Sacrifice]]:
        """Members of a rank in the order in which they make room; taken until ``blocks`` blocks come free."""
        ...

    def taken(self, view: LaneView, composition: Composition) -> None:
        """The composition was taken."""
        ...

    def state(self) -> PlainData: ...
    def load(self, state: PlainData) -> None: ...


@frozen
class Transfer:
    """Copy a request's KV to a tier. ``keep``: what it was copied from stays (else dropped when the copy arrives)."""

    request: RequestId
    target: str
    deadline: float | None = None
    keep: bool = False
    why: str = ""


@frozen
class Evict:
    """Drop a request's KV in a tier; taken only where another whole copy of it is readable elsewhere."""

    request: RequestId
    tier: str


class Residency(Protocol):
    """Where KV lies and when it moves."""

    def place(self, view: LaneView) -> Iterable[Transfer | Evict]:
        """Copies for the lane: joining requests in, candidates staged, pooled requests out; in order of urgency.

        A transfer without room or route is not taken; the scheduler picks its source.
        """
        ...


@frozen
class Stepped:
    """Steps that a lane has done: what each rank held in the first of them, and the seconds all of them took.

    Rows computed beyond a request's last token are not counted; the longer the lane's run-ahead, the more there are.
    A step with prefill chunks stands alone, with the chunks in its loads. ``seconds`` is 0 where the executor does not
    report them.
    """

    lane: str
    loads: tuple[Load, ...]
    steps: int
    seconds: float

    @property
    def prefill(self) -> bool:
        """Whether chunks were in it."""
        return any(load.chunks for load in self.loads)


class Watch(Protocol):
    """What learns from what happens: told of steps and ends before lanes are planned, all events of a call being in.

    Its memory is plain data, and part of snapshots.
    """

    def stepped(self, facts: Stepped) -> None:
        """A lane has done steps."""
        ...

    def ended(self, request: Request, produced: int, finished: bool) -> None:
        """A request whose prefill had begun has ended after ``produced`` tokens: finished, cancelled or failed."""
        ...

    def state(self) -> PlainData: ...
    def load(self, state: PlainData) -> None: ...


@frozen
class Policy:
    """A named whole: one policy for each decision, and those who listen for them.

    ``watches`` are told of steps and ends, each in turn; without any nothing is recorded for them.
    ``may_idle_s``: how long it may leave work waiting while nothing runs and nothing is under way (seconds); beyond
    that the scheduler overrules it, first come first served, and counts it. ``made_as``: the registered name and the
    options that made it, where ``registry.policy`` did; a log needs them to make it again.
    """

    name: str
    admission: Admission
    batching: Batching
    residency: Residency
    may_idle_s: float = 0.0
    watches: tuple[Watch, ...] = ()
    made_as: tuple[str, Mapping[str, Any]] | None = field(default=None, eq=False, repr=False)
