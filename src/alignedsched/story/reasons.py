"""Why a waiting request waits: looked at right after a lane has decided, when the room is what its policies saw.

Each function answers for one request and one lane. Figures come in front (see ``Reason``), so that a wait of many
decisions is told as one sentence with the range of its figure.
"""

from __future__ import annotations

from attrs import define, field

from ..books import Books
from ..lane_book import LaneBook
from ..live import Live
from ..narrator import Reason
from ..policies.protocols import Policy
from ..scheduler_view import SchedulerView
from ..states import RequestState
from .sentences import name, seconds, several, span

UNDECIDED = Reason("the steps ordered before had to come first")
DRAINING = Reason("the scheduler was draining: nothing new began")
MOST_REASONS = 4  # told of one wait


def above(books: Books, state: RequestState, request: str) -> Reason | None:
    """Why no lane can take a waiting request at all, whatever it decides."""
    if books.paused:
        return Reason("the scheduler was paused")
    lanes = books.prefillers if state is RequestState.QUEUED else books.deciders
    if all(lane.state.lost for lane in lanes):
        return Reason(f"every lane that {'prefills' if state is RequestState.QUEUED else 'decodes'} was lost")
    if books.draining and request in books.queue and not books.queue.get(request).preemptions:
        return DRAINING
    return None


def queued(books: Books, lane: LaneBook, view: SchedulerView, policy: Policy, ordered: int, hook: bool) -> Reason:
    """Why a lane that prefills did not begin the first of the queue, having ordered ``ordered`` prefill tokens.

    ``hook``: the caller has one that may hold requests back. It is not asked again: it may count its calls.
    """
    first = next(iter(books.queue))
    if books.draining and not first.preemptions:
        return DRAINING
    if lane.relieved:
        return Reason(f"{name(lane.id)} had just made room by preemption, and began nobody until something ended")
    ask = getattr(policy.admission, "held_back", None)
    why: Reason | None = ask(view, first, ordered) if ask is not None else None
    short = _short(books, lane, first.prefill_tokens)
    who = f"{name(policy.name)}, or the caller," if hook else name(policy.name)
    return why or short or Reason(f"{who} did not begin it on {name(lane.id)}")


def _short(books: Books, lane: LaneBook, tokens: int) -> Reason | None:
    """Blocks a lane lacks for a prefill of so many tokens, if any."""
    tier = max(lane.tiers, key=lambda t: (books.ledger.free(t), t))
    short = books.layout.blocks(books.prefill_room(lane, tokens)) - books.ledger.free(tier)
    return Reason(f"blocks short on {name(tier)}", short) if short > 0 else None


def pooled(books: Books, lane: LaneBook, view: SchedulerView, policy: Policy, live: Live) -> Reason | None:
    """Why a lane did not take a pooled request; None where it does not decode or another lane's device holds it."""
    if not lane.state.role.decodes:
        return None
    elsewhere = [t for t in books.ledger.extents(live.id) if t in books.lane_of_device and t not in lane.tiers]
    if any(books.lanes[books.lane_of_device[tier]].state.role.decodes for tier in elsewhere):
        return None
    if sum(map(len, lane.state.batches)) + len(lane.joining) >= lane.state.lane.max_members * len(lane.tiers):
        return Reason(f"all seats of {name(lane.id)} were taken, {lane.state.lane.max_members} a rank")
    tier = max(lane.tiers, key=lambda t: (books.ledger.free(t), t))
    short = books.ledger.missing(live.id, tier, live.context_length) - books.ledger.free(tier)
    if short > 0:
        return Reason(f"blocks short on {name(tier)}", short)
    ask = getattr(policy.batching, "passed_over", None)
    why: Reason | None = ask(view, live.id) if ask is not None else None
    if why is not None:
        return why
    members = lane.state.members()
    longer = sum(_longer(lane, rank, live.context_length) for rank in range(len(lane.tiers)))
    if not members:
        return Reason(f"{name(policy.name)} did not choose it for {name(lane.id)}")
    who = "members longer than it" if longer else "members, none longer than it,"
    return Reason(f"{who} ran on {name(lane.id)}, and {name(policy.name)} did not choose it", longer or members)


