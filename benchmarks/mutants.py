"""Mutation testing: small wrong changes to the ledger, the pool and the running batch, and whether a test sees each.

    python -m benchmarks.mutants [--sample 200] [--seed 0] [--json FILE] [--only NUMBER]

A mutant is one change to the syntax tree: a comparison, an arithmetic or a logical operator swapped, a condition
negated, a ``not`` removed, a constant off by one, a returned value replaced, a statement dropped. It runs in a copy of
the package in a temporary folder, against the fast tests of these files and a few random lives of whole schedulers; it
is killed when one of them fails, or hangs. What survives is printed as a difference.
"""

from __future__ import annotations

import argparse
import ast
import copy
import difflib
import json
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from random import Random
from typing import Any

from attrs import frozen

ROOT = Path(__file__).resolve().parent.parent
FILES = {
    "ledger.py": ("tests/test_ledger.py",),
    "pool.py": ("tests/test_pool.py",),
    "batch.py": ("tests/test_batch.py",),
}
LIVES = (*((seed, 60) for seed in range(8)), (90222, 200), (3000058, 400))  # seed and calls
CPU_S = 30  # a mutant that takes longer hangs; without one it is about 4
# Forked from one process that has loaded what does not change from mutant to mutant.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["pytest", "hypothesis", "hypothesis.stateful", "numpy", "attrs", "sortedcontainers"])
COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE), ast.LtE: (ast.Lt, ast.Gt), ast.Gt: (ast.GtE, ast.LtE), ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.Is: (ast.IsNot,), ast.IsNot: (ast.Is,), ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}  # fmt: skip
ARITHMETIC: dict[type[ast.operator], tuple[type[ast.operator], ...]] = {
    ast.Add: (ast.Sub,), ast.Sub: (ast.Add,), ast.Mult: (ast.Add, ast.FloorDiv), ast.FloorDiv: (ast.Mult,),
    ast.Pow: (ast.Mult,), ast.Mod: (ast.FloorDiv,),
}  # fmt: skip


@frozen
class Mutant:
    """One changed file."""

    number: int
    file: str
    line: int
    kind: str
    source: str


def _changes(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """What may stand in a node's place, and what kind of change that is."""
    if isinstance(node, ast.Compare):
        for at, operator in enumerate(node.ops):
            for other in COMPARISONS.get(type(operator), ()):
                changed = copy.deepcopy(node)
                changed.ops[at] = other()
                yield "comparison", changed
    if isinstance(node, ast.BinOp | ast.AugAssign):
        for swap in ARITHMETIC.get(type(node.op), ()):
            other_op = copy.deepcopy(node)
            other_op.op = swap()
            yield "arithmetic", other_op
    if isinstance(node, ast.BoolOp):
        logical = copy.deepcopy(node)
        logical.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        yield "and/or", logical
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield "not removed", node.operand
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        yield "sign", node.operand
    if isinstance(node, ast.Constant):
        yield from _constants(node)
    if isinstance(node, ast.If | ast.While | ast.IfExp):
        negated = copy.deepcopy(node)
        negated.test = ast.UnaryOp(ast.Not(), negated.test)
        yield "negated condition", negated
    if isinstance(node, ast.Return) and node.value is not None and not isinstance(node.value, ast.Constant):
        yield "return", ast.Return(ast.Constant(None))
    says_only = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    if (
        isinstance(node, ast.Expr | ast.Assign | ast.AugAssign | ast.Delete | ast.Raise | ast.Continue)
        and not says_only
    ):
        yield "dropped statement", ast.Pass()


def _constants(node: ast.Constant) -> Iterator[tuple[str, ast.AST]]:
    if isinstance(node.value, bool):
        yield "constant", ast.Constant(not node.value)
    elif isinstance(node.value, int):
        yield "constant", ast.Constant(node.value + 1)
        yield "constant", ast.Constant(node.value - 1)


class _Replace(ast.NodeTransformer):
    """Puts one node in another's place."""

    def __init__(self, old: ast.AST, new: ast.AST) -> None:
        self.old, self.new = old, new

    def visit(self, node: ast.AST) -> ast.AST:
        return ast.copy_location(self.new, node) if node is self.old else self.generic_visit(node)


def _annotations(tree: ast.AST) -> set[ast.AST]:
    """Nodes that only say types: they are never run."""
    said: list[ast.AST | None] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.AnnAssign | ast.arg):
            said.append(node.annotation)
        elif isinstance(node, ast.FunctionDef):
            said.append(node.returns)
    return {inner for outer in said if outer is not None for inner in ast.walk(outer)}


