"""What ends the driver's sleep: a worker that rings, another thread, or the time."""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Iterable


class Alarm:
    """Sleep without a clock's ticking. ``wake`` may be called by any thread."""

    def __init__(self) -> None:
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def wake(self) -> None:
        os.eventfd_write(self._bell, 1)

    def woken(self) -> bool:
        """Whether somebody woke us since the last call."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._bell)
            return True
        return False

    def sleep(self, files: Iterable[int], seconds: float | None) -> None:
        """Until one of the files can be read, somebody wakes us, or the time is over."""
        poll = select.poll()
        for file in (self._bell, *files):
            poll.register(file, select.POLLIN)
        poll.poll(None if seconds is None else max(0.0, seconds * 1e3))

    def close(self) -> None:
        os.close(self._bell)