def of_order(lane: LaneBook) -> str:
    """Why a lane's newest order is as it is: the composition's words, unless the order has its own (an overruling)."""
    newest = lane.state.issued[-1] if lane.state.issued else lane.state.standing
    usual = newest is None or newest.step.why in ("prefill", "decode")
    return lane.why if usual or newest is None else newest.step.why


def _longer(lane: LaneBook, rank: int, length: int) -> int:
    """Members of a rank longer than so much before its next step."""
    batch, step = lane.state.batches[rank], lane.state.latest_first()
    return sum(1 for member in batch if batch.base(member) + step > length)


def candidate(lane: LaneBook) -> Reason:
    """Why a candidate has not joined: the running batch has its turn."""
    return Reason(f"members of the batch before it ran on {name(lane.id)}", lane.state.members())


def joining(books: Books, lane: LaneBook, live: Live) -> Reason:
    """Why a request wanted in the running batch is not in it: its KV is on its way, or cannot come."""
    flights = [books.flights[copy] for copy in live.copies]
    if flights:
        return Reason(f"its KV was on its way from {name(flights[0].source)} to {name(flights[0].target)}")
    tier = max(lane.tiers, key=lambda t: (books.ledger.free(t), t))
    short = books.ledger.missing(live.id, tier, live.context_length) - books.ledger.free(tier)
    if short > 0:
        return Reason(f"blocks short on {name(tier)}", short)
    if lane.state.members() >= lane.state.lane.max_members * len(lane.tiers):
        return Reason(f"all seats of {name(lane.id)} were taken, {lane.state.lane.max_members} a rank")
    return Reason(f"no copy of its KV to {name(tier)} was ordered")


@define
class _Share:
    """What one reason had of a wait: for how long it stood, and the ranges of its figures."""

    seconds: float = 0.0
    figures: list[int] = field(factory=list)  # lowest and highest
    ahead: list[int] = field(factory=list)


def _widen(bounds: list[int], figure: int | None) -> None:
    if figure is not None:
        bounds[:] = [min([figure, *bounds]), max([figure, *bounds])]


@define
class Tally:
    """The reasons of one wait: equal ones become one, with how long it stood and the range of its figure.

    Several lanes may each have their reason at the same time.
    """

    decisions: int = 0
    _shares: dict[tuple[str, bool], _Share] = field(factory=dict)

    def add(self, reason: Reason, for_s: float, ahead: int = 0) -> None:
        """A reason stood for so long, for the first of the queue while so many queued before this one."""
        share = self._shares.setdefault((reason.text, ahead > 0), _Share())
        share.seconds += for_s
        _widen(share.figures, reason.figure)
        _widen(share.ahead, ahead or None)

    def words(self) -> str:
        """`` in 43 decisions: 12 to 40 blocks short on d0``; empty without any reason."""
        decisions = f" in {several(self.decisions, 'decision')}" if self.decisions > 1 else ""
        told = [(text, share) for (text, _), share in self._shares.items() if share.seconds > 0]
        told.sort(key=lambda entry: -entry[1].seconds)
        parts = []
        for text, share in told[:MOST_REASONS]:
            part = f"{span(*share.figures)} {text}" if share.figures else text
            if share.ahead:
                part += f" for the first of {span(*share.ahead)} before it in the queue"
            parts.append(f"{part} ({seconds(share.seconds)})" if len(told) > 1 else part)
        more = f"; and {several(len(told) - MOST_REASONS, 'rarer reason')}" if len(told) > MOST_REASONS else ""
        return f"{decisions}: {'; '.join(parts)}{more}" if parts else decisions
