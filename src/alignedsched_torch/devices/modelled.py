"""A device in virtual time that shows every missing wait: bytes land when their event fires, and not before.

One clock serves all devices of a model. Queued work gets a start (when its stream is free and its waits are over) and
an end; both are carried out when the clock passes them. A copy destroys its target when it starts and reads its source
when it ends, so whoever reads the target too early, or frees the source too early, computes with garbage. Other work
runs wholly at its start or wholly at its end, by a seeded coin: at the start it misses what has not arrived, at the
end its own results come late. Garbage is NaN, which spreads.
"""

from __future__ import annotations

import heapq
import itertools
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from random import Random

import torch
from attrs import define, frozen

from .base import DeviceError, Event, Piece


@frozen
class ModelledLink:
    """What copies go over: one after the other, whoever queued them."""

    bytes_per_s: float
    latency_s: float = 0.0  # of each piece


class Clock:
    """Virtual time of all devices of a model, and what happens when."""

    def __init__(self, links: Mapping[str, ModelledLink] | None = None, seed: int = 0) -> None:
        self.now = 0.0
        self.links = dict(links or {})
        self.down: set[str] = set()  # links over which copies fail
        self.coin = Random(seed)
        self.link_free: dict[str, float] = {}
        self._due: list[tuple[float, int, Callable[[], object]]] = []
        self._number = itertools.count()

    def at(self, time: float, happen: Callable[[], object]) -> None:
        heapq.heappush(self._due, (time, next(self._number), happen))

    def advance(self, until: float) -> None:
        """Let everything up to a time happen, in order."""
        while self._due and self._due[0][0] <= until:
            time, _, happen = heapq.heappop(self._due)
            self.now = max(self.now, time)
            happen()
        self.now = max(self.now, until)

    def next(self) -> float | None:
        """When the next thing happens, or None."""
        return self._due[0][0] if self._due else None


@define(eq=False)
class ModelledEvent:
    """A moment of the clock."""

    clock: Clock
    time: float
    error: str = ""

    def done(self) -> bool:
        self.clock.advance(self.clock.now)  # what is due now has happened
        self._check()
        return self.time <= self.clock.now

    def wait(self) -> None:
        self.clock.advance(self.time)
        self._check()

    def _check(self) -> None:
        if self.error:
            raise DeviceError(self.error)


class ModelledStream:
    """Work in order, each piece of it with a start and an end."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._free = 0.0  # when everything queued so far has ended
        self._error = ""  # of work since the last event

    def _span(self, seconds: float) -> tuple[float, float]:
        start = max(self._free, self._clock.now)
        self._free = start + seconds
        return start, self._free

    def launch(self, work: Callable[[], object], seconds: float = 0.0) -> None:
        start, end = self._span(seconds)
        self._clock.at(start if self._clock.coin.random() < 0.5 else end, lambda: self._do(work))

    def _do(self, work: Callable[[], object]) -> None:
        try:
            work()
        except RuntimeError as error:
            self._error = self._error or str(error)

    def recorded(self, work: Callable[[], object]) -> Callable[[], object]:
        return work

    def copy(self, pieces: Sequence[Piece], link: str = "") -> None:
        clock, over = self._clock, self._clock.links.get(link)
        for piece in pieces:
            seconds = 0.0 if over is None else over.latency_s + piece.bytes / over.bytes_per_s
            self._free = max(self._free, clock.link_free.get(link, 0.0)) if over is not None else self._free
            start, end = self._span(seconds)
            if over is not None:
                clock.link_free[link] = end
            clock.at(start, lambda piece=piece: spoil(piece))  # type: ignore[misc]
            clock.at(end, lambda piece=piece: self._arrive(piece, link))  # type: ignore[misc]

    def _arrive(self, piece: Piece, link: str) -> None:
        if link in self._clock.down:
            self._error = self._error or f"link {link} is down"
        else:
            piece.target.copy_(piece.source)

    def wait(self, event: Event) -> None:
        assert isinstance(event, ModelledEvent), "events of a modelled device come from its own clock"
        self._free = max(self._free, event.time)

    def record(self) -> Event:
        event = ModelledEvent(self._clock, max(self._free, self._clock.now))
        self._clock.at(event.time, lambda: self._pass(event))  # the host may wait for it
        return event

    def _pass(self, event: ModelledEvent) -> None:
        event.error, self._error = self._error, ""


def destroy(tensor: torch.Tensor) -> None:
    """Fill with what no computation survives."""
    tensor.fill_(math.nan if tensor.is_floating_point() else -1)


def spoil(piece: Piece) -> None:
    """A copy has begun: what is fresh in its target can be read by nobody."""
    for part in (piece.target,) if piece.fresh is None else piece.fresh:
        destroy(part)


class ModelledDevice:
    """Memory of a modelled device; ``clock`` is shared by all of them."""

    poisons = True

    def __init__(self, name: str, clock: Clock) -> None:
        self.name = name
        self.clock = clock
        self.torch_device = torch.device("cpu")
        self._streams: dict[str, ModelledStream] = {}

    def stream(self, name: str) -> ModelledStream:
        return self._streams.setdefault(name, ModelledStream(self.clock))

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        tensor = torch.empty(tuple(shape), dtype=dtype)
        destroy(tensor)
        return tensor

    def pinned(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        return self.empty(shape, dtype)

    def host_ids(self, count: int) -> torch.Tensor:
        return torch.full((count,), -1, dtype=torch.int64)

    def settle(self) -> None:
        """Memory is filled on the spot."""

    def scribble(self, tensor: torch.Tensor) -> None:
        destroy(tensor)

    def now(self) -> float:
        return self.clock.now

    def idle(self, until: float | None, woken: threading.Event | None = None) -> None:
        first = self.clock.next()
        times = [time for time in (first, until) if time is not None]
        if times:
            self.clock.advance(min(times))
