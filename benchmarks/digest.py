"""Which code made a result: a digest of a package as the interpreter sees it."""

from __future__ import annotations

import ast
import hashlib
from pathlib import Path

import alignedsched

DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def code_digest(package: Path = Path(alignedsched.__file__).parent) -> str:
    """Of all modules of a package; the same where only comments, docstrings or layout differ."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        tree = ast.parse(path.read_bytes())
        for node in ast.walk(tree):
            if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
                del node.body[0]
        digest.update(path.relative_to(package).as_posix().encode() + b"\0" + ast.dump(tree).encode() + b"\0")
    return digest.hexdigest()
