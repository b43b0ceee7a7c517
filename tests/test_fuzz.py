"""Whatever is in a file, an option, a state or an argument: only documented errors, bounded work, bounded messages."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from alignedsched import Request, Scheduler
from alignedsched.cli.files import JsonFile
from alignedsched.cost_table import TableCosts
from alignedsched.errors import CallerError, ConfigError, ExecutorError, TraceError
from alignedsched.events import Arrived, StepsDone
from alignedsched.measured import Measured
from alignedsched.models import Model
from alignedsched.outside import MAX_FILE_BYTES, is_count, is_number, read_json, show
from alignedsched.registry import policy
from alignedsched.report import schema
from alignedsched.sim.build import build
from alignedsched.sim.settings import CompareSettings
from alignedsched.story import RecordedScheduler, replay
from alignedsched.story.explain import LogFile, explain_request, explain_time
from alignedsched.workloads import lines, read_trace
from alignedsched.workloads.lines import MAX_UNPACKED_BYTES
from benchmarks import fuzz
from benchmarks.fuzz_logs import CLUSTER
from benchmarks.fuzz_targets import Target, a_result, targets
from benchmarks.fuzz_values import deep_list

INPUTS = 5000
HUGE = 10**5000  # ``str`` and ``float`` refuse it, so pytest cannot name a case by it


def str_of(value: object) -> str:
    return show(value)[:30]


@pytest.fixture(scope="module")
def table() -> Iterator[dict[str, Target]]:
    with targets() as found:
        yield found


def test_nothing_but_documented_errors_comes_of_five_thousand_inputs(table: dict[str, Target]) -> None:
    tallies = fuzz.fuzz(list(table.values()), INPUTS, seed=0)
    findings = [finding for tally in tallies.values() for finding in tally.findings.values()]
    assert not findings
    assert sum(tally.inputs for tally in tallies.values()) >= INPUTS - len(table)
    for name, tally in tallies.items():
        assert tally.accepted, f"{name}: no input was sound, so nothing beyond the first check was reached"
        assert tally.refused or name == "command", f"{name}: no input was hostile enough to be refused"


def misbehave(payload: int) -> None:
    if payload == 0:
        raise KeyError("undocumented")
    if payload == 1:
        raise CallerError("x" * 10_000)
    if payload == 2:
        for _ in range(10**6):
            abs(-1)


BROKEN = Target("broken", 1.0, lambda rng: (rng.randrange(4), 1), misbehave)


def test_the_fuzzer_finds_what_none_may_do_and_can_make_it_again() -> None:
    first, again = (fuzz.fuzz([BROKEN], 40, seed=3)["broken"] for _ in range(2))
    assert first.findings == again.findings
    assert sorted(error for error, _ in first.findings) == ["CallerError", "KeyError", "WorkError"]
    assert first.accepted + sum(finding.times for finding in first.findings.values()) == first.inputs == 40
    for finding in first.findings.values():
        payload, _ = BROKEN.make(fuzz.rng_of("broken", finding.seed, finding.number))
        assert payload == {"KeyError": 0, "CallerError": 1, "WorkError": 2}[finding.error.split(":")[0]]


# -- what it found once


@pytest.mark.parametrize(
    "value", [HUGE, -HUGE, deep_list(), "x" * 10**6, {"a": deep_list()}, (), float("nan"), object], ids=str_of
)
def test_any_value_can_be_shown(value: object) -> None:
    assert 0 < len(show(value)) < 200
    assert show(value).isprintable()


@pytest.mark.parametrize(
    ("value", "number", "count"),
    [
        (0, True, True), (1.5, True, False), (True, False, False), ("1", False, False), (None, False, False),
        (float("nan"), False, False), (float("inf"), False, False), (10**400, False, False), (-1, False, False),
        (2**63, True, False), (10**6, True, True), (deep_list(), False, False),
    ],
    ids=str_of,
)  # fmt: skip
def test_numbers_and_counts(value: object, number: bool, count: bool) -> None:
    assert is_number(value, 0) is number
    assert is_count(value) is count


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 100_000, "nested too deeply"),
        (b"9" * 5000, "is not JSON"),
        (b"\xff", "is not JSON"),
        (b"", "is not JSON"),
    ],
)
def test_a_json_file_that_cannot_be_read_is_a_config_error(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(content)
    for read in (read_json, TableCosts.load, Measured.load, Model.from_config):
        with pytest.raises(ConfigError, match=message) as caught:
            read(path)
        assert len(str(caught.value)) < 400


def test_a_json_file_beyond_the_bound_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    with path.open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    with pytest.raises(ConfigError, match="is too long"):
        read_json(path)


@pytest.mark.parametrize(
    "change",
    [{"layer_types": 5}, {"layer_types": ["x" * 9999]}, {"num_hidden_layers": HUGE}, {"torch_dtype": ["x"]}],
    ids=str_of,
)
def test_a_model_of_impossible_size_or_kind_is_refused(change: dict[str, Any]) -> None:
    sound = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 9} | {"n_positions": 9}
    Model.from_config(sound)
    with pytest.raises(ConfigError):
        Model.from_config(sound | change)


@pytest.mark.parametrize("hardware", ["h100:" + "9" * 5000, "h100:٢", "h100:02", "x" * 10_000])
def test_hardware_is_read_word_for_word(hardware: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(hardware, "llama-3.1-8b", topology="colocated", lanes=1, surface="gated", staging=True)
    assert len(str(caught.value)) < 300


def test_a_model_name_too_long_for_a_path_is_an_unknown_name() -> None:
    with pytest.raises(ConfigError, match="unknown model"):
        build("h100", "x" * 5000, topology="colocated", lanes=1, surface="gated", staging=True)


@pytest.mark.parametrize(
    "options",
    [{"lanes": 10**9}, {"lanes": 200, "ranks": 2}, {"requests": 10**12}, {"load": 10**400}, {"seed": HUGE}],
    ids=str_of,
)
def test_a_comparison_larger_than_any_machine_is_refused_before_it_begins(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        CompareSettings(workload="giant", **options)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("fcfs", {"token_budget": "64"}), ("fcfs", {"swap": 1}), ("density_first", {"growth_share": 10**400}),
        ("density_first", {"pool_batches": []}), ("density_first", {"to_host": "x" * 9999}),
        ("density_first", {"staging": None}), ("density_first", {"token_budget": 0}), ("fcfs", {"x" * 9999: 1}),
        ("density_first", {"guard_s": deep_list()}),
    ],
    ids=str_of,
)  # fmt: skip
def test_a_wrong_policy_option_is_refused_when_the_policy_is_made(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        policy(name, **options)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("clock", [10**400, HUGE, deep_list(), True, "1"], ids=str_of)
def test_a_policy_state_of_wrong_values_is_refused(clock: object) -> None:
    batching = policy("density_first").batching
    for state in ({"clocks": {"1": clock}, "lanes": {}}, {"clocks": {}, "lanes": {"x" * 9999: clock}}, [clock]):
        with pytest.raises(CallerError) as caught:
            batching.load(state)  # type: ignore[arg-type]
        assert len(str(caught.value)) < 500
    old: Any = {"clocks": {}, "lanes": {"l": {"old": [clock and 7], "since": None, "chosen": None, "turning": False}}}
    with pytest.raises(CallerError, match="list of ids"):
        batching.load(old)


@pytest.mark.parametrize("now", [10**400, HUGE, -(10**400)], ids=str_of)
def test_a_time_beyond_every_float_is_refused(now: float) -> None:
    with pytest.raises(CallerError, match=r"now must be a finite number"):
        Scheduler(CLUSTER, policy("fcfs")).handle(now)
    with pytest.raises(CallerError, match=r"Request.arrival must be finite seconds"):
        Request("a", 1, arrival=now)


@pytest.mark.parametrize("value", [10**400, float("nan"), float("inf")], ids=str_of)
@pytest.mark.parametrize("name", ["seconds", "ended"])
def test_a_report_of_impossible_times_is_refused(name: str, value: float) -> None:
    scheduler = Scheduler(CLUSTER, policy("fcfs"))
    scheduler.handle(0.0, Arrived(Request("a", 9, 4)))
    done = StepsDone("l0", 0, 0, 0, prefilled=("a",))
    with pytest.raises(ExecutorError, match=f"{name} must be"):
        scheduler.handle(1.0, evolve(done, seconds=value) if name == "seconds" else evolve(done, ended=value))
    assert [join.request for join in scheduler.handle(1.0, done).steps[0].joins] == ["a"]


def test_a_log_with_a_time_beyond_every_float_can_be_told(tmp_path: Path) -> None:
    path = tmp_path / "run.alog"
    with RecordedScheduler(path, CLUSTER, policy("fcfs")) as scheduler:
        scheduler.handle(0.0, Arrived(Request("a", 9, 4)))
        scheduler.handle(1.0, StepsDone("l0", 0, 0, 0, prefilled=("a",)))
        with pytest.raises(CallerError):
            scheduler.handle(10**400)
    assert replay(path).difference is None
    assert explain_request(LogFile(path), "a")
    assert explain_time(LogFile(path), 1.0)


def test_results_of_impossible_numbers_are_refused() -> None:
    for steps in (10**400, HUGE, 2**64, deep_list()):
        with pytest.raises(CallerError, match=r"runs\[0\].steps"):
            schema.validate({**a_result(), "runs": [{**a_result()["runs"][0], "steps": steps}]})


@pytest.mark.parametrize("content", [b" ", b"\n", b"0,1,1\n", b"x" * 1000], ids=repr)
def test_a_gzip_bomb_is_given_up(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    most = 10**5
    monkeypatch.setattr(lines, "MAX_UNPACKED_BYTES", most)
    path, aside = tmp_path / "bomb.csv.gz", tmp_path / "aside"
    head = b"arrival_s,prompt_tokens,output_tokens\n"
    for size, given_up in ((most, False), (most + 1, True)):
        whole = (head + content * (size // len(content) + 1))[:size]
        path.write_bytes(gzip.compress(whole))
        with read_trace(path, skip_bad_rows=aside) as reader:
            rows = list(reader)
        assert bool(rows) is content.startswith(b"0"), "what comes before the bound is read"
        assert ("unpack it first" in aside.read_text()) is given_up


def test_quotes_that_stay_open_cost_each_line_a_bounded_number_of_times(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    rows = 1000  # each opens a quote, and goes on in one that is open
    path.write_bytes(b"arrival_s,prompt_tokens,output_tokens\n" + b'a","\n' * rows)
    with fuzz.counted(64 * rows * 20), read_trace(path, skip_bad_rows=tmp_path / "aside") as reader:
        assert not list(reader)
    assert reader.skipped == rows


def test_a_result_is_written_whatever_the_trace_is_called(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    with JsonFile(path) as file:
        file.write({"name": "\udcff\u202e\u2028"})
    assert path.read_bytes().isascii()
    assert json.loads(path.read_text()) == {"name": "\udcff\u202e\u2028"}


def test_a_trace_that_is_a_bomb_stops_a_reading_that_skips_nothing(tmp_path: Path) -> None:
    path = tmp_path / "bomb.gz"
    path.write_bytes(gzip.compress(b" " * (MAX_UNPACKED_BYTES + 1), 1))
    with pytest.raises(TraceError, match="unpack it first"):
        read_trace(path)
