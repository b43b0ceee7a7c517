"""Errors, split by who is to blame: caller, policy, executor, trace, log, configuration, or this library."""

from __future__ import annotations


class AlignedSchedError(Exception):
    """Base of every error the library raises on purpose."""


class CallerError(AlignedSchedError, ValueError):
    """The program that calls the library passed something it must not; nothing was changed."""


class ConfigError(CallerError):
    """A cluster, policy option or command-line choice is wrong; the message names the field and what is allowed."""


class PolicyError(AlignedSchedError):
    """A policy raised, or proposed what no policy may propose; the scheduler did not take the proposal."""

    def __init__(self, policy: str, message: str) -> None:
        super().__init__(f"policy {policy!r}: {message}")
        self.policy = policy


class HookError(AlignedSchedError):
    """The caller's ``eligible`` hook raised. The events of the call were taken in, and the next call asks it anew."""


class ExecutorError(AlignedSchedError):
    """An executor reported what cannot have happened, or got a plan it cannot carry out; nothing of it was taken."""


class TraceError(AlignedSchedError, ValueError):
    """A row of a trace file is wrong; the message names file, line, column, value and what was expected."""

    def __init__(
        self,
        message: str,
        *,
        file: str | None = None,
        line: int | None = None,
        column: str | None = None,
    ) -> None:
        where = ", ".join(
            part
            for part in (
                file or "",
                f"line {line}" if line is not None else "",
                f"column {column!r}" if column is not None else "",
            )
            if part
        )
        super().__init__(f"{where}: {message}" if where else message)
        self.file = file
        self.line = line
        self.column = column


class LogError(AlignedSchedError, ValueError):
    """An event log or a snapshot is not as it was written, or not of what it is used for; nothing of it was taken.

    The message names the file, the record's number in it (from 0), the byte at which its frame begins, and the field.
    """

    def __init__(
        self, message: str, *, file: str | None = None, record: int | None = None, offset: int | None = None
    ) -> None:
        where = ", ".join(
            part
            for part in (
                file or "",
                f"record {record}" if record is not None else "",
                f"byte {offset}" if offset is not None else "",
            )
            if part
        )
        super().__init__(f"{where}: {message}" if where else message)
        self.file = file
        self.record = record
        self.offset = offset


class InvariantError(AlignedSchedError, AssertionError):
    """A named invariant of the scheduler's state does not hold: a bug of this library, please report it."""

    def __init__(self, invariant: str, message: str) -> None:
        super().__init__(f"invariant {invariant}: {message}")
        self.invariant = invariant
