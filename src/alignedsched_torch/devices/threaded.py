"""A device whose streams are threads with random delays: real concurrency, as unkind as hardware is in its worst hour.

What ``modelled`` shows in every run shows here now and then, but nothing is modelled: a missing wait is a true race.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence, Set
from random import Random

import torch

from .base import DeviceError, Event, Piece, sleep
from .modelled import destroy, spoil


class ThreadedEvent:
    """Set by the stream's thread when it gets there."""

    def __init__(self) -> None:
        self._set = threading.Event()
        self._error: BaseException | None = None

    def fire(self, error: BaseException | None) -> None:
        self._error = error
        self._set.set()

    def done(self) -> bool:
        fired = self._set.is_set()
        self._check()
        return fired

    def wait(self) -> None:
        self.passed()
        self._check()

    def passed(self) -> None:
        """Wait whatever came of the work: what another stream waits for is that it has ended."""
        self._set.wait()

    def _check(self) -> None:
        if self._error is not None:
            raise self._error


class ThreadedStream:
    """One daemon thread that works its queue off, dawdling now and then."""

    def __init__(self, name: str, seed: int, longest_delay_s: float, down: Set[str]) -> None:
        self._rng = Random(f"{name} {seed}")
        self._longest_delay_s = longest_delay_s
        self._down = down
        self._work: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._error: BaseException | None = None  # of work since the last event
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            if self._rng.random() < 0.3:
                time.sleep(self._rng.random() * self._longest_delay_s)
            try:
                work()
            except BaseException as error:  # noqa: BLE001 - told by the next event
                self._error = self._error or error

    def close(self) -> None:
        """The thread ends when all that is queued has run."""
        self._work.put(None)

    def launch(self, work: Callable[[], object], seconds: float = 0.0) -> None:
        self._work.put(work)

    def recorded(self, work: Callable[[], object]) -> Callable[[], object]:
        return work

    def copy(self, pieces: Sequence[Piece], link: str = "") -> None:
        for piece in pieces:
            self._work.put(lambda piece=piece: self._copy(piece, link))  # type: ignore[misc]

    def _copy(self, piece: Piece, link: str) -> None:
        spoil(piece)
        time.sleep(self._rng.random() * self._longest_delay_s * 0.1)
        if link in self._down:
            raise DeviceError(f"link {link} is down")
        piece.target.copy_(piece.source)

    def wait(self, event: Event) -> None:
        assert isinstance(event, ThreadedEvent), "events of a threaded device come from its own kind"
        self._work.put(event.passed)

    def record(self) -> Event:
        event = ThreadedEvent()
        self._work.put(lambda: self._pass(event))
        return event

    def _pass(self, event: ThreadedEvent) -> None:
        error, self._error = self._error, None
        event.fire(error)


class ThreadedDevice:
    """Main memory behind threads. Copies over the links in ``down``, a set that may change, fail."""

    poisons = True

    def __init__(self, name: str, seed: int = 0, longest_delay_s: float = 0.001, down: Set[str] = frozenset()) -> None:
        self.name = name
        self._down = down
        self.torch_device = torch.device("cpu")
        self._seed = seed
        self._longest_delay_s = longest_delay_s
        self._streams: dict[str, ThreadedStream] = {}

    def stream(self, name: str) -> ThreadedStream:
        if name not in self._streams:
            self._streams[name] = ThreadedStream(f"{self.name}/{name}", self._seed, self._longest_delay_s, self._down)
        return self._streams[name]

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
        return time.monotonic()

    def idle(self, until: float | None, woken: threading.Event | None = None) -> None:
        sleep(until, woken, 0.0002)

    def close(self) -> None:
        """End the threads behind what is queued; the device is of no more use."""
        for stream in self._streams.values():
            stream.close()
