"""What a command writes beside its table: an HTML page, and a timeline for Perfetto."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from ..report.text import encodable, printable, seconds
from ..version import VERSION
from .files import WholeFile

if TYPE_CHECKING:
    from ..report.lookout import Lookout, Sink


class Reports:
    """Files that look on while policies run: enter, pass ``watch`` on, call ``write``. Nothing looks on for no file."""

    def __init__(self, html: Path | None, timeline: Path | None, until: float | None = None) -> None:
        self._html = WholeFile("--html", html)
        self._timeline = WholeFile("--timeline", timeline)
        self._until = until
        self._files = contextlib.ExitStack()
        self.watch: Lookout | None = None

    def __enter__(self) -> Self:
        """Make both files, so that places that cannot be written are found. Raises UsageError for such."""
        with contextlib.ExitStack() as entered:
            entered.enter_context(self._html)
            entered.enter_context(self._timeline)
            sinks = self._sinks()
            self._files = entered.pop_all()
        if sinks:
            from ..report.lookout import Lookout

            self.watch = Lookout(sinks)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._files.close()

    def _sinks(self) -> list[Sink]:
        """Who draws what was asked for. Imported late: who asks for no report waits for none of it."""
        sinks: list[Sink] = []
        if self._html.path is not None:
            from ..report.curves import Gathering

            self._gathering = Gathering()
            sinks.append(self._gathering)
        if self._timeline.path is not None:
            from ..report.timeline import Timeline
            from ..report.trace_events import TraceWriter

            self._writer = TraceWriter(self._timeline.open(), until=self._until)
            sinks.append(Timeline(self._writer))
        return sinks

    def write(self, about: Sequence[str], result: Mapping[str, Any] | None = None) -> None:
        """All runs are over: put the files in their places. ``about`` says in a line or two what ran."""
        if self._timeline.path is not None:
            self._writer.close({"made by": f"alignedsched {VERSION}", "about": list(about), "cut": self._writer.cuts})
            self._timeline.keep()
        if self._html.path is not None and result is not None:
            from ..report.html import page

            self._html.write_text(page(result, self._gathering.runs))

    def say(self) -> None:
        """Say on stderr where the files are, and what is not in them."""
        if self._html.path is not None:
            _say(f"page written to {self._html.path}")
        if self._timeline.path is not None:
            _say(f"timeline written to {self._timeline.path}; https://ui.perfetto.dev opens it, and sends it nowhere")
            for policy, at in self._writer.cuts:
                if self._until is None or at < self._until:
                    _say(f"the timeline of {policy} ends at {seconds(at)}: it has as many events as one may have")


def _say(words: str) -> None:
    sys.stderr.write(encodable(f"{printable(words)}\n", sys.stderr))
