"""Prefill: which requests begin, and which chunks a lane's next step computes; what admission proposes, checked."""

from __future__ import annotations

from collections.abc import Callable, Collection

from .asking import takes
from .books import Books
from .lane_book import LaneBook
from .live import Live
from .plan import Chunk
from .policies.protocols import Policy, Take
from .request import Request
from .scheduler_view import SchedulerView


class Prefill:
    """Takes chunks for one lane at a time. ``max_kinds`` bounds the kinds in one batch, chunks included."""

    def __init__(
        self,
        books: Books,
        policy: Policy,
        views: dict[str, SchedulerView],
        max_kinds: int | None,
        eligible: Callable[[Request], bool],
    ) -> None:
        self._books = books
        self._policy = policy
        self._views = views
        self._max_kinds = max_kinds
        self._eligible = eligible
        self.refused: int | None = None  # arrival number of the first whose kind was, while a lane is planned

    def kind_open(self, lane: LaneBook, request: Request, order: int, kinds: Collection[str]) -> bool:
        """Whether a batch that holds these kinds may hold the request too; ``order`` is its arrival number.

        Who may not is passed by fewer than the lane has seats of those that came later; then no kinds but its own join,
        or there would always be more of those that run.
        """
        limit, kind = self._max_kinds, request.kind
        if limit is None or kind is None:
            return True
        if self.refused is not None and order >= self.refused + lane.state.lane.max_members * len(lane.tiers):
            return False
        if kind in kinds or len(kinds) < limit:
            return True
        self.refused = order if self.refused is None else min(self.refused, order)
        return False

    def admit(self, lane: LaneBook, chunks: list[Chunk]) -> None:
        """Chunks for the lane's next step, of requests that begin and of those that have begun, into ``chunks``.

        What is in it when the caller's hook raises was taken, and has to be ordered.
        """
        view = self._views[lane.id]
        tokens = [lane.state.lane.max_tokens - len(batch) for batch in lane.state.batches]
        kinds = set(lane.kinds)
        served: set[str] = set()  # an order has one chunk of a request
        for take in takes(self._policy, view):
            chunk = None if take.request in served else self._take(lane, take, tokens, kinds)
            served.add(take.request)
            if chunk is None:
                self._books.counts["refused"] += 1
            else:
                chunks.append(chunk)

    def _take(self, lane: LaneBook, take: Take, tokens: list[int], kinds: set[str]) -> Chunk | None:
        books = self._books
        if not 0 <= take.rank < len(tokens) or not 0 < take.tokens <= tokens[take.rank]:
            return None
        live = books.live.get(take.request)
        if live is None:
            live = self._begin(lane, take, kinds)
        if live is None or live.id not in lane.prefilling or live.rank != take.rank:
            return None
        if not self.kind_open(lane, live.request, live.order, kinds):
            return None
        start, end = live.ordered, min(live.ordered + take.tokens, live.target)
        tokens[take.rank] -= end - start
        live.ordered = end
        if live.request.kind is not None:
            kinds.add(live.request.kind)
        books.ledger.pin(live.id, lane.tiers[live.rank])
        last = end == live.target
        if last:
            del lane.prefilling[live.id]
            lane.expected[live.id] = None
        return Chunk(live.id, start, end, live.rank, last)

    def _begin(self, lane: LaneBook, take: Take, kinds: set[str]) -> Live | None:
        books = self._books
        if take.request not in books.queue:
            return None
        waiting = books.queue.get(take.request)
        request = waiting.request
        if lane.relieved or (books.draining and not waiting.preemptions):
            return None  # who has just made room does not come back in the same breath
        if not self._eligible(request):
            return None
        if not self.kind_open(lane, request, waiting.order, kinds):
            return None
        room = books.prefill_room(lane, waiting.prefill_tokens)
        if books.layout.blocks(room) > books.ledger.free(lane.tiers[take.rank]):
            return None
        return books.begin(waiting, lane, take.rank)
