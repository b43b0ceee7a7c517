"""The lines of a trace file, plain or gzip, one at a time: numbered, bounded, decoded, each with what is wrong."""

from __future__ import annotations

import gzip
import math
import os
import zlib
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack
from os import PathLike, fspath
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

from ..errors import TraceError

MAX_LINE_BYTES = 8 * 2**20
MAX_RATIO, MAX_UNPACKED_BYTES = 100, 64 * 2**20  # a gzip file may unpack to the larger: its size so often, or this
_GZIP_MAGIC = b"\x1f\x8b"
_KEEP_OF_OVERSIZED = 1000


class Line(NamedTuple):
    """One line: its number from 1, its text without and its line end, and what is wrong with it (None: nothing).

    A line with a ``problem`` holds as much of the text as could be read.
    """

    number: int
    text: str
    end: str
    problem: str | None = None


class _BombError(Exception):
    """A gzip file unpacks to far more than a trace of its size does."""


class LineSource(Iterator[Line]):
    """Reads a file line by line; memory is bounded by ``MAX_LINE_BYTES`` whatever the file holds, work by its size.

    What is wrong inside the file (a line too long, bytes that are not UTF-8, damaged compression) comes as a line
    with a ``problem``, so that the caller can raise it or set it aside. Raises TraceError when the file cannot be
    opened or the system fails to read it.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        self.path = fspath(path)
        self.number = 0
        self._back: deque[Line] = deque()
        self._ended = False
        with ExitStack() as stack:
            try:
                plain = stack.enter_context(Path(path).open("rb"))
                zipped = plain.peek(2)[:2] == _GZIP_MAGIC
            except (OSError, ValueError) as error:
                raise TraceError(f"cannot be opened: {error}", file=self.path) from error
            opened = stack.enter_context(gzip.GzipFile(fileobj=plain, mode="rb")) if zipped else plain
            self._left = max(MAX_UNPACKED_BYTES, MAX_RATIO * os.fstat(plain.fileno()).st_size) if zipped else math.inf
            self._file = cast(BinaryIO, opened)
            self._close = stack.pop_all()

    def close(self) -> None:
        """Close the file; further reading ends at once. Safe to call again."""
        self._ended = True
        self._back.clear()
        self._close.close()

    def push_back(self, lines: list[Line]) -> None:
        """Give lines back: they come again, in this order, before the rest of the file."""
        self._back.extendleft(reversed(lines))

    def __next__(self) -> Line:
        if self._back:
            return self._back.popleft()
        if self._ended:
            raise StopIteration
        try:
            raw = self._read(MAX_LINE_BYTES + 1)
            oversized = len(raw) > MAX_LINE_BYTES
            kept = raw[:_KEEP_OF_OVERSIZED] if oversized else raw
            while oversized and raw and not raw.endswith(b"\n"):
                raw = self._read(MAX_LINE_BYTES)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            return self._last(f"the gzip data ends early or is damaged ({error}), expected a whole file")
        except _BombError:
            return self._last(
                f"the gzip data unpacks to more than {MAX_RATIO} times its size and {MAX_UNPACKED_BYTES} bytes, "
                "expected a trace; if it is one, unpack it first"
            )
        except OSError as error:
            raise TraceError(f"cannot be read: {error}", file=self.path, line=self.number + 1) from error
        if not raw and not oversized:
            self._ended = True
            raise StopIteration
        self.number += 1
        return self._line(kept, oversized)

    def _read(self, most: int) -> bytes:
        raw = self._file.readline(most)
        self._left -= len(raw)
        if self._left < 0:
            raise _BombError
        return raw

    def _last(self, problem: str) -> Line:
        self._ended = True
        self.number += 1
        return Line(self.number, "", "", problem)

    def _line(self, raw: bytes, oversized: bool) -> Line:
        if oversized:
            text = raw.decode("utf-8", "backslashreplace")
            return Line(self.number, text, "", f"the line is too long, expected at most {MAX_LINE_BYTES} bytes")
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            problem = f"got the byte 0x{raw[error.start]:02x} at place {error.start + 1}, expected UTF-8 text"
            return Line(self.number, raw.decode("utf-8", "backslashreplace").rstrip("\r\n"), "", problem)
        if self.number == 1:
            text = text.removeprefix("\ufeff")
        bare = text.removesuffix("\n").removesuffix("\r")
        return Line(self.number, bare, text[len(bare) :])
