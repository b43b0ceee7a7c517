"""How long something took: CPU time where the work is this thread's own, else real time up to the device's last deed.

On a CPU device all work runs in this process, so its CPU time is what the work costs, and other processes that share
the machine disturb it little. On a GPU the host only queues work: real time counts, with the device waited for at both
ends.
"""

from __future__ import annotations

import time

import torch

from ..devices import Device

CPU_CLOCK, REAL_CLOCK = "process CPU time", "real time"


class Stopwatch:
    """``start``, the work, ``stop``."""

    def __init__(self, device: Device) -> None:
        self._place = device.torch_device
        self._gpu = self._place.type == "cuda"
        self.clock = REAL_CLOCK if self._gpu else CPU_CLOCK
        self._began = 0.0

    def start(self) -> None:
        """Time runs from here, once the device is idle."""
        self._began = self._now()

    def start_amid(self) -> None:
        """Time runs from here at once: the device goes on with what it does."""
        self._began = self._read()

    def lap(self) -> float:
        """Seconds since ``start``, waiting for nothing: what was reported has ended."""
        return self._read() - self._began

    def stop(self) -> float:
        """Seconds since ``start``, everything queued meanwhile included."""
        return self._now() - self._began

    def _now(self) -> float:
        if self._gpu:
            torch.cuda.synchronize(self._place)
        return self._read()

    def _read(self) -> float:
        return time.perf_counter() if self._gpu else time.process_time()
