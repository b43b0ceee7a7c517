"""Where worker processes come from: started here (the default), or by torchrun, which connect by themselves.

The driver starts a process with one end of a socket and nothing else; what the process is to be comes over the socket.
No code of the caller's is imported or pickled on the way.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Protocol

from attrs import define

from alignedsched.errors import ConfigError, ExecutorError

from .wire import Wire

FD_VARIABLE, PATH_VARIABLE = "ALIGNEDSCHED_WORKER_FD", "ALIGNEDSCHED_DRIVER"


class Process(Protocol):
    """A worker's process."""

    @property
    def pid(self) -> int: ...

    def kill(self) -> None:
        """End it at once, whatever it does; one that has ended stays so."""
        ...

    def ended(self, within_s: float) -> bool:
        """Whether it has ended, or does so in that time."""
        ...


class Launcher(Protocol):
    """Gives the process of worker ``number`` and the driver's end of its socket.

    ``again``: it can give another one when that has died.
    """

    again: bool

    def start(self, number: int, within_s: float) -> tuple[Process, Wire]:
        """Raises ExecutorError when there is none in time."""
        ...

    def close(self) -> None: ...


@define(eq=False)
class Child:
    """A process started here."""

    popen: subprocess.Popen[bytes]

    @property
    def pid(self) -> int:
        return self.popen.pid

    def kill(self) -> None:
        self.popen.kill()

    def ended(self, within_s: float) -> bool:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.popen.wait(within_s)
        return self.popen.returncode is not None


class Spawn:
    """Starts a fresh interpreter for each worker."""

    again = True

    def start(self, number: int, within_s: float) -> tuple[Process, Wire]:
        here, there = Wire.pair()
        path = os.pathsep.join(entry for entry in sys.path if entry)
        environment = {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": path, FD_VARIABLE: str(there.fileno())}
        try:
            popen = subprocess.Popen(
                [sys.executable, "-m", "alignedsched_torch.workers"],
                stdin=subprocess.DEVNULL, pass_fds=(there.fileno(),), env=environment,
            )  # fmt: skip
        except OSError as error:
            here.close()
            raise ExecutorError(f"no process for worker {number}: {error}") from error
        finally:
            there.close()
        return Child(popen), Wire(here)

    def close(self) -> None:
        """Nothing is kept."""


@define(eq=False)
class Stranger:
    """A process somebody else started on this machine."""

    pid: int
    file: int  # stands for this process and for no later one of the same number

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.file, signal.SIGKILL)

    def ended(self, within_s: float) -> bool:
        poll = select.poll()
        poll.register(self.file, select.POLLIN)
        return bool(poll.poll(within_s * 1e3))


class Listen:
    """Waits at ``path`` (a Unix socket) for processes that torchrun started: worker ``number`` is its ``RANK``.

    Raises ConfigError naming a path at which there can be no socket.

    ``ALIGNEDSCHED_DRIVER=PATH torchrun --no-python --nproc-per-node=N python -m alignedsched_torch.workers``
    """

    again = False  # torchrun restarts all workers or none

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._server.bind(str(path))
        except OSError as error:
            self._server.close()
            raise ConfigError(f"no socket at {str(path)!r} to wait at: {error.strerror or error}") from error
        self._path.chmod(0o600)  # whoever may connect is handed the regions
        self._server.listen()
        self._waiting: dict[int, tuple[Process, Wire]] = {}

    def start(self, number: int, within_s: float) -> tuple[Process, Wire]:
        deadline = time.monotonic() + within_s
        while number not in self._waiting:
            self._server.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                connection, _ = self._server.accept()
                connection.settimeout(max(0.001, deadline - time.monotonic()))
                rank = int(connection.recv(16))
            except (OSError, ValueError) as error:
                raise ExecutorError(f"worker {number} did not connect to {self._path}: {error}") from error
            pid = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
            self._waiting[rank] = Stranger(pid, os.pidfd_open(pid)), Wire(connection)
        return self._waiting.pop(number)

    def close(self) -> None:
        self._server.close()
        self._path.unlink(missing_ok=True)
