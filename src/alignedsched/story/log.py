"""The event log: a snapshot, and every call since, with its events and its plan; one file, written as it happens.

A frame holds some calls (``frames``), a call is a part like those of a snapshot:

    ["call", now, [event, ...], plan or null, "" or what was raised, answers of the ``eligible`` hook]

The plan is there whole, not as a digest: beside its events it costs a few bytes once deflated, and it tells what was
decided where it is decided differently now, and where the policy is not at hand. A log that was appended to has a
snapshot again where the new process began.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO

from attrs import frozen

from ..errors import LogError
from ..events import Event
from ..plan import Plan
from . import frames
from .codec import MisfitError, decode, encode, parse, reader, register
from .origin import Origin
from .snapshot import Part, origin_in, until_end

SUFFIX = ".alog"
CUT = 10_000  # events in one part
_PIECE = b'[["events",'  # how a frame begins that holds the first events of a call, whose rest comes in further ones
_FIRST, _LAST = b'[["scheduler",', b'[["end"]'  # the same of the first frame of a snapshot, and of the last


@frozen
class NoEvent:
    """What was handed over as an event and is none: refused then, and in a replay again."""

    text: str


register(NoEvent, tagged=True)
_NOW, _EVENTS, _PLAN, _TEXT = reader(float), reader(list[Event | NoEvent]), reader(Plan | None), reader(str)


def readable(event: object) -> object:
    """An event, if it can be read again from what is written of it; else what stands for it."""
    try:
        return decode(Event, encode(event))
    except (MisfitError, TypeError):
        return NoEvent(f"{event!r:.200}")


@frozen
class Call:
    """One call of ``handle``: what went in, and the plan that came out, or the name of the error that did."""

    number: int  # in the log, from 0
    now: float
    events: tuple[Event, ...]  # and NoEvent in place of what is none
    plan: Plan | None
    error: str = ""
    answers: str = ""  # of the ``eligible`` hook, in order: 1 yes, 0 no, ! it raised


@frozen(eq=False)
class Start:
    """Where a process began: what its scheduler was made of, and the parts of the state it was in.

    The parts are read from the file as they are asked for; those nobody asked for are passed over.
    """

    origin: Origin
    state: Iterator[Part]


class LogReader:
    """Reads a log, part by part, in memory that does not grow with it. A context manager.

    ``torn`` says, at the end, that the file was cut off inside a frame, a call, or a snapshot behind the first; all
    before it was read. Raises LogError, naming file, record and byte, for anything that is not as it was written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.name = os.fspath(path)
        self._file: BinaryIO = Path(path).open("rb")  # noqa: SIM115 - closed by `close`
        try:
            self._frames = frames.Frames(self._file, self.name)
        except BaseException:
            self._file.close()
            raise
        self._record = 0
        self._inside = False  # a call, or the snapshot of a process that began, of which there is no more
        self.origin: Origin | None = None  # of the last start read

    def __enter__(self) -> LogReader:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    @property
    def torn(self) -> bool:
        return self._frames.torn or self._inside

    @property
    def end(self) -> int:
        """Bytes of the file that were read and are sound."""
        return self._frames.end

    def __iter__(self) -> Iterator[Start | Call]:
        """Starts and calls, in their order; the first is a start."""
        parts = self._parts()
        try:
            yield from self._items(parts)
        except MisfitError as misfit:
            raise LogError(str(misfit), file=self.name, record=self._record, offset=self.end) from None

    def _parts(self) -> Iterator[Part]:
        for content in self._frames:
            data = parse(content)
            if type(data) is not list:
                raise MisfitError("a frame is a list of parts")
            for part in data:
                yield part
                self._record += 1

    def _items(self, parts: Iterator[Part]) -> Iterator[Start | Call]:
        calls = count()
        started = False
        events: list[Event] = []  # of a call that is cut into several parts
        for part in parts:
            name = part[0] if type(part) is list and part else None
            if name == "scheduler":
                if started and not self._frames.reach(_LAST):
                    self._inside = True  # a process was killed as it began: there is no more
                    return
                state = until_end(parts)
                self.origin = origin_in(iter([part]), self.name)
                yield Start(self.origin, state)
                started = True
                events = []  # of a call in which the process before was killed
                for _ in state:  # what nobody asked for
                    pass
            elif name == "events" and started and len(part) == 2:
                events += _EVENTS(part[1])
            elif name == "call" and started and len(part) == 6:
                _, now, last, plan, error, answers = part
                called = (*events, *_EVENTS(last))
                events = []
                yield Call(next(calls), _NOW(now), called, _PLAN(plan), _TEXT(error), _TEXT(answers))
            else:
                raise MisfitError(f"a log has a snapshot and then calls, got {part!r:.80}")
        self._inside = bool(events)
        if not started:
            raise MisfitError("is cut off before its first call" if self.torn else "has no snapshot")


