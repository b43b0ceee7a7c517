"""A result file that appears whole or not at all, and says before the work starts if it cannot be written."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from .arguments import UsageError


class JsonFile:
    """Writes one JSON value to ``path`` (None: nowhere) by way of a temporary file beside it.

    Entering makes the temporary file, so that an unwritable place is found at once; leaving without ``write``
    removes it, and what stood at ``path`` before is untouched. A path that exists and is no regular file (a pipe,
    a device) is written directly. Raises UsageError where the place cannot be written.
    """

    def __init__(self, path: Path | None, option: str = "--json") -> None:
        self._path = path
        self._option = option
        self._temporary: Path | None = None

    def __enter__(self) -> Self:
        if self._path is None:
            return self
        if self._path.is_dir():
            raise UsageError(f"{self._option} {str(self._path)!r} is a folder, not a file")
        target = Path(os.path.realpath(self._path))
        try:
            if target.exists() and not os.access(target, os.W_OK):
                raise PermissionError("it is there and may not be changed")
            if target.exists() and not target.is_file():
                with target.open("a"):
                    pass
                return self
            temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
            temporary.unlink(missing_ok=True)  # of a killed process that had our number
            temporary.open("x").close()
        except OSError as error:
            raise UsageError(
                f"{self._option} {str(self._path)!r} cannot be written: {error.strerror or error}"
            ) from None
        self._temporary = temporary
        return self

    def write(self, value: Any) -> None:
        """Write ``value`` and put the file in its place. Raises OSError when the disk refuses."""
        if self._path is None:
            return
        text = json.dumps(value, indent=2, allow_nan=False) + "\n"
        place = self._temporary or self._path
        with place.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
        if self._temporary is not None:
            self._temporary.replace(os.path.realpath(self._path))
            self._temporary = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._temporary is not None:
            self._temporary.unlink(missing_ok=True)
            self._temporary = None
