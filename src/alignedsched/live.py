"""One live request as the scheduler keeps it: mutable, slotted, owned by the books and seen by nobody else."""

from __future__ import annotations

from attrs import Factory, define, field

from .plan import Outcome
from .queue import Waiting
from .request import Request, RequestId
from .states import CopyState, RequestState, check_transition


@define(eq=False)
class Live:
    """A request whose prefill has begun, until nothing of it is left.

    ``stored`` tokens have KV while it does not run; ``produced`` tokens were made until then. While it runs, both
    follow from its base in the running batch. ``target`` is what its present prefill has to compute.
    """

    request: Request
    order: int
    produced: int
    preemptions: int
    since: float
    target: int
    state: RequestState = RequestState.PREFILLING
    stored: int = 0  # prefilled tokens while PREFILLING
    ordered: int = 0  # prefill tokens ordered so far
    lane: str | None = None  # whose prefilling, candidate, joining or running request it is
    rank: int = 0
    join_order: int = -1  # the order it joined by
    context: int = 0  # context length of its first step as a member
    allowance: int = 0  # tokens it may make as a member
    base: int | None = None  # context length minus step, once the order is known to have taken effect
    leave_order: int = -1  # nobody reads it; it keeps its place in snapshots
    then: RequestState = RequestState.POOLED  # where it goes once it has left
    outcome: Outcome | None = None
    why: str = ""
    copies: dict[int, None] = field(factory=dict)  # under way, by id
    copy_failures: int = 0
    id: RequestId = field(init=False, default=Factory(lambda live: live.request.id, takes_self=True))

    @classmethod
    def begin(cls, waiting: Waiting, lane: str, rank: int, now: float) -> Live:
        return cls(
            waiting.request,
            waiting.order,
            waiting.produced,
            waiting.preemptions,
            now,
            waiting.prefill_tokens,
            lane=lane,
            rank=rank,
        )

    @property
    def context_length(self) -> int:
        """What its next decode step reads."""
        return self.stored + 1

    def tokens_left(self, max_positions: int) -> int:
        """Tokens it may still make."""
        room = max_positions - self.request.prompt_tokens
        limit = self.request.output_limit
        return (room if limit is None else min(limit, room)) - self.produced

    def to(self, state: RequestState, now: float) -> None:
        """Go to another state. Raises InvariantError if that is illegal.

        Who left a batch for the pool is out since it was told to leave: the report that it has left comes later.
        """
        check_transition(self.id, self.state, state)
        if not (state is RequestState.POOLED and self.state is RequestState.LEAVING):
            self.since = now
        self.state = state


@define(eq=False)
class Flight:
    """A copy under way. ``keep``: its source stays when it arrives."""

    copy: int
    request: RequestId
    source: str
    target: str
    start: int
    end: int
    keep: bool
    began: float
    state: CopyState = CopyState.FLYING
    quarantined: int = 0  # blocks of the target set aside because the lease ended