class LogWriter:
    """Writes frames of parts to a file, ``calls`` calls in each.

    Nothing is lost that was flushed; what stands in an unfinished frame is, if the process is killed. What goes wrong
    while writing does not disturb the scheduler: it is kept, nothing more is written, and ``close`` raises it.
    """

    def __init__(self, path: str | os.PathLike[str], *, append: bool = False, calls: int = 256) -> None:
        self.path = Path(path)
        self.bytes = 0
        self.failure: Exception | None = None
        self._most = calls
        self._parts: list[Any] = []
        self._pending = 0
        self._check = frames.FIRST
        self._file = self._append() if append and self.path.exists() and self.path.stat().st_size else self._create()

    def _create(self) -> BinaryIO:
        try:
            file = self.path.open("xb" if not self.path.exists() or self.path.stat().st_size else "wb")
        except FileExistsError:
            raise LogError("is there already; append to it, or choose another name", file=str(self.path)) from None
        file.write(frames.MAGIC)
        self.bytes = len(frames.MAGIC)
        return file

    def _append(self) -> BinaryIO:
        """Go on behind the last frame that ended calls or a snapshot. Raises LogError if what is there is not sound."""
        file = self.path.open("r+b")
        try:
            sound = frames.Frames(file, str(self.path))
            inside = begins = False  # a call that goes on in the next frame; a snapshot
            for content in sound:
                if not inside:
                    self._check, self.bytes = sound.check, sound.end  # where this frame begins
                begins = (begins or content.startswith(_FIRST)) and not content.startswith(_LAST)
                inside = begins or content.startswith(_PIECE)
            if not inside:
                self._check, self.bytes = sound.check, sound.end
            file.truncate(self.bytes)
            file.seek(self.bytes)
        except BaseException:
            file.close()
            raise
        return file

    def start(self, parts: Iterable[Part]) -> None:
        """A snapshot, one part a frame."""
        for part in parts:
            self._parts.append(part)
            self.flush()

    def call(self, now: float, events: Sequence[object], plan: Plan | None, error: str, answers: str) -> None:
        """One call. What it holds must not change any more: it is written when the frame is full."""
        if len(events) > CUT:
            self.flush()  # calls before it are whole: they share no frame with its pieces
        while len(events) > CUT:
            self._parts.append(("events", events[:CUT]))
            self.flush()
            events = events[CUT:]
        self._parts.append(("call", now, events, plan, error, answers))
        self._pending += 1 + len(events)
        if len(self._parts) >= self._most or self._pending > CUT:
            self.flush()

    def flush(self) -> None:
        """Write what there is as one frame."""
        parts, self._parts, self._pending = self._parts, [], 0
        if not parts or self.failure is not None:
            return
        try:
            frame, self._check = frames.pack(encode(parts), self._check)
            self._file.write(frame)
            self._file.flush()
            self.bytes += len(frame)
        except (OSError, TypeError, ValueError) as error:
            self.failure = error

    def abandon(self) -> None:
        """Write the rest if that is possible; for a log that nobody has closed."""
        if not self._file.closed:
            self.flush()
            with suppress(OSError):
                self._file.close()

    def close(self) -> None:
        """Write the rest. Raises LogError if anything could not be written."""
        if self._file.closed:
            return
        self.flush()
        try:
            self._file.close()
        except OSError as error:
            self.failure = self.failure or error
        if self.failure is not None:
            told = f"{type(self.failure).__name__}: {self.failure}"
            raise LogError(f"nothing was written behind byte {self.bytes} ({told})", file=str(self.path))
