"""What a policy's watches are told: the steps a report covers and who ended, once all events of a call are in.

Told only then, so that a watch that raises cannot leave an event half taken in.
"""

from __future__ import annotations

from attrs import define, field

from .asking import ask
from .books import Books
from .lane_book import LaneBook
from .lanes import Issued, Progress
from .live import Live
from .load import Load
from .plan import Outcome
from .policies.protocols import Policy, Stepped


@define(eq=False)
class Watching:
    """Collects facts for the watches of a policy, and tells them. Made only for a policy that has some."""

    books: Books
    policy: Policy
    _steps: list[Stepped] = field(init=False, factory=list)
    _ends: list[Live] = field(init=False, factory=list)

    def __attrs_post_init__(self) -> None:
        self.books.on_end = self._ends.append

    def stepped(self, lane: LaneBook, progress: Progress, seconds: float) -> None:
        """Newly reported steps of one order; called before who finished in them leaves.

        O(ranks + chunks + members that orders under way add or remove).
        """
        steps = progress.through - progress.start + 1
        if steps > 0:
            loads = [self._load(lane, progress.order, rank, progress.start) for rank in range(len(lane.tiers))]
            self._steps.append(Stepped(lane.id, tuple(loads), steps, seconds))

    def _load(self, lane: LaneBook, order: Issued, rank: int, step: int) -> Load:
        """One rank's load in ``step``: its batch as planned, with what later orders changed taken back."""
        live, batch = self.books.live, lane.state.batches[rank]
        ordered = order.step.chunks
        chunks = tuple((chunk.start, chunk.end) for chunk in ordered if chunk.rank == rank) if ordered else ()
        if not lane.state.issued and not lane.fences:  # as of a plain step, which has to be cheap
            return Load(len(batch), batch.total(step), batch.longest(step), chunks)
        later = {
            join.request: batch.base(join.request) + step
            for issued in lane.state.issued
            for join in issued.step.joins
            if join.rank == rank and join.request in batch
        }
        fenced = (live[request] for request in lane.fences if live[request].rank == rank)
        left = [member.base + step for member in fenced if member.base is not None]
        longest = next((batch.base(member) + step for member in batch.longest_first() if member not in later), 0)
        return Load(
            len(batch) - len(later) + len(left),
            batch.total(step) - sum(later.values()) + sum(left),
            max(longest, *left) if left else longest,
            chunks,
        )

    def tell(self) -> None:
        """Tell every watch what was collected. Raises PolicyError when one raises; what was collected is gone then."""
        if not (self._steps or self._ends):
            return
        steps, ends = tuple(self._steps), tuple(self._ends)
        self._steps.clear()
        self._ends.clear()

        def tell_all() -> None:
            for watch in self.policy.watches:
                for facts in steps:
                    watch.stepped(facts)
                for live in ends:
                    watch.ended(live.request, live.produced, live.outcome is Outcome.FINISHED)

        ask(self.policy, tell_all)
