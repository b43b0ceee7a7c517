"""One `compare` from understood options to the printed table and the written file."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from ..report.progress import ProgressLine
from ..report.terminal import heading, print_report
from ..report.text import encodable, printable
from ..sim.settings import CompareSettings, Progress, RunWatch
from ..story.log import SUFFIX
from .arguments import UsageError
from .distinct import check_distinct, files_read
from .files import JsonFile
from .reports import Reports


class Compare(Protocol):
    """What does the work: ``alignedsched.sim.compare.compare``, or what keeps its signature."""

    def __call__(
        self, settings: CompareSettings, progress: Progress | None = None, watch: RunWatch | None = None
    ) -> dict[str, Any]: ...


_OUTPUTS = ("json", "html", "timeline", "timeline_until")  # options that are no settings


def _load_compare() -> Compare:
    # Imported late: help and wrong options are answered before numpy and the simulator are loaded.
    from ..sim.compare import compare

    return compare


def _check_trace(path: Path) -> None:
    if not path.exists():
        raise UsageError(f"trace {str(path)!r} does not exist")
    if path.is_dir():
        raise UsageError(f"trace {str(path)!r} is a folder, not a file")
    if not os.access(path, os.R_OK):
        raise UsageError(f"trace {str(path)!r} may not be read")


def _check_bad_rows(path: Path) -> None:
    if path.is_dir():
        raise UsageError(f"--skip-bad-rows {str(path)!r} is a folder, not a file")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UsageError(f"--skip-bad-rows {str(path)!r} cannot be written")


def _check_record(path: Path) -> None:
    """The folder for logs: there, writable, and without logs of another run."""
    if path.exists() and not path.is_dir():
        raise UsageError(f"--record {str(path)!r} is a file, not a folder")
    if path.exists() and any(path.glob(f"*{SUFFIX}")):
        raise UsageError(f"--record {str(path)!r} has logs of another run; choose a new folder, or remove them")
    path.mkdir(parents=True, exist_ok=True)
    if not os.access(path, os.W_OK):
        raise UsageError(f"--record {str(path)!r} may not be written to")


def run_compare(options: Mapping[str, object], compare: Compare | None = None) -> None:
    """Check files and settings, run, write the files, print the table to stdout; progress goes to stderr.

    Raises CallerError or TraceError for wrong options and bad input, before the long work where that is possible.
    """
    names = ("trace", "json", "html", "timeline", "skip_bad_rows")
    files = {f"--{name.replace('_', '-')}": Path(str(options[name])) for name in names if name in options}
    check_distinct({**files_read(options), **files})
    settings = CompareSettings(**{name: value for name, value in options.items() if name not in _OUTPUTS})  # type: ignore[arg-type]
    if "--trace" in files:
        _check_trace(files["--trace"])
    if "--skip-bad-rows" in files:
        _check_bad_rows(files["--skip-bad-rows"])
    if settings.record is not None:
        _check_record(Path(settings.record))
    until: float | None = options.get("timeline_until")  # type: ignore[assignment]
    reports = Reports(files.get("--html"), files.get("--timeline"), until)
    with JsonFile(files.get("--json")) as json_file, reports:
        compare = compare or _load_compare()
        # What is loaded stays, and a run makes records that die young: fewer, smaller collections save a tenth.
        gc.freeze()
        gc.set_threshold(20_000, 20, 20)
        progress = ProgressLine(sys.stderr)
        try:
            result = compare(settings, progress, reports.watch)
        finally:
            progress.clear()
        # Before the table: a reader of the table that goes away must not cost the result.
        json_file.write(result)
        reports.write(heading(result), result)
    print_report(result, sys.stdout)
    if settings.record is not None:
        folder = printable(settings.record)
        sys.stderr.write(
            encodable(f"logs written to {folder}; `alignedsched replay {folder}` checks them\n", sys.stderr)
        )
    if "--json" in files:
        where = printable(str(files["--json"]))
        sys.stderr.write(encodable(f"result written to {where}\n", sys.stderr))
    reports.say()
