"""Links in virtual time: copies over one link, or over links that share a channel, are served one at a time.

First come, first served costs the same total time as sharing the bandwidth, and lets the first copy arrive first; it
is what a copy engine does with one stream per direction.
"""

from __future__ import annotations

import heapq
from collections import deque

from attrs import define, field

from ..cluster import Cluster
from ..plan import Copy


@define
class _Channel:
    queue: deque[Copy] = field(factory=deque)
    active: int | None = None  # copy


class Links:
    """Copies waiting and under way. Starting and ending a copy costs O(links)."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._channels: dict[tuple[str, str], _Channel] = {key: _Channel() for key in cluster.link}
        self._shared: dict[str, int | None] = {name: None for link in cluster.links for name in link.shares}
        self._ends: list[tuple[float, int]] = []
        self._flying: dict[int, Copy] = {}

    def submit(self, copy: Copy, now: float) -> None:
        self._channels[self._key(copy)].queue.append(copy)
        self._start(now)

    def abort(self, copy: int) -> Copy | None:
        """Take a copy back that has not started; None if it has (it then ends by itself) or is unknown."""
        for channel in self._channels.values():
            for waiting in channel.queue:
                if waiting.copy == copy:
                    channel.queue.remove(waiting)
                    return waiting
        return None

    def next_end(self) -> float | None:
        """When the next copy arrives."""
        return self._ends[0][0] if self._ends else None

    def arrived(self, now: float) -> list[Copy]:
        """Copies that have arrived by now; those waiting behind them start."""
        done = []
        while self._ends and self._ends[0][0] <= now:
            at, number = heapq.heappop(self._ends)
            copy = self._flying.pop(number)
            done.append(copy)
            key = self._key(copy)
            self._channels[key].active = None
            for name in self._cluster.link[key].shares:
                self._shared[name] = None
            self._start(at)
        return done

    def bytes_of(self, copy: Copy) -> int:
        return self._cluster.layout.copy_bytes(copy.start, copy.end)

    def _key(self, copy: Copy) -> tuple[str, str]:
        return self._cluster.place(copy.source), self._cluster.place(copy.target)

    def _start(self, now: float) -> None:
        for key, channel in self._channels.items():
            shares = self._cluster.link[key].shares
            if channel.active is None and channel.queue and all(self._shared[name] is None for name in shares):
                copy = channel.queue.popleft()
                channel.active = copy.copy
                for name in shares:
                    self._shared[name] = copy.copy
                link = self._cluster.link[key]
                self._flying[copy.copy] = copy
                heapq.heappush(self._ends, (now + link.latency_s + self.bytes_of(copy) / link.bytes_per_s, copy.copy))
