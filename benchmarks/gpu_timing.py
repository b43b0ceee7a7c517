"""How the GPU benchmark measures: events around work that was queued ahead, a cold L2, medians; a CPU, for a smoke.

On a GPU each repetition queues a spin, a read of twice the L2, an event, the work and an event. While the GPU spins
the host queues all of it, so the time between the events is the GPU's own; and no data of the work is left in the L2.
(A write would empty it too, but leave it full of lines that are written back while the work runs.)
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from attrs import define, field, frozen

from alignedsched_torch.calibrate.machine import gpu_state

Work = Callable[[], object]
SPIN_CYCLES = 2_000_000  # about a millisecond: longer than the host takes to queue what is measured
LEAST_FLUSH = 64 << 20  # bytes, where the L2's size is not told
COPY_BYTES = 1 << 30
WARM_S = 0.2  # of copies before clocks are read: an idle GPU lowers them


@frozen
class Size:
    """How large everything is. ``smoke``: seconds on a CPU, to see that all of it runs; its figures mean nothing."""

    smoke: bool
    device: torch.device
    dtype: torch.dtype

    @classmethod
    def of(cls, smoke: bool) -> Size:
        place = torch.device("cpu") if smoke else torch.device("cuda", 0)
        return cls(smoke, place, torch.float32 if smoke else torch.bfloat16)

    def pick(self, full: Any, smoke: Any) -> Any:
        """One of two, by size."""
        return smoke if self.smoke else full


class Timer:
    """Seconds of one piece of work."""

    def __init__(self, size: Size) -> None:
        self.size = size
        self.gpu = not size.smoke
        self._scratch = self._flushed = torch.zeros(1, dtype=torch.int64)
        if self.gpu:
            cache = getattr(torch.cuda.get_device_properties(size.device), "L2_cache_size", 0)
            self._scratch = torch.zeros(max(2 * int(cache), LEAST_FLUSH) // 8, dtype=torch.int64, device=size.device)

    def seconds(self, work: Work, repeats: int = 20, warm: int = 3) -> float:
        """The median of ``repeats`` runs, after ``warm`` that do not count."""
        if self.size.smoke:
            repeats, warm = 1, 0
        for _ in range(warm):
            work()
        if not self.gpu:
            return median(self._on_cpu(work) for _ in range(repeats))
        pairs = [self._queued(work) for _ in range(repeats)]
        torch.cuda.synchronize()
        return float(median(begin.elapsed_time(end) for begin, end in pairs)) / 1e3

    def _queued(self, work: Work) -> tuple[torch.cuda.Event, torch.cuda.Event]:
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda._sleep(SPIN_CYCLES)
        self._flush()
        begin.record()
        work()
        end.record()
        return begin, end

    def _flush(self) -> None:
        """Read so much that nothing else is left in the L2, and none of it has to be written back."""
        self._flushed = self._scratch.sum()

    def _on_cpu(self, work: Work) -> float:
        began = time.perf_counter()
        work()
        return time.perf_counter() - began

    def copy_bandwidth(self) -> float:
        """Bytes a second of a large copy within the device's memory, read and written counted both.

        Copies run for ``WARM_S`` before, so that clocks are what they are at work.
        """
        count = self.size.pick(COPY_BYTES, 1 << 20)
        source = torch.ones(count, dtype=torch.uint8, device=self.size.device)
        target = torch.empty_like(source)
        warm = time.monotonic() + (WARM_S if self.gpu else 0.0)
        while time.monotonic() < warm:
            target.copy_(source)
            torch.cuda.synchronize()
        bandwidth: float = 2 * count / self.seconds(lambda: target.copy_(source))
        return bandwidth


@define(eq=False)
class Record:
    """What a section found so far, kept in a file row by row: a section that dies leaves what it had."""

    path: Path
    deadline: float  # of time.monotonic()
    rows: list[dict[str, Any]] = field(factory=list)

    def put(self, what: str, **values: Any) -> None:
        """One finding."""
        row = {"what": what, **values}
        self.rows.append(row)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def late(self, needed: float = 0.0) -> bool:
        """Whether the section's time is over, or would be before ``needed`` more seconds are."""
        return time.monotonic() + needed > self.deadline

    def attempt(self, what: str, work: Callable[[], None]) -> None:
        """Do a part of a section; what goes wrong in it is a finding, and the others go on."""
        if self.late():
            self.put("left out", part=what, why="no time was left")
            return
        try:
            work()
        except Exception as error:  # noqa: BLE001 - kernels fail in many ways, and each is worth knowing
            self.put("failed", part=what, error=f"{type(error).__name__}: {error}"[:2000])

    def state(self, size: Size, when: str) -> None:
        """How fast memory is, and clocks, temperature and power just after that: those of an idle GPU say nothing."""
        bandwidth = Timer(size).copy_bandwidth()
        told = {} if size.smoke else gpu_state(size.device)
        self.put("state", when=when, copy_bytes_per_s=bandwidth, **told)
