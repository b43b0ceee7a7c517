"""Progress while a comparison works: one line that is rewritten on a terminal, one line per run anywhere else."""

from __future__ import annotations

import shutil
from typing import TextIO

from ..sim.settings import ProgressUpdate
from . import text

_REDRAW_S = 0.1  # wall seconds between two drawings of the line


def progress_line(update: ProgressUpdate) -> str:
    """The line that is shown while a run goes on."""
    ended, total = update.requests_ended, update.requests_total
    if update.phase == "reading":
        return f"reading the workload  {ended:,} requests  {text.seconds(update.wall_s)}"
    share = f"{100 * ended // total:3d} %" if total else f"{ended:,} requests"
    return (
        f"{text.printable(update.policy, 40)} ({update.run}/{update.runs})  {share}  "
        f"{text.seconds(update.simulated_s)} simulated  {text.seconds(update.wall_s)}"
    )


def done_line(update: ProgressUpdate) -> str:
    """The line that stays when a run is over."""
    return (
        f"{text.printable(update.policy, 40)} ({update.run}/{update.runs}): {update.requests_ended:,} requests, "
        f"{text.seconds(update.simulated_s)} simulated in {text.seconds(update.wall_s)}"
    )


class ProgressLine:
    """Takes the updates of a comparison and shows them on ``stream``. O(1) per update, at most 10 drawings a second."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._terminal = stream.isatty()
        self._shown = ""
        self._drawn: tuple[str, int, float] | None = None  # phase, run and wall time of the last drawing

    def __call__(self, update: ProgressUpdate) -> None:
        """Show an update; one with phase "done" leaves a line for good."""
        if update.phase == "done":
            self.clear()
            self._stream.write(text.encodable(done_line(update), self._stream) + "\n")
            self._stream.flush()
            self._drawn = None
        elif self._terminal and self._due(update):
            most = max(10, shutil.get_terminal_size().columns - 1)
            self._show(text.encodable(text.printable(progress_line(update), most), self._stream))
            self._drawn = (update.phase, update.run, update.wall_s)

    def clear(self) -> None:
        """Take the unfinished line away, before something else is written."""
        if self._shown:
            self._show("")
            self._stream.write("\r")
            self._stream.flush()

    def _due(self, update: ProgressUpdate) -> bool:
        if self._drawn is None or self._drawn[:2] != (update.phase, update.run):
            return True
        return update.wall_s - self._drawn[2] >= _REDRAW_S

    def _show(self, line: str) -> None:
        blanks = " " * max(0, text.columns(self._shown) - text.columns(line))
        self._stream.write(f"\r{line}{blanks}")
        self._stream.flush()
        self._shown = line
