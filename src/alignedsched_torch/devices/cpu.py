"""The plain CPU: everything happens at once, in the order in which it is asked for."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from .base import Event, Piece, sleep


class _Done:
    """Whatever was queued has run already."""

    def done(self) -> bool:
        return True

    def wait(self) -> None:
        """Nothing to wait for."""


_DONE = _Done()


class CpuStream:
    """Runs what is queued on the spot."""

    def launch(self, work: Callable[[], object], seconds: float = 0.0) -> None:
        work()

    def recorded(self, work: Callable[[], object]) -> Callable[[], object]:
        return work

    def copy(self, pieces: Sequence[Piece], link: str = "") -> None:
        for piece in pieces:
            piece.target.copy_(piece.source)

    def wait(self, event: Event) -> None:
        event.wait()

    def record(self) -> Event:
        return _DONE


class CpuDevice:
    """Main memory as a device."""

    poisons = False

    def __init__(self, name: str = "cpu") -> None:
        self.name = name
        self.torch_device = torch.device("cpu")
        self._stream = CpuStream()

    def stream(self, name: str) -> CpuStream:
        return self._stream

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Zeros the system gives on first touch: a large pool that is hardly used costs next to nothing."""
        zeros = np.zeros(math.prod(shape) * dtype.itemsize, dtype=np.uint8)
        return torch.from_numpy(zeros).view(dtype).view(tuple(shape))

    def pinned(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        return self.empty(shape, dtype)

    def host_ids(self, count: int) -> torch.Tensor:
        return torch.full((count,), -1, dtype=torch.int64)

    def settle(self) -> None:
        """Memory is filled on the spot."""

    def scribble(self, tensor: torch.Tensor) -> None:
        """Nobody can have missed a wait here."""

    def now(self) -> float:
        return time.monotonic()

    def idle(self, until: float | None, woken: threading.Event | None = None) -> None:
        sleep(until, woken, 0.0)
