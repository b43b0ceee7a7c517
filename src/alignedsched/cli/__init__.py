"""The `alignedsched` command: understands its arguments, runs the work, says every error in one sentence.

Exit codes: 0 done, 1 a failure that is not the caller's, 2 wrong use or bad input, 130 interrupted by Ctrl-C.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import AlignedSchedError, CallerError, LogError, TraceError
from ..report.text import encodable, printable
from .arguments import UsageError, parse

if TYPE_CHECKING:
    from .run import Compare

__all__ = ["main"]

FAILED, WRONG_USE, INTERRUPTED = 1, 2, 130


def _complain(message: str) -> None:
    sys.stderr.write(encodable(f"alignedsched: {printable(message)}\n", sys.stderr))
    sys.stderr.flush()


def _silence_stdout() -> None:
    """Nobody reads our output any more: make the interpreter's last flush of it go nowhere."""
    with contextlib.suppress(OSError, ValueError):  # a replaced stdout without a file number needs no help
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main(argv: Sequence[str] | None = None, *, compare: Compare | None = None) -> int:
    """Run the command with ``argv`` (None: the program's own) and return its exit code.

    ``compare`` does the work instead of ``alignedsched.sim.compare.compare``; it must keep its signature.
    """
    arguments = sys.argv[1:] if argv is None else argv
    try:
        if arguments and arguments[0] == "replay":
            from .replay import run_replay

            return run_replay(arguments[1:])
        if arguments and arguments[0] == "explain":
            from .explain import run_explain

            return run_explain(arguments[1:])
        if arguments and arguments[0] == "advise":
            from .advise import run_advise

            return run_advise(arguments[1:])
        from .run import run_compare

        run_compare(parse(arguments), compare)
    except SystemExit as end:  # --help and --version have printed and are done
        return end.code if isinstance(end.code, int) else 0
    except (UsageError, CallerError, TraceError, LogError) as error:
        _complain(f"error: {error}")
        return WRONG_USE
    except AlignedSchedError as error:
        _complain(f"failed: {error}")
        return FAILED
    except BrokenPipeError:
        _silence_stdout()
        return FAILED
    except OSError as error:
        where = f"{error.filename!r}: " if error.filename is not None else ""
        _complain(f"error: {where}{error.strerror or error}")
        return WRONG_USE
    except KeyboardInterrupt:
        _complain("interrupted")
        return INTERRUPTED
    return 0
