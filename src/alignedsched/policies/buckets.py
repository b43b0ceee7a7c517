"""``buckets``: static length buckets take turns; a baseline.

As BucketServe (arXiv 2507.17120) groups requests of about one length before they are served, with fixed boundaries
instead of its adaptive splitting and merging: the turn is that of the bucket whose request has waited longest, and
lasts until those of the bucket that queued when it began are admitted, in order of arrival. Decoding is continuous:
members of an earlier turn run on beside the new ones. A request waits for at most one turn of every other bucket
beside those of its own that came before it. A request alone in the queue is a turn of its own, as in ``fcfs``.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence

from attrs import field, frozen

from ..errors import ConfigError
from ..outside import is_count, show
from ..queue import Waiting
from ..views import LaneView, QueueReader
from .admission import ArrivalOrder
from .fcfs import ContinuousBatching
from .protocols import Policy
from .residency import DirectResidency
from .sorted_waves import Wave
from .waves import WaveMemory

BOUNDS = (256, 1024, 4096, 16_384)  # tokens: the last of each bucket but the longest one


def _bounds(instance: object, attribute: object, value: object) -> None:
    whole = isinstance(value, tuple) and all(is_count(bound, 1) for bound in value)
    if not (whole and isinstance(value, tuple) and list(value) == sorted(set(value))):
        raise ConfigError(f"BucketOrder.bounds must be rising counts of tokens, got {show(value)}")


@frozen
class BucketOrder(ArrivalOrder):
    """Prefill bucket by bucket; otherwise as ArrivalOrder. O(requests that queue) when a turn begins."""

    bounds: tuple[int, ...] = field(default=BOUNDS, validator=_bounds)
    memory: WaveMemory = field(factory=WaveMemory)

    def _in_turn(self, view: LaneView) -> Iterable[Waiting]:
        turn, queue = self.memory.wave, view.queue
        at = turn.at
        while at < len(turn.ids) and turn.ids[at] not in queue:
            at += 1
        turn = Wave(turn.ids, at) if at < len(turn.ids) else Wave(self._next(queue))
        self.memory.wave = turn
        return turn.in_turn(view)

    def _next(self, queue: QueueReader) -> Sequence[str]:
        """All that queue of the bucket whose first has waited longest."""
        rows = [(bisect_left(self.bounds, tokens), order, request) for tokens, order, request in queue.lengths()]
        if not rows:
            return ()
        bucket, _, _ = min(rows, key=lambda row: row[1])
        return [request for b, _, request in sorted(rows) if b == bucket]


def buckets(*, bounds: Sequence[int] = BOUNDS, swap: bool = False, token_budget: int | None = None) -> Policy:
    """Static length buckets as a whole policy; ``bounds`` in tokens to prefill, the rest as in ``fcfs``."""
    memory = WaveMemory()
    return Policy(
        "buckets",
        BucketOrder(token_budget=token_budget, bounds=tuple(bounds), memory=memory),
        ContinuousBatching(swap=swap),
        DirectResidency(to_host="short" if swap else "never"),
        watches=(memory,),
    )
