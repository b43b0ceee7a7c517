"""The trace-event format that Perfetto and Chrome's tracer open: tracks, slices, instants and counters, as a stream.

Source: "Trace Event Format" (Google, 2016), its JSON object form with X, i, C and M events. Nothing is kept but the
end of each track, so a trace may be as long as the disk allows; ``limit`` and ``until`` cut it short, and say so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TextIO

from attrs import define

MOST_EVENTS = 300_000  # of one process: some 50 MB, which Perfetto opens in seconds
_TRACKS = 1000  # numbers of tracks set aside for each process

Args = Mapping[str, object]


@define
class _Track:
    """A row of slices that do not overlap."""

    number: int
    end: int = 0  # of its last slice, in ns


class TraceWriter:
    """Writes one trace, process after process. Times are seconds; each call is O(1).

    Numbers of tracks differ between processes, too: Perfetto takes a number for one thread of the machine.
    """

    def __init__(self, stream: TextIO, *, until: float | None = None, limit: int = MOST_EVENTS) -> None:
        self._stream = stream
        self._asked = float("inf") if until is None else until
        self._limit = limit
        self._process = 0
        self._first = True
        self.cuts: list[tuple[str, float]] = []  # (process, seconds): what comes later is not in the trace
        stream.write('{"displayTimeUnit": "ms", "traceEvents": [\n')

    def begin(self, name: str) -> None:
        """A process, which the next events belong to."""
        self._process += 1
        self._name = name
        self._tracks: dict[str, _Track] = {}
        self._levels: dict[str, Args] = {}
        self._events = 0
        self._until = self._asked
        self._meta("process_name", 0, {"name": name})
        self._meta("process_sort_index", 0, {"sort_index": self._process})

    def slice(self, track: str, begin: float, end: float, name: str, kind: str, args: Args) -> None:
        """Something that took a while. Slices of a track come in order; where two overlap, the later is cut."""
        if not self._takes(begin):
            return
        row = self._track(track)
        start, stop = max(row.end, _ns(begin)), _ns(min(end, self._until))
        if stop <= start:
            return
        row.end = stop
        self._event({"ph": "X", "name": name, "cat": kind, "ts": start / 1e3, "dur": (stop - start) / 1e3}, row, args)

    def instant(self, track: str, at: float, name: str, kind: str, args: Args) -> None:
        """Something that took no time."""
        if self._takes(at):
            self._event({"ph": "i", "s": "t", "name": name, "cat": kind, "ts": _ns(at) / 1e3}, self._track(track), args)

    def counter(self, name: str, at: float, levels: Mapping[str, float]) -> None:
        """Figures that hold from now on; written only where one has changed."""
        if self._levels.get(name) != levels and self._takes(at):
            self._levels[name] = dict(levels)
            self._event({"ph": "C", "name": name, "ts": _ns(at) / 1e3}, None, levels)

    def end(self, now: float) -> None:
        """The process is over; if something of it was left out, the trace says from when on."""
        if now <= self._until:
            return
        self.cuts.append((self._name, self._until))
        words = f"cut at {self._until:.6g} s of {now:.6g} s"
        self._meta("process_labels", 0, {"labels": words})
        at = _ns(self._until) / 1e3
        self._event({"ph": "i", "s": "p", "name": words, "cat": "cut", "ts": at}, self._track("cut"), {})

    def close(self, about: Args) -> None:
        """The trace is whole; ``about`` says what it shows."""
        self._stream.write(f'\n], "otherData": {json.dumps(about, allow_nan=False)}}}\n')

    def track(self, name: str) -> None:
        """Give a track its place below those named before, also if it stays empty."""
        self._track(name)

    def _takes(self, begin: float) -> bool:
        if self._events >= self._limit:
            self._until = min(self._until, begin)
        return begin < self._until

    def _track(self, name: str) -> _Track:
        row = self._tracks.get(name)
        if row is None:
            row = self._tracks[name] = _Track(self._process * _TRACKS + len(self._tracks) + 1)
            self._meta("thread_name", row.number, {"name": name})
            self._meta("thread_sort_index", row.number, {"sort_index": len(self._tracks)})
        return row

    def _meta(self, name: str, track: int, args: Args) -> None:
        self._write({"ph": "M", "name": name, "pid": self._process, "tid": track, "args": args})

    def _event(self, event: dict[str, Any], row: _Track | None, args: Args) -> None:
        self._events += 1
        event["pid"] = self._process
        if row is not None:
            event["tid"] = row.number
        event["args"] = args
        self._write(event)

    def _write(self, event: dict[str, Any]) -> None:
        self._stream.write(("" if self._first else ",\n") + json.dumps(event, allow_nan=False))
        self._first = False


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)
