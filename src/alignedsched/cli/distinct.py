"""No output of a command may overwrite what the command reads, or another output."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from .arguments import UsageError


def files_read(options: Mapping[str, object]) -> dict[str, Path]:
    """The files that ``hardware`` and ``model`` stand for, by option, where they are no names."""
    path, dot, _ = str(options.get("hardware", "")).partition(".json:")  # behind the colon: a kernel
    hardware = Path(path + ".json" if dot else path)
    model = Path(str(options.get("model", "")))
    if model != Path() and _is_folder(model):
        model /= "config.json"
    named = {"--hardware": hardware, "--model": model}
    return {option: path for option, path in named.items() if path.suffix == ".json"}


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # what nothing can be called
        return False


def check_distinct(files: Mapping[str, Path]) -> None:
    """Raise UsageError where two options name the same file, by whatever name it is called."""
    seen: dict[str, str] = {}
    for option, path in files.items():
        real = os.path.realpath(path)
        if real in seen:
            raise UsageError(f"{seen[real]} and {option} name the same file, {str(path)!r}")
        seen[real] = option