def mutants(package: Path) -> list[Mutant]:
    """Every mutant of the files, in a fixed order."""
    made: list[Mutant] = []
    for file in FILES:
        text = (package / file).read_text(encoding="utf-8")
        tree = ast.parse(text)
        silent = _annotations(tree)
        for node in [node for node in ast.walk(tree) if node not in silent]:
            for kind, new in _changes(node):
                fresh = ast.parse(text)
                twin = next(t for o, t in zip(ast.walk(tree), ast.walk(fresh), strict=True) if o is node)
                changed = ast.fix_missing_locations(_Replace(twin, copy.deepcopy(new)).visit(fresh))
                source = ast.unparse(changed)
                if source != ast.unparse(tree):
                    made.append(Mutant(len(made), file, getattr(node, "lineno", 0), kind, source))
    return made


def _run(folder: str, tests: list[str]) -> None:
    """Run tests and lives of a copy in this process, silently; leaves with 0 if they pass."""
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    os.chdir(folder)
    sys.path[:0] = [f"{folder}/src", folder]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    import pytest
    from hypothesis import Phase, settings

    # A failure is enough: nobody reads the smallest one.
    steady = {"derandomize": True, "deadline": None, "database": None, "max_examples": 50}
    settings.register_profile("mutants", phases=(Phase.explicit, Phase.generate), **steady)  # type: ignore[arg-type]
    os.environ["HYPOTHESIS_PROFILE"] = "mutants"
    quiet = ["-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
    code = pytest.main([*quiet, *tests])
    if not code:
        from alignedsched.testing.world import walk
        from benchmarks.fuzz_logs import goes_round

        for seed, calls in LIVES:
            walk(seed, calls)
        assert goes_round()
    sys.exit(int(code))


def _passes(folder: Path, tests: Iterable[str]) -> bool:
    """Whether these tests and the lives pass in a copy, in a process of their own."""
    process = PROCESSES.Process(target=_run, args=(str(folder), list(tests)))
    process.start()
    process.join()
    return process.exitcode == 0


def difference(folder: Path, mutant: Mutant) -> str:
    """What a mutant changes, as lines taken away and added."""
    before = ast.unparse(ast.parse((folder / mutant.file).read_text(encoding="utf-8"))).splitlines()
    lines = difflib.unified_diff(before, mutant.source.splitlines(), n=0, lineterm="")
    return "\n".join(line for line in lines if line[0] in "+-" and line[:3] not in ("+++", "---"))


def try_out(chosen: list[Mutant]) -> dict[str, Any]:
    """Run the tests against each; what was killed and what survived."""
    survived, killed, package = [], Counter[str](), ROOT / "src" / "alignedsched"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("src", "tests", "benchmarks"):
            shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__", "results"))
        shutil.copy(ROOT / "pyproject.toml", folder)
        if not _passes(folder, [test for tests in FILES.values() for test in tests]):
            raise SystemExit("the tests fail without any mutant")
        for count, mutant in enumerate(chosen, 1):
            target = folder / "src" / "alignedsched" / mutant.file
            target.write_text(mutant.source, encoding="utf-8")
            for compiled in target.parent.glob(f"__pycache__/{target.stem}.*"):  # it is told apart by size and second
                compiled.unlink()
            if _passes(folder, FILES[mutant.file]):
                survived.append(mutant)
                print(f"SURVIVED {mutant.number} {mutant.file}:{mutant.line} {mutant.kind}")
                print(difference(package, mutant), flush=True)
            else:
                killed[mutant.kind] += 1
            shutil.copy(package / mutant.file, target)
            if not count % 20:
                print(f"{count} of {len(chosen)}, {len(survived)} survived", flush=True)
    return {
        "sample": len(chosen),
        "killed": sum(killed.values()),
        "killed_by_kind": dict(sorted(killed.items())),
        "survived": [
            {"number": m.number, "file": m.file, "line": m.line, "kind": m.kind, "change": difference(package, m)}
            for m in survived
        ],
    }


def main() -> int:
    """Sample, run, tell; 1 if fewer than 90 % are killed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="file that takes the result")
    parser.add_argument("--only", type=int, action="append", help="numbers of mutants, instead of a sample")
    options = parser.parse_args()
    every = mutants(ROOT / "src" / "alignedsched")
    if options.only:
        chosen = [every[number] for number in options.only]
    else:
        chosen = sorted(Random(options.seed).sample(every, min(options.sample, len(every))), key=lambda m: m.number)
    result = {"files": list(FILES), "mutants": len(every), "seed": options.seed, **try_out(chosen)}
    print(f"{result['killed']} of {result['sample']} killed, of {len(every)} there are")
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0 if result["killed"] >= 0.9 * result["sample"] else 1


if __name__ == "__main__":
    sys.exit(main())
