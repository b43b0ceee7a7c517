"""One stretch of a request's life: in the queue, in prefill, in the pool, in a batch; and how it is told."""

from __future__ import annotations

from attrs import define, field

from ..lane_book import LaneBook
from ..live import Live
from ..narrator import Reason
from ..plan import Outcome
from ..states import RequestState
from .reasons import UNDECIDED, Tally
from .sentences import name, seconds, several, span

R = RequestState
WAITS = (R.QUEUED, R.POOLED, R.CANDIDATE, R.JOINING)
Standing = dict[str, tuple[Reason, int]]  # by lane: why a request waits, and for how many before it in the queue


@define
class Batch:
    """What a request met when it joined a running batch."""

    number: str  # LANE/ORDER
    why: str
    members: int
    shortest: int
    longest: int
    own: int
    produced: int  # tokens it had by then

    @staticmethod
    def met(live: Live, lane: LaneBook, number: str, why: str) -> Batch:
        batch = lane.state.batches[live.rank]
        step = live.context - batch.base(live.id)  # its first one here
        behind_chunk = live.stored < live.target  # that chunk gives it one token before it decodes
        shortest, longest = batch.shortest(step), batch.longest(step)
        return Batch(number, why, len(batch), shortest, longest, live.context, live.produced + behind_chunk)

    def words(self) -> str:
        """`` batch lane-d0/17 of 12 members, 3,000 to 4,100 tokens long, itself 3,512 (why)``."""
        others = f"{several(self.members, 'member')}, {span(self.shortest, self.longest)} tokens long"
        alone = self.members == 1
        what = f"alone, {self.own:,} tokens long" if alone else f"of {others}, itself {self.own:,}"
        return f"batch {self.number} {what}" + (f" ({self.why})" if self.why else "")


@define
class Phase:
    """A request's stay in one state since a time; ``left`` when it is on its way out of its batch already."""

    state: RequestState
    since: float
    lane: str = ""
    joined: int = -1  # by which order
    chunks: int = 0
    batch: Batch | None = None
    left: bool = False
    tally: Tally = field(factory=Tally)
    standing: Standing = field(factory=dict)
    above: Reason | None = None  # no lane can take it, whatever any of them decided

    def passed(self, for_s: float) -> None:
        """Time went by: the reasons that stand get it."""
        if for_s <= 0 or self.state not in WAITS:
            return
        if self.above is not None or not self.standing:
            self.tally.add(self.above or UNDECIDED, for_s)
            return
        for reason, ahead in self.standing.values():
            self.tally.add(reason, for_s, ahead)

    def hear(self, heard: Standing) -> None:
        """What was said in one call."""
        if heard and self.state in WAITS:
            self.standing |= heard
            self.tally.decisions += 1

    def words(self, until: float, live: Live | None, produced: int) -> str:
        """The stay as a sentence, ended (or told until) a time, when it had produced so many tokens."""
        took, lane = seconds(until - self.since), name(self.lane)
        if self.state is R.QUEUED:
            return f"waited in the queue for {took}{self.tally.words()}"
        if self.state is R.PREFILLING and live is not None:
            whole = live.stored >= live.target or live.outcome is Outcome.FINISHED
            tokens = f"{live.target:,}" if whole else f"{live.stored:,} of {live.target:,}"
            return f"prefilled {tokens} tokens on {lane} in {several(self.chunks, 'chunk')}, {took}"
        if self.state is R.POOLED:
            return f"waited in the pool for {took}{self.tally.words()}"
        if self.state is R.CANDIDATE:
            return f"chosen for the next batch of {lane}, waited {took} for its turn{self.tally.words()}"
        if self.state is R.JOINING:
            return f"wanted in the running batch of {lane}, not in it for {took}{self.tally.words()}"
        if self.state is R.RUNNING and live is not None and self.batch is not None:
            made = several(max(0, produced - self.batch.produced), "token")
            return f"decoded {made} on {lane} in {took}, having joined {self.batch.words()}"
        return f"kept its blocks for {took} more, until nothing under way could touch them"
