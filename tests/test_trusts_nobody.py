"""No file can run code, and no name from outside can hurt a terminal, a table or a file it is printed into."""

from __future__ import annotations

import ast
import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignedsched.errors import CallerError, TraceError
from alignedsched.outside import show
from alignedsched.report import terminal, text
from alignedsched.report.progress import done_line, progress_line
from alignedsched.sim.settings import ProgressUpdate
from alignedsched.workloads import Workload
from tests.results import a_result, a_run

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted((ROOT / "src").rglob("*.py"))

# -- nothing from outside is run

FORBIDDEN_MODULES = {
    "pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "dbm", "copyreg", "yaml",
    "ruamel", "code", "codeop", "runpy", "imp", "importlib", "pkgutil", "ctypes", "subprocess", "pty", "xml",
}  # fmt: skip
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "globals", "locals", "vars"}
FORBIDDEN_METHODS = {"system", "popen", "spawnl", "execv", "load_module", "exec_module", "import_module", "loads"}
# (file, what) -> why it may. Nothing that a file says chooses what is imported or run.
ALLOWED = {
    ("registry.py", "importlib"): "policies of other packages, by entry point: what is installed, by name",
    ("registry.py", "importlib.metadata"): "the type of the same",
    ("cli/arguments.py", "importlib.metadata"): "the version of the package that is installed",
    ("cli/explain.py", "importlib.util"): "whether `rich` is installed",
    ("cli/replay.py", "importlib.util"): "whether `rich` is installed",
    ("report/terminal.py", "importlib.util"): "whether `rich` is installed",
    ("testing/subjects.py", "importlib"): "what a developer names on the command line to have it tested",
    ("testing/subjects.py", "importlib.import_module"): "what a developer names on the command line to have it tested",
    ("testing/policy_suite.py", "subprocess"): "the suite runs itself in a second process",
    ("alignedsched_torch/workers/launch.py", "subprocess"): "workers are processes of this very interpreter and module",
    ("alignedsched_torch/calibrate/machine.py", "subprocess"): "`nvidia-smi` tells the clocks, with fixed words",
    ("alignedsched_torch/calibrate/machine.py", "importlib"): "versions of packages that are installed",
    ("alignedsched_torch/kernels/build.py", "subprocess"): "the disassembler that Triton brings, on its own output",
    ("alignedsched_torch/kernels/choice.py", "importlib.util"): "whether `triton` and `flashinfer` are installed",
    ("adapters/versions.py", "importlib.metadata"): "the version of the engine that is installed",
    ("adapters/vllm/settings.py", "importlib"): "a policy that the engine's owner names in the engine's own settings",
    ("adapters/vllm/settings.py", "importlib.import_module"): "the same",
    ("report/advice.py", "importlib.util"): "whether `rich` is installed",
    ("cli/advise.py", "vars"): "the options of argparse's own namespace",
    ("cli/arguments.py", "vars"): "the options of argparse's own namespace",
}


