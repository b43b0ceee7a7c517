"""Sorted waves: all that queues at one moment is admitted by ascending length; what comes later is the next wave.

Neighbours in the order have similar lengths, so who runs together is aligned without a threshold. Nobody is overtaken
by what arrives after the wave's beginning, so each waits at most the rest of one wave and its own: waves lengthen with
the backlog, and a request alone is a wave of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from attrs import frozen

from ..errors import CallerError
from ..outside import is_count, show
from ..queue import Waiting
from ..request import RequestId
from ..views import LaneView, PoolReader, QueueReader
from .protocols import PlainData


@frozen
class Wave:
    """Ids by ascending length, and how many of them have been admitted (or have gone) already."""

    ids: Sequence[RequestId] = ()
    at: int = 0

    def now(self, queue: QueueReader) -> Wave:
        """The wave as it stands, or the next one, of all that queues, where this one is used up.

        Amortised O(1); O(n log n) in what queues when a wave begins.
        """
        left = self._left(queue)
        return left if left.ids else Wave([request for _, _, request in sorted(queue.lengths())])

    def of_pool(self, pool: PoolReader) -> Wave:
        """The same over prefilled requests. Amortised O(1); O(n) when a wave begins."""
        left = self._left(pool)
        return left if left.ids else Wave(list(pool.by_length()))

    def _left(self, where: QueueReader | PoolReader) -> Wave:
        ids, at = self.ids, self.at
        while at < len(ids) and ids[at] not in where:
            at += 1
        return self if at == self.at else Wave(ids, at) if at < len(ids) else Wave()

    def pooled(self, pool: PoolReader) -> Iterator[RequestId]:
        """Pooled requests in the order in which to join."""
        return (self.ids[at] for at in range(self.at, len(self.ids)) if self.ids[at] in pool)

    def in_turn(self, view: LaneView) -> Iterator[Waiting]:
        """Who queues, in the order in which to admit: who had begun before, longest here first, then the wave.

        Behind it who came later, by length, if nobody of the wave may begin at all (the caller holds them back, or
        they need a larger lane): O(n log n) where it comes to that.
        """
        queue, held = view.queue, True
        again = queue.again()
        yield from map(queue.get, again)
        for at in range(self.at, len(self.ids)):
            if self.ids[at] in queue and self.ids[at] not in again:
                waiting = queue.get(self.ids[at])
                held = held and not view.eligible(waiting.request)
                yield waiting
        if held and len(queue) > len(self.ids) - self.at:
            mine = frozenset((*self.ids[self.at :], *again))
            later = [request for _, _, request in sorted(queue.lengths()) if request not in mine]
            yield from map(queue.get, later)

    def plain(self) -> PlainData:
        """[ids, at]. O(1) for a list of ids, which nobody changes."""
        ids = self.ids if isinstance(self.ids, list) else list(self.ids)
        return [ids, self.at]

    @staticmethod
    def from_plain(plain: PlainData) -> Wave:
        """Raises CallerError for anything but a list of ids and how many of them have gone."""
        if isinstance(plain, list) and len(plain) == 2:
            ids, at = plain
            if isinstance(ids, list) and all(isinstance(request, str) for request in ids) and is_count(at, 0, len(ids)):
                return Wave(ids, at)  # type: ignore[arg-type]
        raise CallerError(f"a wave is a list of request ids and a count of them, got {show(plain)}")
