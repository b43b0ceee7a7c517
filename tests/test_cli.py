"""The command: what it understands, what it says when it does not, and the files it writes."""

from __future__ import annotations

import contextlib
import io
import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from alignedsched.cli import main
from alignedsched.cli.arguments import UsageError, parse
from alignedsched.errors import ConfigError, InvariantError, PolicyError, TraceError
from alignedsched.sim.settings import CompareSettings, Progress, ProgressUpdate, RunWatch
from tests.results import a_result, a_run

MOONCAKE = ["compare", "--workload", "mooncake"]
ROOT_USER = hasattr(os, "geteuid") and os.geteuid() == 0


class FakeCompare:
    """Stands for the simulator: keeps what it was told, reports one run, returns a result or raises."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error
        self.told: list[CompareSettings] = []

    def __call__(
        self, settings: CompareSettings, progress: Progress | None = None, watch: RunWatch | None = None
    ) -> dict[str, Any]:
        self.told.append(settings)
        assert progress is not None
        progress(ProgressUpdate(policy="fcfs", phase="running", requests_ended=1, requests_total=2))
        if self.error is not None:
            raise self.error
        progress(ProgressUpdate(policy="fcfs", phase="done", requests_ended=2, requests_total=2))
        return a_result(*(a_run(policy) for policy in settings.policies))


def settings_of(*options: str) -> CompareSettings:
    fake = FakeCompare()
    assert main([*MOONCAKE, *options], compare=fake) == 0
    return fake.told[0]


def test_defaults() -> None:
    assert settings_of() == CompareSettings(
        workload="mooncake",
        policies=("fcfs", "cost_aligned", "density_first"),
        hardware="h100",
        model=None,
        topology="colocated",
        lanes=1,
        surface=None,
        load=0.9,
        seed=0,
        staging=True,
    )


def test_every_option_arrives() -> None:
    options = (
        "--policy a --policy b --hardware H --model M --topology disaggregated --lanes 3 --surface padded --load 2.5"
    )
    more = "--limit 10 --requests 20 --seed 7 --any-length --no-staging"
    assert settings_of(*options.split(), *more.split()) == CompareSettings(
        workload="mooncake",
        policies=("a", "b"),
        hardware="H",
        model="M",
        topology="disaggregated",
        lanes=3,
        surface="padded",
        load=2.5,
        limit=10,
        requests=20,
        seed=7,
        any_length=True,
        staging=False,
    )


def test_options_of_a_trace_arrive(tmp_path: Path) -> None:
    trace, bad = tmp_path / "trace.csv", tmp_path / "bad.csv"
    trace.write_text("")
    fake = FakeCompare()
    options = ["compare", "--trace", str(trace), "--format", "azure", "--skip-bad-rows", str(bad), "--rate-scale", "2"]
    assert main(options, compare=fake) == 0
    told = fake.told[0]
    assert (told.workload, told.trace, told.format, told.skip_bad_rows) == (None, str(trace), "azure", str(bad))
    assert (told.load, told.rate_scale, told.offline) == (None, 2.0, False)


def test_offline_has_no_load() -> None:
    assert settings_of("--offline").load is None


def test_table_goes_to_stdout_and_progress_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(MOONCAKE, compare=FakeCompare()) == 0
    out, err = capsys.readouterr()
    assert out.startswith("mooncake: 100 requests")
    assert "throughput" in out
    assert err == "fcfs (1/1): 2 requests, 0 s simulated in 0 s\n"


WRONG = [
    ([], "say what to do; commands: compare"),
    (["run"], "unknown command 'run'; known: compare"),
    (["--verbose"], "unknown option '--verbose'; commands: compare"),
    (["compare"], "--workload NAME or --trace FILE, neither was given"),
    ([*MOONCAKE, "--trace", "x"], "--workload NAME or --trace FILE, not both"),
    ([*MOONCAKE, "--lane", "2"], "unknown option '--lane'; known: --any-length, --format,"),
    ([*MOONCAKE, "extra"], "'extra' is not expected here"),
    (["compare", "--workload"], "--workload: expected one argument"),
    ([*MOONCAKE, "--lanes", "two"], "--lanes: must be a whole number of at least 1, got 'two'"),
    ([*MOONCAKE, "--lanes", "0"], "--lanes: must be a whole number of at least 1, got '0'"),
    ([*MOONCAKE, "--seed", "-1"], "--seed: must be a whole number of at least 0, got '-1'"),
    ([*MOONCAKE, "--load", "nan"], "--load: must be a finite number above 0, got 'nan'"),
    ([*MOONCAKE, "--load", "0"], "--load: must be a finite number above 0, got '0'"),
    ([*MOONCAKE, "--rate-scale", "inf"], "--rate-scale: must be a finite number above 0, got 'inf'"),
    ([*MOONCAKE, "--load", "1", "--offline"], "--load and --offline exclude each other"),
    ([*MOONCAKE, "--surface", "flat"], "unknown surface 'flat'; known: balanced, gated, unsplit, padded"),
    ([*MOONCAKE, "--topology", "ring"], "unknown topology 'ring'; known: colocated, disaggregated"),
    ([*MOONCAKE, "--policy", "a", "--policy", "a"], "policy 'a' is named twice"),
    ([*MOONCAKE, "--policy", ""], "policies must be a non-empty text, got ''"),
    ([*MOONCAKE, "--format", "azure"], "--format describes a file"),
    ([*MOONCAKE, "--skip-bad-rows", "x"], "--skip-bad-rows is about a file"),
    (["compare", "--trace", "x", "--requests", "5"], "--requests is the size of a --workload"),
    (["compare", "--trace", "no\nfile"], "trace 'no\\nfile' does not exist"),
    (["compare", "--trace", "."], "trace '.' is a folder"),
    ([*MOONCAKE, "--json", "."], "--json '.' is a folder"),
    ([*MOONCAKE, "--json", "none/x.json"], "--json 'none/x.json' cannot be written: No such file or directory"),
]


@pytest.mark.parametrize(("argv", "message"), WRONG, ids=[" ".join(argv) or "nothing" for argv, _ in WRONG])
def test_wrong_use_is_one_sentence_and_exit_code_2(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fake = FakeCompare()
    assert main(argv, compare=fake) == 2
    out, err = capsys.readouterr()
    assert not fake.told, "the long work was begun"
    assert out == ""
    assert err.startswith("alignedsched: error: ")
    assert err.count("\n") == 1
    assert message in err
    assert not list(tmp_path.iterdir())


arguments = st.lists(
    st.sampled_from(["compare", "--workload", "--policy", "--lanes", "--load", "--json", "--trace", "--offline", "3"])
    | st.text(max_size=5),
    max_size=6,
)


@given(arguments)
@example(["compare", "--help"])
def test_any_command_line_is_understood_or_refused_in_one_line(argv: list[str]) -> None:
    with contextlib.suppress(
        UsageError, SystemExit
    ):  # refused in a sentence, or help was printed; nothing else may come
        options = parse(argv)
        assert ("workload" in options) != ("trace" in options)


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ConfigError("unknown policy 'x'; known: fcfs"), 2, "error: unknown policy 'x'; known: fcfs"),
        (
            TraceError("must be positive, got '\x1b[0'", file="t.csv", line=3, column="n"),
            2,
            "error: t.csv, line 3, column 'n': must be positive, got '\\x1b[0'",
        ),
        (FileNotFoundError(2, "No such file or directory", "t.csv"), 2, "error: 't.csv': No such file or directory"),
        (OSError(28, "No space left on device"), 2, "error: No space left on device"),
        (PolicyError("mine", "chose nobody"), 1, "failed: policy 'mine': chose nobody"),
        (InvariantError("blocks", "lost one"), 1, "failed: invariant blocks: lost one"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_failures_of_the_work(
    error: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "result.json"
    file.write_text("before")
    assert main([*MOONCAKE, "--json", str(file)], compare=FakeCompare(error)) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"alignedsched: {said}\n"
    assert file.read_text() == "before"
    assert list(tmp_path.iterdir()) == [file], "a temporary file was left"


def test_unexpected_errors_keep_their_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        main(MOONCAKE, compare=FakeCompare(ZeroDivisionError()))


def test_json_is_written_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "résult.json"
    assert main([*MOONCAKE, "--json", str(file)], compare=FakeCompare()) == 0
    assert json.loads(file.read_text(encoding="utf-8")) == a_result(
        a_run("fcfs"), a_run("cost_aligned"), a_run("density_first")
    )
    assert list(tmp_path.iterdir()) == [file]
    assert f"result written to {file}\n" in capsys.readouterr().err
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(file.stat().st_mode) == 0o666 & ~mask


def test_json_follows_a_link_and_spares_devices(tmp_path: Path) -> None:
    target, link = tmp_path / "target.json", tmp_path / "link.json"
    target.write_text("before")
    link.symlink_to(target)
    assert main([*MOONCAKE, "--json", str(link)], compare=FakeCompare()) == 0
    assert link.is_symlink()
    assert json.loads(target.read_text())["version"] == 1
    assert main([*MOONCAKE, "--json", os.devnull], compare=FakeCompare()) == 0
    assert not Path(os.devnull).is_file()


@pytest.mark.skipif(ROOT_USER, reason="the superuser may write everywhere")
def test_places_that_may_not_be_written_are_found_before_the_work(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    fake = FakeCompare()
    assert main([*MOONCAKE, "--json", str(tmp_path / "x.json")], compare=fake) == 2
    tmp_path.chmod(0o700)
    (tmp_path / "x.json").touch(mode=0o400)
    assert main([*MOONCAKE, "--json", str(tmp_path / "x.json")], compare=fake) == 2
    assert not fake.told


@pytest.mark.parametrize("output", ["--json", "--skip-bad-rows"])
def test_no_output_may_be_the_trace(output: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace, link = tmp_path / "trace.csv", tmp_path / "link"
    trace.write_text("precious")
    link.symlink_to(trace)
    assert main(["compare", "--trace", str(trace), output, str(link)], compare=FakeCompare()) == 2
    assert f"--trace and {output} name the same file" in capsys.readouterr().err
    assert trace.read_text() == "precious"


@pytest.mark.parametrize(
    ("option", "given"),
    [
        ("--model", "config.json"),
        ("--model", ""),  # the folder it lies in
        ("--hardware", "config.json"),
        ("--hardware", "config.json:triton"),
    ],
)
@pytest.mark.parametrize("output", ["--json", "--html", "--timeline"])
def test_no_output_may_be_what_the_machine_is_read_from(
    option: str, given: str, output: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.json"
    path.write_text("precious")
    assert main([*MOONCAKE, option, str(tmp_path / given), output, str(path)], compare=FakeCompare()) == 2
    assert f"{option} and {output} name the same file" in capsys.readouterr().err
    assert path.read_text() == "precious"


def test_a_name_is_no_file_even_if_there_is_one_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--json", "h100", "--hardware", "h100", "--model", "x" * 5000]
    assert main([*MOONCAKE, *options], compare=FakeCompare()) == 0
    assert json.loads(Path("h100").read_text())["version"] == 1


class Gone(io.StringIO):
    """An output whose reader went away."""

    def write(self, text: str) -> int:
        raise BrokenPipeError

    def flush(self) -> None:
        pass


def test_a_reader_that_goes_away_costs_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdout", Gone())
    file = tmp_path / "result.json"
    assert main([*MOONCAKE, "--json", str(file)], compare=FakeCompare()) == 1
    assert json.loads(file.read_text())["version"] == 1
    assert "Traceback" not in capsys.readouterr().err


def command(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "alignedsched", *argv], capture_output=True, text=True, check=False, timeout=60
    )


def test_help_and_version_of_the_real_command() -> None:
    top, compare, version = command("--help"), command("compare", "--help"), command("--version")
    assert (top.returncode, compare.returncode, version.returncode) == (0, 0, 0)
    assert "compare" in top.stdout
    assert version.stdout.startswith("alignedsched ")
    for option in parse([*MOONCAKE, "--offline"]):
        assert f"--{option}" in compare.stdout
    for word in ("examples:", "exit codes:", "--policy P", "{balanced,gated,unsplit,padded}", "(default: 0.9)"):
        assert word in compare.stdout
    assert top.stderr + compare.stderr + version.stderr == ""
    wrong = command("comapre")
    assert (wrong.returncode, wrong.stdout) == (2, "")


def test_examples_in_the_help_are_legal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "requests.csv.gz").touch()
    lines = [line.split() for line in command("compare", "--help").stdout.splitlines()]
    examples = [words[1:] for words in lines if words[:2] == ["alignedsched", "compare"]]
    assert len(examples) >= 3
    for words in examples:
        assert main(words, compare=FakeCompare()) == 0


settings_values: dict[str, list[Any]] = {
    "lanes": [0, -1, 1.0, True, None, "2"],
    "seed": [-1, 1.5, None],
    "load": [0, -1, float("nan"), float("inf"), "1", True],
    "rate_scale": [0.0, float("nan")],
    "limit": [0, 1.0],
    "requests": [0, "1"],
    "offline": [1, None],
    "staging": [None],
    "any_length": ["yes"],
    "policies": [(), [], "fcfs", ("fcfs", "fcfs"), ("",), (3,), None],
    "hardware": ["", None],
    "model": [" "],
    "topology": ["", "COLOCATED"],
    "surface": ["", "table?"],
    "format": ["", "azure"],
    "skip_bad_rows": ["bad.csv"],
    "trace": ["t.csv", ""],
    "workload": [None, "", 5],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in settings_values.items() for value in values], ids=repr
)
def test_settings_refuse_what_is_wrong_by_name(name: str, value: Any) -> None:
    given: dict[str, Any] = {"workload": "mooncake", name: value}
    said = {"policies": "polic", "trace": "trace", "workload": "workload"}.get(name, name)
    with pytest.raises(ConfigError, match=said):
        CompareSettings(**given)


@pytest.mark.parametrize("extra", [{"offline": True}, {"rate_scale": 2.0}])
def test_settings_refuse_two_ways_to_arrive(extra: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="exclude each other"):
        CompareSettings(workload="mooncake", load=1.0, **extra)
    with pytest.raises(ConfigError, match="exclude each other"):
        CompareSettings(workload="mooncake", offline=True, rate_scale=1.0)
    with pytest.raises(ConfigError, match="got none"):
        CompareSettings(workload="mooncake", load=None)
    with pytest.raises(ConfigError, match="with a trace use limit"):
        CompareSettings(trace="t", requests=3)
    with pytest.raises(ConfigError, match="must not be the trace itself"):
        CompareSettings(trace="t", skip_bad_rows="t")
