"""The project keeps its own rules: light imports, small documented files, public names that are explained."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

import alignedsched

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted((ROOT / "src").rglob("*.py"))
PURE = [path for path in SOURCES if "alignedsched" in path.relative_to(ROOT / "src").parts]
BASE = {"attr", "attrs", "sortedcontainers", "numpy"}
OPTIONAL = {"rich", "matplotlib", "hypothesis", "transformers"}  # of the extras; imported late, where they are used
ENGINES = {"transformers_scheduler.py": {"transformers"}}  # files that only their engine imports
# The simulated executor gets plans and gives events: what it may know of us is what any executor may.
EXECUTOR = [
    path for path in PURE if path.parent.name == "sim" and path.stem in {"executor", "lane", "links", "segment"}
]
EXECUTOR_MAY_IMPORT = {"request", "events", "plan", "cluster", "errors", "states", "costs", "load", "batch"}
SHIPPED_POLICIES = ("fcfs", "density_first")
MOST_LINES = 350
MAY_BE_LONGER = {"src/alignedsched/scheduler.py"}  # one mutator, one file, until the right line to cut is known
MOST_MODULES = 200  # loaded by a bare import: what its time follows from


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def modules_loaded_by(statement: str) -> set[str]:
    """Modules that a statement loads in a fresh interpreter."""
    report = "print(json.dumps(sorted(set(sys.modules) - before)))"
    code = f"import sys, json; before = set(sys.modules); {statement}; {report}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return set(json.loads(done.stdout))


def outsiders(modules: set[str]) -> set[str]:
    """Top-level names of modules that are neither ours nor the standard library's."""
    tops = {name.partition(".")[0] for name in modules}
    return {top for top in tops if top not in sys.stdlib_module_names} - {"alignedsched", "alignedsched_torch"}


def test_import_loads_only_the_base_dependencies() -> None:
    loaded = modules_loaded_by("import alignedsched")
    # Names with a leading underscore are compiled parts and import hooks of what is installed.
    assert {top for top in outsiders(loaded) if not top.startswith("_")} <= BASE - {"numpy"}  # half the time by itself
    assert len(loaded) <= MOST_MODULES, f"{len(loaded)} modules"


def test_the_command_understands_its_options_before_the_simulator_is_loaded() -> None:
    loaded = modules_loaded_by("import alignedsched.cli, alignedsched.cli.run")
    assert {top for top in outsiders(loaded) if not top.startswith("_")} <= BASE
    assert "alignedsched.sim.compare" not in loaded


def test_torch_companion_imports_without_torch() -> None:
    assert "torch" not in outsiders(modules_loaded_by("import alignedsched_torch"))


def imports_of(tree: ast.Module) -> Iterator[tuple[str, bool]]:
    """Top-level names of absolute imports, and whether each happens when the module is imported."""
    late = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        or (isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING")
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name.partition(".")[0], node not in late
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield (node.module or "").partition(".")[0], node not in late


@pytest.mark.parametrize("path", PURE, ids=name_of)
def test_pure_files_import_what_the_base_install_brings(path: Path) -> None:
    needs_extra = "testing" in path.parts  # the extra `testing` is about hypothesis
    own = {"pytest"} if path.name == "pytest_checks.py" else {"vllm"} if needs_vllm(name_of(path)) else set()
    for top, at_import in imports_of(ast.parse(path.read_text(encoding="utf-8"))):
        engine = ENGINES.get(path.name, set())
        allowed = BASE | {"alignedsched"} | engine | (set() if at_import and not needs_extra else OPTIONAL)
        assert top in sys.stdlib_module_names or top in allowed | own, f"imports {top}"


@pytest.mark.parametrize("path", EXECUTOR, ids=name_of)
def test_the_executor_knows_records_costs_and_the_batch_only(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level == 2:
            assert node.module in EXECUTOR_MAY_IMPORT, f"line {node.lineno} imports {node.module}"
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            assert not (node.module or "").startswith("alignedsched"), f"line {node.lineno}: say it relatively"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_files_are_short_and_say_their_idea(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    lines = len(text.splitlines())
    assert lines <= MOST_LINES or name_of(path) in MAY_BE_LONGER, f"{lines} lines"
    docstring = ast.get_docstring(ast.parse(text))
    assert docstring, "has no docstring"
    assert docstring.splitlines()[0].strip(), "the docstring's first line is empty"


def needs_vllm(name: str) -> bool:
    """Whether a module, or a file, is one of the two that only an engine imports."""
    return any(f"adapters{dot}vllm{dot}{part}" in name for part in ("scheduler", "connector") for dot in "./")


def public_modules() -> list[str]:
    found = pkgutil.walk_packages(alignedsched.__path__, "alignedsched.")
    names = ["alignedsched", *(module.name for module in found)]
    here = importlib.util.find_spec("vllm") is not None
    return [
        name
        for name in names
        if not name.endswith("__main__") and ".testing" not in name and (here or not needs_vllm(name))
    ]


@pytest.mark.parametrize("name", public_modules())
def test_names_in_all_exist_and_are_explained(name: str) -> None:
    module = importlib.import_module(name)
    exported = getattr(module, "__all__", ())
    assert len(set(exported)) == len(exported), "a name is there twice"
    for public in exported:
        thing = getattr(module, public)
        if isinstance(thing, type) or callable(thing):
            assert (thing.__doc__ or "").strip(), f"{public} has no docstring"


def test_the_package_exports_names() -> None:
    assert alignedsched.__all__


def test_version_and_entry_points_are_what_is_installed() -> None:
    try:
        installed = metadata.distribution("alignedsched")
    except metadata.PackageNotFoundError:
        pytest.skip("alignedsched is not installed here, only on the path")
    points = {(point.group, point.name): point for point in installed.entry_points}
    assert points["console_scripts", "alignedsched"].value == "alignedsched.cli:main"
    for policy in SHIPPED_POLICIES:
        assert callable(points["alignedsched.policies", policy].load())
    assert importlib.import_module("alignedsched_torch").__version__ == installed.version
    files = {str(file) for file in installed.files or ()}
    if "alignedsched/__init__.py" in files:  # a wheel; an editable install lists no package files
        assert {"alignedsched/py.typed", "alignedsched_torch/py.typed"} <= files


@pytest.mark.parametrize("policy", SHIPPED_POLICIES)
def test_the_name_of_a_policy_is_its_factory_not_its_file(policy: str) -> None:
    policies = importlib.import_module("alignedsched.policies")
    importlib.import_module(f"alignedsched.policies.{policy}")  # must not hide the factory of the same name
    assert callable(getattr(policies, policy))


def test_type_markers_are_there() -> None:
    for package in ("alignedsched", "alignedsched_torch"):
        assert (ROOT / "src" / package / "py.typed").is_file()


def test_every_installed_requirement_is_pinned() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert pins
    assert all(line.count("==") == 1 and "/" not in line and "@" not in line for line in pins)