def uses(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """What a file uses of what could run what it reads."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.stmt | ast.expr | ast.keyword):
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module or ""]
        else:
            names = []
        for name in names:
            if name.partition(".")[0] in FORBIDDEN_MODULES:
                yield name, node.lineno
        if isinstance(node, ast.Name) and node.id in FORBIDDEN_CALLS:
            yield node.id, node.lineno
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if node.func.attr in FORBIDDEN_METHODS:
                owner = node.func.value.id if isinstance(node.func.value, ast.Name) else "?"
                if owner != "json":  # it holds no code
                    yield f"{owner}.{node.func.attr}", node.lineno
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            yield "allow_pickle", node.lineno


def found() -> dict[tuple[str, str], int]:
    places = {}
    for path in SOURCES:
        inside = path.relative_to(ROOT / "src").as_posix().removeprefix("alignedsched/")
        for what, line in uses(ast.parse(path.read_text(encoding="utf-8"))):
            places[inside, what] = line
    return places


def test_no_source_can_run_what_it_reads() -> None:
    surplus = {place: line for place, line in found().items() if place not in ALLOWED}
    assert not surplus
    assert not ALLOWED.keys() - found().keys(), "allowed, and not used any more"


@pytest.mark.parametrize(
    "source",
    [
        "import pickle", "from pickle import loads", "import importlib.util", "eval('1')", "f = exec", "os.system('x')",
        "np.load('x', allow_pickle=True)", "__import__('os')", "from yaml import load", "x.loads(b'')",
    ],
)  # fmt: skip
def test_the_walk_sees_each_way(source: str) -> None:
    assert list(uses(ast.parse(source)))


# -- names from outside

HOSTILE = (
    "<script>alert(1)</script>", "</script>", "\x1b[31mred", "\x1b]0;title\x07", "\x9b31m", "a\nb", "a\rb", "a\tb",
    "\x00", "'\"`", "[red]x[/red]", "[/]", "\u202eabc", "\u2066x", "\ud800", "\udcff", "\u2028", "\ufeff", "x" * 5000,
    "👩\u200d👩", "e\u0301", "%s %n {0}", "&amp;<b>", "\\", "\U000e0041",
)  # fmt: skip
names = st.one_of(st.sampled_from(HOSTILE), st.lists(st.sampled_from(HOSTILE), min_size=1, max_size=3).map("".join))
names = st.one_of(names, st.text(st.characters(), min_size=1, max_size=60))


def is_harmless(line: str) -> bool:
    """Nothing in it is interpreted by a terminal, or turns the direction of what stands beside it."""
    return line.isprintable() and line.encode("utf-8").decode("utf-8") == line


@given(names, st.integers(2, 60))
def test_printable_text_is_harmless_and_short(name: str, most: int) -> None:
    shown = text.printable(name, most)
    assert is_harmless(shown)
    assert len(shown) <= most
    assert text.printable(shown) == shown
    assert is_harmless(text.printable(name))
    assert is_harmless(show(name))


@given(names)
def test_no_name_gets_into_the_plain_report_as_it_is(name: str) -> None:
    result = a_result(a_run("fcfs"), a_run(name), workload=name) | {"hardware": name, "model": name, "topology": name}
    shown = terminal.plain(result | {"surface": name})
    lines = shown.splitlines()
    assert shown == "\n".join(lines) + "\n"
    assert len(lines) == len(terminal.plain(a_result(a_run("fcfs"), a_run("x"))).splitlines())
    for line in lines:
        assert is_harmless(line)
        assert len(line) <= 450


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_no_name_gets_into_the_coloured_report_as_it_is(name: str) -> None:
    pytest.importorskip("rich")

    def drawn(inner: str) -> str:
        stream = Terminal()
        terminal.print_report(a_result(a_run("fcfs"), a_run(inner), workload=inner), stream)
        return stream.getvalue()

    shown = drawn(name)
    assert shown.count("\x1b[") == drawn("x" * len(text.printable(name, 28))).count("\x1b[")
    assert all(is_harmless(line.replace("\x1b[", "")) for line in shown.splitlines())
    if "[" in name and "\x1b" not in name and "\x9b" not in name:
        assert text.printable(name, 28)[:4] in shown, "markup is shown, not obeyed"


@given(names)
def test_progress_and_errors_are_harmless_lines(name: str) -> None:
    update = ProgressUpdate(policy=name, phase="running", requests_ended=1, requests_total=2)
    assert is_harmless(progress_line(update))
    assert is_harmless(done_line(update))
    with pytest.raises(CallerError) as caught:
        Workload("w", [0.0, 1.0], [1, 1], [1, 1], ids=(name, name))
    assert is_harmless(str(caught.value))
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_a_bad_row_shows_its_value_harmlessly(name: str, tmp_path: Path) -> None:
    from alignedsched.workloads import read_trace

    path = tmp_path / "trace.jsonl"
    path.write_text('{"arrival_s": 0, "prompt_tokens": 1, "output_tokens": 1}\n' + json.dumps({"prompt_tokens": name}))
    with pytest.raises(TraceError) as caught:
        list(read_trace(path))
    assert is_harmless(str(caught.value))
