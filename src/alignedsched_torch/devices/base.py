"""What the executor needs of a device: memory, streams, events, copies. Nothing else in this package names CUDA.

Work on one stream runs in the order in which it was queued; work on different streams runs in any order, unless one
waits for an event of the other. The host waits for nothing by itself. Whoever forgets a wait reads what is not there
yet, or overwrites what is still read: ``modelled`` makes that visible in every run, ``threaded`` now and then, as
real hardware does.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from attrs import frozen


class DeviceError(RuntimeError):
    """Work queued on a stream failed: what it was to write is undefined. A RuntimeError, as torch's own are."""


@frozen(eq=False)
class Piece:
    """One contiguous stretch of bytes to copy; both views have the same shape and dtype.

    ``fresh``: the parts of the target that hold nothing yet, where that is not all of it. The rest is written over with
    the bytes it has, so it can be read all the while, and whatever becomes of the copy.
    """

    target: torch.Tensor
    source: torch.Tensor
    fresh: tuple[torch.Tensor, ...] | None = None

    @property
    def bytes(self) -> int:
        return int(self.source.numel() * self.source.element_size())


class Event(Protocol):
    """A point in a stream's work. Both methods raise RuntimeError once work in front of it has failed."""

    def done(self) -> bool:
        """Whether all work queued on the stream before it has ended."""
        ...

    def wait(self) -> None:
        """The host waits for it."""
        ...


class Stream(Protocol):
    """Work in order, asynchronous to the host.

    What fails at once raises RuntimeError where it is queued; what fails later makes the next event raise.
    """

    def launch(self, work: Callable[[], object], seconds: float = 0.0) -> None:
        """Queue work on tensors of this device. ``seconds``: how long it takes where time is modelled."""
        ...

    def recorded(self, work: Callable[[], object]) -> Callable[[], object]:
        """The same work over the same memory, to be launched again and again: without the host, where that can be.

        It may be run once or twice meanwhile. What it returns is called inside of ``launch``, as this is.
        """
        ...

    def copy(self, pieces: Sequence[Piece], link: str = "") -> None:
        """Queue copies. ``link`` names what they go over, where time is modelled."""
        ...

    def wait(self, event: Event) -> None:
        """What is queued from now on starts after the event."""
        ...

    def record(self) -> Event:
        """An event behind everything queued so far."""
        ...


def sleep(until: float | None, woken: threading.Event | None, longest: float) -> None:
    """Real time passes: until woken, or for a moment where something is under way that gives no sign."""
    left = None if until is None else max(0.0, until - time.monotonic())
    if woken is not None:
        woken.wait(left)
    else:
        time.sleep(longest if left is None else min(longest, left))


class Device(Protocol):
    """One memory with its streams. ``torch_device`` is where its tensors are.

    ``poisons``: memory nobody wrote, or gave back, holds NaN, so that reading it shows.
    """

    name: str
    torch_device: torch.device
    poisons: bool

    def stream(self, name: str) -> Stream:
        """The stream of that name, made when first asked for."""
        ...

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Memory on the device, uninitialised."""
        ...

    def pinned(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Host memory this device can copy from and to without the host's help, uninitialised."""
        ...

    def host_ids(self, count: int) -> torch.Tensor:
        """Host memory for ``count`` token ids that work on this device may write without the host's help."""
        ...

    def settle(self) -> None:
        """The host waits until all memory that was made or filled outside of streams is as it is to be.

        Streams do not wait for that: whoever makes memory calls this before streams use it.
        """
        ...

    def scribble(self, tensor: torch.Tensor) -> None:
        """Memory was given back. Where faults are looked for its contents are destroyed; elsewhere nothing happens."""
        ...

    def now(self) -> float:
        """Seconds on this device's clock; it never falls."""
        ...

    def idle(self, until: float | None, woken: threading.Event | None = None) -> None:
        """Nothing to do for the host until something on the device ends, at the latest until that time.

        With ``woken`` nothing is under way on the device: where time is real the host sleeps until the time or that.
        """
        ...
