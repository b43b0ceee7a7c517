"""The doorbell between two processes: how far rings are written and read, and the silence of a process that has died.

A bell is 17 bytes on a Unix socket that keeps message boundaries: how far its sender has written, how far it has read,
and whether it has nothing to do. A bell says all that is known, so a later one replaces an earlier one. When a process
ends, however it ends, the kernel closes its side, and the other side hears that at once.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Sequence

from attrs import frozen

from alignedsched.errors import ExecutorError

_BELL = struct.Struct("<QQ?")
_MOST_FDS = 200  # of one message; the kernel's limit is 253
_LONGEST = 1 << 16


@frozen
class Bell:
    """``written``: up to where the sender's ring is written. ``read``: up to where it has read the other's."""

    written: int = 0
    read: int = 0
    idle: bool = False


class ClosedError(Exception):
    """The other side is gone."""


class Wire:
    """One end of a socket. Raises ClosedError, from every method, when the other side is gone."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        connection.setblocking(True)

    @staticmethod
    def pair() -> tuple[socket.socket, socket.socket]:
        return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def fileno(self) -> int:
        return self.socket.fileno()

    def ring(self, bell: Bell) -> None:
        """Send a bell."""
        self._send(_BELL.pack(bell.written, bell.read, bell.idle))

    def heard(self) -> Bell | None:
        """The latest bell that has come, or None; does not wait."""
        latest = None
        while True:
            try:
                data = self.socket.recv(_BELL.size, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return latest
            except OSError as error:
                raise ClosedError from error
            if len(data) != _BELL.size:
                if latest is not None:
                    return latest  # the end is told next time
                raise ClosedError
            latest = Bell(*_BELL.unpack(data))

    # -- the beginning

    def hand_over(self, data: bytes, fds: Sequence[int]) -> None:
        """Send what a worker needs to begin, and descriptors."""
        if len(data) > _LONGEST or len(fds) > _MOST_FDS:
            raise ExecutorError(f"a worker is told {len(data)} bytes and {len(fds)} regions: more than a message holds")
        try:
            socket.send_fds(self.socket, [data], list(fds))
        except OSError as error:
            raise ClosedError from error

    def take_over(self) -> tuple[bytes, list[int]]:
        """What ``hand_over`` sent; waits for it."""
        try:
            data, fds, _, _ = socket.recv_fds(self.socket, _LONGEST, _MOST_FDS)
        except OSError as error:
            raise ClosedError from error
        if not data:
            raise ClosedError
        for fd in fds:
            os.set_inheritable(fd, False)
        return data, fds

    def _send(self, data: bytes) -> None:
        try:
            self.socket.send(data, socket.MSG_NOSIGNAL)
        except OSError as error:
            raise ClosedError from error

    def close(self) -> None:
        self.socket.close()


class Turns:
    """From the first rank of a group to the others: up to which record it reads now, and which step it takes in."""

    _TURN = struct.Struct("<Qq")

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        connection.setblocking(True)

    def fileno(self) -> int:
        return self.socket.fileno()

    def send(self, upto: int, through: int) -> None:
        try:
            self.socket.send(self._TURN.pack(upto, through), socket.MSG_NOSIGNAL)
        except OSError as error:
            raise ClosedError from error

    def next(self) -> tuple[int, int] | None:
        """The next turn, or None where none has come yet."""
        try:
            data = self.socket.recv(self._TURN.size, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        except OSError as error:
            raise ClosedError from error
        if len(data) != self._TURN.size:
            raise ClosedError
        upto, through = self._TURN.unpack(data)
        return upto, through
