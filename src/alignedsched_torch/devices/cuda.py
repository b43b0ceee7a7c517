"""A CUDA device: torch's streams and events, pinned host memory, copies that never stop the host.

A copy between two GPUs is queued on a side stream of each: torch's ``copy_`` runs on the source's current stream and
puts a barrier before and behind it on the target's current stream, which must therefore not be the one that decodes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from .base import Event, Piece, sleep


class CudaEvent:
    """A torch event."""

    def __init__(self, event: torch.cuda.Event) -> None:
        self.event = event

    def done(self) -> bool:
        return bool(self.event.query())

    def wait(self) -> None:
        self.event.synchronize()


class CudaStream:
    """A torch stream of one GPU."""

    def __init__(self, device: torch.device, priority: int = 0) -> None:
        self.stream = torch.cuda.Stream(device, priority=priority)
        self.stream.wait_stream(torch.cuda.current_stream(device))  # weights and pools are still being filled there
        self._sides: dict[int, torch.cuda.Stream] = {}  # on the other GPU of a copy, by its index
        self._pool: Any = None  # memory of its graphs

    def launch(self, work: Callable[[], object], seconds: float = 0.0) -> None:
        with torch.cuda.stream(self.stream):
            work()

    def recorded(self, work: Callable[[], object]) -> Callable[[], object]:
        """A CUDA graph. Run once before, so that kernels are compiled and libraries have their memory."""
        work()
        graph = torch.cuda.CUDAGraph()
        # Copies go on meanwhile on other streams, queued by this thread or another: only its own calls are watched.
        with torch.cuda.graph(graph, pool=self._pool, stream=self.stream, capture_error_mode="thread_local"):
            work()
        self._pool = graph.pool()  # graphs of one stream never run at once: they may share what they need in between
        return graph.replay

    def copy(self, pieces: Sequence[Piece], link: str = "") -> None:
        for piece in pieces:
            with torch.cuda.stream(self.stream), torch.cuda.stream(self._side(piece)):
                piece.target.copy_(piece.source, non_blocking=True)

    def _side(self, piece: Piece) -> torch.cuda.Stream:
        """The stream that stands for the other GPU in a copy between two; this one where there is only one GPU."""
        here = self.stream.device_index
        for end in (piece.target, piece.source):
            if end.is_cuda and end.device.index != here:
                return self._sides.setdefault(end.device.index, torch.cuda.Stream(end.device))
        return self.stream

    def wait(self, event: Event) -> None:
        assert isinstance(event, CudaEvent), "events of a CUDA device come from CUDA streams"
        self.stream.wait_event(event.event)
        for side in self._sides.values():
            side.wait_event(event.event)

    def record(self) -> Event:
        for side in self._sides.values():
            self.stream.wait_stream(side)
        event = torch.cuda.Event()
        event.record(self.stream)
        return CudaEvent(event)


class CudaDevice:
    """One GPU. Two of them may share a GPU (``index`` equal): two logical devices for tests on one."""

    poisons = False

    def __init__(self, name: str, index: int = 0) -> None:
        self.name = name
        self.torch_device = torch.device("cuda", index)
        self._streams: dict[str, CudaStream] = {}

    def stream(self, name: str) -> CudaStream:
        if name not in self._streams:
            high = -1 if name == "compute" else 0  # decoding goes before copies' kernels
            self._streams[name] = CudaStream(self.torch_device, high)
        return self._streams[name]

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        return torch.zeros(tuple(shape), dtype=dtype, device=self.torch_device)

    def pinned(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Pinned exactly as large as asked: torch's own pinned allocator rounds up to a power of two."""
        tensor = torch.empty(tuple(shape), dtype=dtype)
        status = torch.cuda.cudart().cudaHostRegister(tensor.data_ptr(), tensor.numel() * tensor.element_size(), 0)
        if int(status):
            raise MemoryError(f"cannot pin {tensor.numel() * tensor.element_size()} bytes of host memory: {status}")
        return tensor

    def host_ids(self, count: int) -> torch.Tensor:
        return torch.empty((count,), dtype=torch.int64, pin_memory=True)

    def scribble(self, tensor: torch.Tensor) -> None:
        """Streams are ordered by events; memory given back is left as it is."""

    def now(self) -> float:
        return time.monotonic()

    def idle(self, until: float | None, woken: threading.Event | None = None) -> None:
        sleep(until, woken, 0.00005)
