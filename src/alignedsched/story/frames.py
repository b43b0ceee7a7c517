"""Frames: how bytes are kept so that a cut or a changed one is noticed before anything is believed.

A file is a line that names the format, then frames:

    length (4 bytes) | check (4) | check of these two (4) | `length` bytes, deflated

All numbers are unsigned, big-endian. A check is the CRC-32 of the bytes and of the check before it, so that frames
can be neither changed nor left out, doubled or exchanged in the middle. A file that ends inside a frame was *cut*
there: what stands before is sound, and is read. Anything else that is wrong is an error, and nothing is believed.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from ..errors import LogError

VERSION = 1
NAME = b"alignedsched-log "
MAGIC = NAME + str(VERSION).encode() + b"\n"
MOST_BYTES = 1 << 24  # of a frame, inflated: what one frame of a hostile file can make us hold
_LONGEST = MOST_BYTES + (MOST_BYTES >> 9) + 64  # deflate adds this much at worst
_HEAD = struct.Struct(">III")
_PART = struct.Struct(">II")
FIRST = zlib.crc32(MAGIC)
LEVEL = 1  # twice as fast as the default for a tenth more bytes


def pack(content: bytes, previous: int) -> tuple[bytes, int]:
    """A frame around some bytes, and its check. Raises LogError for more than a frame may hold."""
    if len(content) > MOST_BYTES:
        raise LogError(f"a record of {len(content)} bytes is longer than a frame may be ({MOST_BYTES})")
    deflated = zlib.compress(content, LEVEL)
    check = zlib.crc32(deflated, previous)
    return _HEAD.pack(len(deflated), check, _own(len(deflated), check, previous)) + deflated, check


def _own(length: int, check: int, previous: int) -> int:
    return zlib.crc32(_PART.pack(length, check), previous)


class Frames:
    """Reads the frames of a file. ``end``, ``check`` and ``torn`` say where the last whole frame ended, and how."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file = file
        self.name = name
        self.end = 0  # bytes of the file that are sound
        self.check = FIRST
        self.torn = False  # the file ends inside a frame
        self._given = FIRST  # the check of the frame given out last
        magic = file.read(len(MAGIC))
        if magic != MAGIC:
            if MAGIC.startswith(magic):
                raise LogError("is empty" if not magic else "ends inside its first line", file=name, offset=0)
            if magic.startswith(NAME):
                said = magic[len(NAME) :].split(b"\n")[0].decode("ascii", "replace")
                raise LogError(f"has format version {said!r}; this library reads version {VERSION}", file=name)
            raise LogError(f"is no log or snapshot of alignedsched (it begins with {magic!r})", file=name, offset=0)
        self.end = len(MAGIC)

    def __iter__(self) -> Iterator[bytes]:
        """The frames' contents. Raises LogError where the file is not as it was written."""
        while True:
            head = self._file.read(_HEAD.size)
            if len(head) < _HEAD.size:
                self.torn = bool(head)
                return
            length, check, own = _HEAD.unpack(head)
            if own != _own(length, check, self.check):
                raise self._error("the head of a frame was changed")
            if length > _LONGEST:
                raise self._error(f"a frame of {length} bytes is longer than any may be")
            deflated = self._file.read(length)
            if len(deflated) < length:
                self.torn = True
                return
            if zlib.crc32(deflated, self.check) != check:
                raise self._error("a frame was changed")
            content = self._inflate(deflated)
            self._given = check
            yield content
            self.check = check
            self.end += _HEAD.size + length

    def reach(self, begin: bytes) -> bool:
        """Whether a frame behind the one given out last begins so; reading goes on where it was. O(frames read)."""
        at, before = self._file.tell(), (self.end, self.check, self.torn)
        self.check = given = self._given
        try:
            return any(content.startswith(begin) for content in self)
        finally:
            self._file.seek(at)
            self._given, (self.end, self.check, self.torn) = given, before

    def _inflate(self, deflated: bytes) -> bytes:
        inflater = zlib.decompressobj()
        try:
            content = inflater.decompress(deflated, MOST_BYTES + 1)
        except zlib.error as error:
            raise self._error(f"a frame cannot be inflated ({error})") from None
        if len(content) > MOST_BYTES:
            raise self._error(f"a frame is longer than {MOST_BYTES} bytes when inflated")
        if not inflater.eof or inflater.unused_data:
            raise self._error("a frame is not as long as it says")
        return content

    def _error(self, message: str) -> LogError:
        return LogError(f"{message}; the {self.end} bytes before it are sound", file=self.name, offset=self.end)
