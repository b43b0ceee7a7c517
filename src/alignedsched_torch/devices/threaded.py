"""A device whose streams are threads with random delays: real concurrency, as unkind as hardware is in its worst hour.

What ``modelled`` shows in every run shows here now and then, but nothing is modelled: a missing wait is a true race.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from random import Random

import torch

from .base import Event, Piece, sleep
from .modelled import destroy


class ThreadedEvent:
    """Set by the stream's thread when it gets there."""

    def __init__(self) -> None:
        self._set = threading.Event()

    def fire(self) -> None:
        self._set.set()

    def done(self) -> bool:
        return self._set.is_set()

    def wait(self) -> None:
        self._set.wait()


class ThreadedStream:
    """One daemon thread that works its queue off, dawdling now and then."""

    def __init__(self, name: str, seed: int, longest_delay_s: float) -> None:
        self._rng = Random(f"{name} {seed}")
        self._longest_delay_s = longest_delay_s
        self._work: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self.error: BaseException | None = None
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def _run(self) -> None:
        while True:
            work = self._work.get()
            if self._rng.random() < 0.3:
                time.sleep(self._rng.random() * self._longest_delay_s)
            try:
                work()
            except BaseException as error:  # noqa: BLE001 - told to whoever records the next event
                self.error = self.error or error

    def launch(self, work: Callable[[], object], seconds: float = 0.0) -> None:
        self._work.put(work)

    def recorded(self, work: Callable[[], object]) -> Callable[[], object]:
        return work

    def copy(self, pieces: Sequence[Piece], link: str = "") -> None:
        for piece in pieces:
            self._work.put(lambda piece=piece: self._copy(piece))  # type: ignore[misc]

    def _copy(self, piece: Piece) -> None:
        destroy(piece.target)
        time.sleep(self._rng.random() * self._longest_delay_s * 0.1)
        piece.target.copy_(piece.source)

    def wait(self, event: Event) -> None:
        self._work.put(event.wait)

    def record(self) -> Event:
        if self.error is not None:
            raise self.error
        event = ThreadedEvent()
        self._work.put(event.fire)
        return event


class ThreadedDevice:
    """Main memory behind threads."""

    poisons = True

    def __init__(self, name: str, seed: int = 0, longest_delay_s: float = 0.001) -> None:
        self.name = name
        self.torch_device = torch.device("cpu")
        self._seed = seed
        self._longest_delay_s = longest_delay_s
        self._streams: dict[str, ThreadedStream] = {}

    def stream(self, name: str) -> ThreadedStream:
        if name not in self._streams:
            self._streams[name] = ThreadedStream(f"{self.name}/{name}", self._seed, self._longest_delay_s)
        return self._streams[name]

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        tensor = torch.empty(tuple(shape), dtype=dtype)
        destroy(tensor)
        return tensor

    def pinned(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        return self.empty(shape, dtype)

    def host_ids(self, count: int) -> torch.Tensor:
        return torch.full((count,), -1, dtype=torch.int64)

    def scribble(self, tensor: torch.Tensor) -> None:
        destroy(tensor)

    def now(self) -> float:
        return time.monotonic()

    def idle(self, until: float | None, woken: threading.Event | None = None) -> None:
        sleep(until, woken, 0.0002)
