"""Sorted waves: all that queues at one moment is admitted by ascending length; what comes later is the next wave.

The length that counts is the mean context length while a request decodes: its prompt and half of the output that is
expected of it. Neighbours in the order have similar lengths, so who runs together is aligned without a threshold.
Nobody is overtaken by what arrives after the wave's beginning, so each waits at most the rest of one wave and its own:
waves lengthen with the backlog, and a request alone is a wave of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from attrs import frozen

from ..errors import CallerError
from ..outside import is_count, show
from ..queue import Waiting
from ..request import RequestId
from ..views import LaneView, PoolReader, QueueReader
from .protocols import PlainData

Expects = Callable[[int], float]  # the tokens that a request with so many prompt tokens will make


def prompt_only(tokens: int) -> float:
    """Nothing is expected of anybody: waves by the length of the prompt alone."""
    return 0.0


@frozen
class Wave:
    """Ids by ascending length, and how many of them have been admitted (or have gone) already."""

    ids: Sequence[RequestId] = ()
    at: int = 0

    def now(self, queue: QueueReader, expects: Expects = prompt_only) -> Wave:
        """The wave as it stands, or the next one, of all that queues, where this one is used up.

        Amortised O(1); O(n log n) in what queues when a wave begins.
        """
        left = self.left(queue)
        return left if left.ids else Wave(_ascending(queue.lengths(), expects))

    def anew(self, queue: QueueReader, expects: Expects) -> Wave:
        """Who is left of the wave, sorted by what is expected of them by now. O(n log n) in what queues."""
        mine = frozenset(self.ids[self.at :])
        return Wave(_ascending((row for row in queue.lengths() if row[2] in mine), expects))

    def of_pool(self, pool: PoolReader, most: int) -> Wave:
        """The same over prefilled requests of up to ``most`` tokens. Amortised O(1); O(n) when a wave begins."""
        left = self.left_of_pool(pool, most)
        return left if left.ids else Wave(list(pool.by_length(high=most + 1)))

    def left(self, queue: QueueReader) -> Wave:
        """Who of the wave is still there; an empty wave where nobody is. Amortised O(1)."""
        return self._from(queue.__contains__)

    def left_of_pool(self, pool: PoolReader, most: int) -> Wave:
        """The same in the pool. Who is longer than ``most`` tokens holds up no wave: it is of a later one."""
        return self._from(lambda request: request in pool and pool.length(request) <= most)

    def _from(self, there: Callable[[RequestId], bool]) -> Wave:
        ids, at = self.ids, self.at
        while at < len(ids) and not there(ids[at]):
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


def _ascending(rows: Iterable[tuple[int, int, RequestId]], expects: Expects) -> list[RequestId]:
    """Ids of (prompt tokens, arrival number, id), sorted. Prompts of one power of two are expected to make as many."""
    half: dict[int, int] = {}
    keys: list[tuple[int, int, RequestId]] = []
    for tokens, number, request in rows:
        octave = tokens.bit_length()
        if octave not in half:
            half[octave] = int(expects(tokens) / 2)
        keys.append((tokens + half[octave], number, request))
    return [request for _, _, request in sorted(keys)]
