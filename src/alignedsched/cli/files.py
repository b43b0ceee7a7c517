"""A result file that appears whole or not at all, and says before the work starts if it cannot be written."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, TextIO, cast

from .arguments import UsageError


class WholeFile:
    """Text for ``path`` (None: nowhere), which ``option`` asked for, by way of a temporary file beside it.

    Entering makes the temporary file, so that an unwritable place is found at once; leaving without ``keep``
    removes it, and what stood at ``path`` before is untouched. A path that exists and is no regular file (a pipe,
    a device) is written directly; one that ends in .gz is compressed. Raises UsageError where the place cannot be
    written.
    """

    def __init__(self, option: str, path: Path | None) -> None:
        self._option = option
        self.path = path
        self._temporary: Path | None = None
        self._close = contextlib.ExitStack()

    def __enter__(self) -> Self:
        if self.path is None:
            return self
        if self.path.is_dir():
            raise UsageError(f"{self._option} {str(self.path)!r} is a folder, not a file")
        target = Path(os.path.realpath(self.path))
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
                f"{self._option} {str(self.path)!r} cannot be written: {error.strerror or error}"
            ) from None
        self._temporary = temporary
        return self

    def open(self) -> TextIO:
        """The stream that takes the text; ``keep`` closes it. Raises OSError when the disk refuses."""
        assert self.path is not None
        raw: IO[bytes] = self._close.enter_context((self._temporary or self.path).open("wb"))
        if self.path.suffix == ".gz":  # no time of writing in it: the same text is the same file
            packed = gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=raw, mtime=0)
            raw = cast(IO[bytes], self._close.enter_context(packed))
        return self._close.enter_context(io.TextIOWrapper(raw, encoding="utf-8", newline="\n"))

    def keep(self) -> None:
        """All is written: put the file in its place. Raises OSError when the disk refuses."""
        self._close.close()
        if self._temporary is not None and self.path is not None:
            self._temporary.replace(os.path.realpath(self.path))
            self._temporary = None

    def write_text(self, text: str) -> None:
        """Write this and nothing else, and keep it. Raises OSError when the disk refuses."""
        if self.path is not None:
            self.open().write(text)
            self.keep()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):  # of what was not kept
            self._close.close()
        if self._temporary is not None:
            self._temporary.unlink(missing_ok=True)
            self._temporary = None


class JsonFile(WholeFile):
    """One JSON value for ``path``."""

    def __init__(self, path: Path | None, option: str = "--json") -> None:
        super().__init__(option, path)

    def write(self, value: Any) -> None:
        """Write ``value`` and put the file in its place. Raises OSError when the disk refuses."""
        if self.path is not None:
            self.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")
