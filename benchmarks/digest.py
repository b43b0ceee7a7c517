"""Which code made a result: a digest of a package as the interpreter sees it."""

from __future__ import annotations

import ast
import hashlib
import sys
from collections.abc import Iterable
from pathlib import Path

import alignedsched

PACKAGE = Path(alignedsched.__file__).parent
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def code_digest(package: Path = PACKAGE, files: Iterable[Path] | None = None) -> str:
    """Of all modules of a package, or of some; the same where only comments, docstrings or layout differ."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py") if files is None else files):
        tree = ast.parse(path.read_bytes())
        for node in ast.walk(tree):
            if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
                del node.body[0]
        digest.update(path.relative_to(package).as_posix().encode() + b"\0" + ast.dump(tree).encode() + b"\0")
    return digest.hexdigest()


def loaded() -> list[Path]:
    """The files of the library's modules that this process has imported."""
    modules = [module for name, module in sys.modules.items() if f"{name}.".startswith("alignedsched.")]
    return [Path(module.__file__) for module in modules if module.__file__ is not None]
