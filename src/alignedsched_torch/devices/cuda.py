"""A CUDA device: torch's streams and events, pinned host memory, copies that never stop the host.

A copy between two GPUs is queued on a side stream of each: torch's ``copy_`` runs on the source's current stream and
puts a barrier before and behind it on the target's current stream, which must therefore not be the one that decodes.
"""

from __future__ import annotations

import math
import mmap
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from itertools import groupby

import numpy as np
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
        self._recorded: Callable[[], torch.cuda.CUDAGraph | None] = lambda: None  # the last graph, if it is still there

    def launch(self, work: Callable[[], object], seconds: float = 0.0) -> None:
        with torch.cuda.stream(self.stream):
            work()

    def recorded(self, work: Callable[[], object]) -> Callable[[], object]:
        """A CUDA graph. Run once before, so that kernels are compiled and libraries have their memory.

        Graphs of one stream never run at once, so they share the memory for what they need in between.
        """
        work()
        graph, before = torch.cuda.CUDAGraph(), self._recorded()
        pool = None if before is None else before.pool()
        # Copies go on meanwhile on other streams, queued by this thread or another: only its own calls are watched.
        with torch.cuda.graph(graph, pool=pool, stream=self.stream, capture_error_mode="thread_local"):
            work()
        self._recorded = weakref.ref(graph)  # its memory goes when whoever replays it goes
        return graph.replay

    def copy(self, pieces: Sequence[Piece], link: str = "") -> None:
        for other, together in groupby(pieces, self._other):  # pieces of one link: one group
            with torch.cuda.stream(self.stream), torch.cuda.stream(self._side(other)):
                for piece in together:
                    piece.target.copy_(piece.source, non_blocking=True)

    def _other(self, piece: Piece) -> int:
        """The index of the other GPU in a copy between two; this one's where there is only one GPU."""
        here = int(self.stream.device_index)
        others = (end.device.index for end in (piece.target, piece.source) if end.is_cuda)
        return next((index for index in others if index != here), here)

    def _side(self, index: int) -> torch.cuda.Stream:
        """The stream that stands for a GPU in this one's copies, made when first needed."""
        if index == self.stream.device_index:
            return self.stream
        if index not in self._sides:
            side = torch.cuda.Stream(torch.device("cuda", index))
            side.wait_stream(torch.cuda.current_stream(side.device))  # as ``__init__`` does on its own
            self._sides[index] = side
        return self._sides[index]

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
        """Pinned exactly as large as asked, where torch's own pinned allocator rounds up to a power of two.

        It begins with a page of memory: only pages can be pinned, and a first one shared with other data would be too.
        """
        size = math.prod(shape) * dtype.itemsize
        buffer = np.empty(size + mmap.PAGESIZE, dtype=np.uint8)
        skipped = -buffer.ctypes.data % mmap.PAGESIZE
        buffer = buffer[skipped : skipped + size]
        if buffer.nbytes:
            status = torch.cuda.cudart().cudaHostRegister(buffer.ctypes.data, buffer.nbytes, 0)
            if int(status):
                raise MemoryError(f"cannot pin {buffer.nbytes} bytes of host memory: {status}")
            # Before the memory is given back: what lies at the same place later could not be pinned again.
            weakref.finalize(buffer, torch.cuda.cudart().cudaHostUnregister, buffer.ctypes.data)
        return torch.from_numpy(buffer).view(dtype).view(tuple(shape))

    def host_ids(self, count: int) -> torch.Tensor:
        return torch.empty((count,), dtype=torch.int64, pin_memory=True)

    def settle(self) -> None:
        torch.cuda.synchronize(self.torch_device)

    def scribble(self, tensor: torch.Tensor) -> None:
        """Streams are ordered by events; memory given back is left as it is."""

    def now(self) -> float:
        return time.monotonic()

    def idle(self, until: float | None, woken: threading.Event | None = None) -> None:
        sleep(until, woken, 0.00005)
