"""The report: numbers keep their value, names cannot hurt a terminal, wins and losses are told alike."""

from __future__ import annotations

import copy
import io
import re
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignedsched.errors import CallerError
from alignedsched.report import schema, terminal, text
from alignedsched.report.progress import ProgressLine
from alignedsched.sim.settings import ProgressUpdate
from tests.results import a_result, a_run


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


UNITS = {
    "s": 1.0, "ms": 1e-3, "µs": 1e-6, "tok/s": 1.0, "k tok/s": 1e3, "M tok/s": 1e6, "G tok/s": 1e9,
    "B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12,
}  # fmt: skip


def read_back(shown: str) -> float:
    number, unit = shown.split(" ", 1)
    return float(number.replace(",", "")) * UNITS[unit]


positive = st.floats(1e-5, 1e11)


@given(positive)
def test_numbers_keep_their_value_to_three_digits(value: float) -> None:
    for show in (text.seconds, text.rate, text.data):
        shown = show(value)
        assert read_back(shown) == pytest.approx(value, rel=5.1e-3)
        assert len(shown) <= 20
    assert float(text.factor(value)[1:].replace(",", "")) == pytest.approx(value, rel=6e-3 if value >= 1 else 0.051)


@given(positive, positive)
def test_factors_and_seconds_never_turn_an_order_round(first: float, second: float) -> None:
    low, high = sorted((first, second))
    assert read_back(text.seconds(low)) <= read_back(text.seconds(high)) * (1 + 1e-12)


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (text.seconds(None), "-"),
        (text.seconds(0), "0 s"),
        (text.seconds(0.00005), "50.0 µs"),
        (text.seconds(0.99951), "1.00 s"),
        (text.seconds(0.0123), "12.3 ms"),
        (text.seconds(3600), "3,600 s"),
        (text.rate(853), "853 tok/s"),
        (text.rate(12_345.6), "12.3 k tok/s"),
        (text.rate(0.0), "0 tok/s"),
        (text.quantity(21_300_000), "21.3M"),
        (text.quantity(7), "7"),
        (text.data(1_500_000_000), "1.50 GB"),
        (text.data(20), "20 B"),
        (text.percent(0.123), "12.3 %"),
        (text.count(1234), "1,234"),
        (text.factor(0.8712), "×0.87"),
        (text.factor(1234.5), "×1,234"),
        (text.factor(0.0123), "×0.012"),
    ],
)
def test_numbers_look_like_this(shown: str, expected: str) -> None:
    assert shown == expected


@given(st.text())
def test_printable_text_has_no_hidden_characters(name: str) -> None:
    shown = text.printable(name)
    assert shown.isprintable() or "\u3000" in shown or " " in shown or "\xa0" in shown
    assert not re.search(r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069]", shown)
    assert len(text.printable(name, 10)) <= 10


def lines_of(result: dict[str, Any], width: int = 200) -> list[str]:
    return terminal.plain(result, width).splitlines()


def row(lines: list[str], label: str) -> str:
    return next(line for line in lines if line.startswith(label))


def test_wins_and_losses_stand_in_the_same_column_and_words() -> None:
    slow, fast = a_run("fcfs"), a_run("aligned", speed=2.0)
    fast["latency_s"]["ttft"] = {part: 3 * value for part, value in slow["latency_s"]["ttft"].items()}
    lines = lines_of(a_result(slow, fast))
    assert "×2.00 better" in row(lines, "throughput")
    assert "×0.50 better" in row(lines, "TPOT p99")
    assert "×3.00 worse" in row(lines, "TTFT p99")
    assert row(lines, "throughput").index("×") == row(lines, "TTFT p99").index("×")
    lines = lines_of(a_result(fast, slow))
    assert "×0.50 worse" in row(lines, "throughput")
    assert "×2.00 worse" in row(lines, "TPOT p99")
    assert "×0.33 better" in row(lines, "TTFT p99")


@given(st.floats(0.01, 100), st.floats(0.01, 100))
def test_verdicts_follow_the_direction_of_the_row(first: float, second: float) -> None:
    base, run = {"x": first}, {"x": second}
    higher, lower = (terminal.Metric("x", ("x",), str, win) for win in ("higher", "lower"))
    one, other = terminal.compared(higher, run, base), terminal.compared(lower, run, base)
    if abs(second / first - 1) < 0.0049:
        assert one.verdict == other.verdict == "same"
    elif abs(second / first - 1) > 0.0051:
        assert one.verdict == ("better" if second > first else "worse")
        assert {one.verdict, other.verdict} == {"better", "worse"}


@pytest.mark.parametrize(
    ("value", "against", "win", "said"),
    [
        (5.0, 0.0, "lower", "worse"),
        (0.0, 5.0, "lower", "better"),
        (0.0, 0.0, "lower", "same"),
        (5.0, 0.0, "higher", "better"),
        (0.0, 5.0, "higher", "worse"),
        (0.0, 0.0, "higher", "same"),
        (None, 0.0, "lower", ""),
        (0.0, None, "lower", ""),
    ],
)
def test_what_is_zero_has_a_word_and_no_factor(value: Any, against: Any, win: Any, said: str) -> None:
    cell = terminal.compared(terminal.Metric("x", ("x",), str, win), {"x": value}, {"x": against})
    assert (cell.text, cell.verdict) == (said, said)


def test_missing_figures_have_no_ratio() -> None:
    first, second = a_run("fcfs"), a_run("aligned")
    for run in (first, second):
        run["latency_s"]["tpot"] = dict.fromkeys(run["latency_s"]["tpot"])
        run["latency_s"]["pool_wait"] = dict.fromkeys(run["latency_s"]["pool_wait"], 0.0)
    lines = lines_of(a_result(first, second))
    assert "×" not in row(lines, "TPOT p99") + row(lines, "pool wait")
    assert row(lines, "TPOT p99").split() == ["TPOT", "p99", "-", "-"]


def test_columns_are_aligned_and_tables_fit_the_width() -> None:
    result = a_result(*(a_run(f"policy-{n}", speed=n) for n in range(1, 7)))
    for width in (40, 80, 120, 300):
        lines = lines_of(result, width)
        tables = [n for n, line in enumerate(lines) if line.startswith("---")]
        assert len(tables) >= (1 if width == 300 else 2)
        for n in tables:
            assert width == 40 or len(lines[n]) <= width
            assert "policy-1" in lines[n - 1]
        shown = "\n".join(lines[n - 1] for n in tables)
        assert all(f"policy-{n}" in shown for n in range(1, 7))


def test_one_policy_alone_has_no_ratios() -> None:
    report = terminal.plain(a_result(a_run("fcfs")))
    assert "×" not in report
    assert "Ratios" not in report


def test_requests_that_did_not_finish_get_a_row() -> None:
    run = a_run("fcfs")
    assert "rejected" not in terminal.plain(a_result(run))
    run["requests"] |= {"finished": 90, "rejected": 10}
    assert row(lines_of(a_result(run)), "requests rejected").split()[-1] == "10"


HOSTILE = "\x1b[31m[bold red]evil[/]\nname\u202e"


def test_hostile_names_stay_text() -> None:
    result = a_result(a_run(HOSTILE), a_run("[/]"), workload=HOSTILE)
    stream = Terminal()
    terminal.print_report(result, stream)
    for report in (terminal.plain(result, 300), re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue())):
        assert "\x1b" not in report
        assert "\u202e" not in report
        assert "\\x1b[31m[bold red]evil" in report
        assert "[/]" in report


@pytest.fixture
def no_rich(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rich", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)


@pytest.mark.usefixtures("no_rich")
def test_plain_table_without_rich(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    stream = Terminal()
    result = a_result(a_run("fcfs"), a_run("aligned"))
    terminal.print_report(result, stream)
    assert stream.getvalue() == terminal.plain(result, 80)


def test_rich_and_plain_show_the_same_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "150")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    result = a_result(a_run("fcfs"), a_run("aligned", speed=2.0), a_run("bad", speed=0.5))
    coloured, piped = Terminal(), io.StringIO()
    terminal.print_report(result, coloured)
    terminal.print_report(result, piped)
    assert "\x1b[32m" in coloured.getvalue()
    assert "\x1b[31m" in coloured.getvalue()
    assert "\x1b" not in piped.getvalue()
    bare = re.sub(r"\x1b\[[0-9;]*m", "", coloured.getvalue()).split()
    assert bare == [word for word in piped.getvalue().split() if set(word) != {"-"} or word == "-"]


def test_a_stream_without_the_signs_gets_look_alikes() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    terminal.print_report(a_result(a_run("fcfs"), a_run("ålign", speed=2.0)), stream)
    stream.flush()
    report = raw.getvalue().decode("ascii")
    assert "x2.00 better" in report
    assert "\\xe5lign" in report


def updates(policy: str = "fcfs") -> list[ProgressUpdate]:
    running = [
        ProgressUpdate(
            policy=policy, phase="running", requests_ended=n, requests_total=100, simulated_s=n * 10.0, wall_s=n / 50
        )
        for n in range(100)
    ]
    done = ProgressUpdate(
        policy=policy, phase="done", requests_ended=100, requests_total=100, simulated_s=1000.0, wall_s=2.0
    )
    return [ProgressUpdate(policy="", phase="reading", requests_ended=5), *running, done]


def test_progress_on_a_terminal_rewrites_one_line() -> None:
    stream = Terminal()
    progress = ProgressLine(stream)
    for update in updates():
        progress(update)
    shown = stream.getvalue()
    assert shown.count("\n") == 1
    drawings = shown.split("\r")
    assert "\rfcfs (1/1)    5 %  50.0 s simulated  100 ms" in shown
    assert 15 <= len(drawings) <= 30  # of 100 updates in 2 wall seconds: ten a second
    assert all(len(line.rstrip("\n")) < 80 for line in drawings)
    assert drawings[-1] == "fcfs (1/1): 100 requests, 1,000 s simulated in 2.00 s\n"


def test_progress_elsewhere_is_one_line_per_run() -> None:
    stream = io.StringIO()
    progress = ProgressLine(stream)
    for update in updates() + updates(HOSTILE):
        progress(update)
    progress.clear()
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2
    assert lines[0] == "fcfs (1/1): 100 requests, 1,000 s simulated in 2.00 s"
    assert "\\n" in lines[1]


def test_clearing_leaves_an_empty_line_to_write_on() -> None:
    stream = Terminal()
    progress = ProgressLine(stream)
    progress(updates()[5])
    progress.clear()
    progress.clear()
    drawn, blank, rest = stream.getvalue().split("\r")[1:]
    assert blank == " " * len(drawn)
    assert rest == ""


def test_a_good_result_is_valid() -> None:
    schema.validate(a_result(a_run("fcfs"), a_run("aligned", speed=1.5)))


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from leaves(inner, (*path, index))
    else:
        yield path


def dotted(path: tuple[Any, ...]) -> str:
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path).removeprefix(".")


def parent_of(result: Any, path: tuple[Any, ...]) -> Any:
    for key in path[:-1]:
        result = result[key]
    return result


def broken(path: tuple[Any, ...], wrong: Any) -> tuple[dict[str, Any], str]:
    """A result with one value made wrong, and how the complaint has to begin."""
    result = copy.deepcopy(a_result(a_run("fcfs"), a_run("aligned")))
    parent = parent_of(result, path)
    above = dotted(path[:-1]) or "result"
    if wrong == "gone":
        del parent[path[-1]]
        return result, f"{above}: lacks the key {path[-1]!r}"
    if wrong == "extra":
        parent["surprise"] = 1
        return result, f"{above}: has an unknown key 'surprise'"
    parent[path[-1]] = wrong
    return result, f"{dotted(path)}: must be "


@pytest.mark.parametrize("wrong", [b"x", "", -1, float("nan"), float("inf"), [], "gone", "extra"], ids=repr)
def test_every_wrong_value_is_named_by_its_path(wrong: Any) -> None:
    for path in leaves(a_result(a_run("fcfs"), a_run("aligned"))):
        result, expected = broken(path, wrong)
        if wrong == "gone" and path[-1] in ("lanes", "rate_scale", "offline", "staging"):
            schema.validate(result)  # these may be absent
            continue
        with pytest.raises(CallerError) as caught:
            schema.validate(result)
        assert str(caught.value).startswith(expected)


@pytest.mark.parametrize(
    ("change", "path"),
    [
        (lambda run: run["requests"].update(finished=1), "runs[0].requests: arrived 100, but 1 ended"),
        (lambda run: run["requests"].update(arrived=1, finished=1), "runs[0].requests.arrived"),
        (lambda run: run.update(throughput_tok_s=1.0), "runs[0].throughput_tok_s"),
        (lambda run: run.update(bound_ratio=0.123), "runs[0].bound_ratio"),
        (lambda run: run.update(bound_ratio=1.001), "runs[0].bound_ratio"),
        (lambda run: run["latency_s"]["itl"].update(p90=0.0), "runs[0].latency_s.itl.p90"),
        (lambda run: run["latency_s"]["itl"].update(mean=1e9), "runs[0].latency_s.itl.mean"),
        (lambda run: run["latency_s"]["itl"].update(mean=None), "runs[0].latency_s.itl: is null in part"),
    ],
)
def test_figures_that_contradict_each_other_are_refused(change: Any, path: str) -> None:
    run = a_run("fcfs")
    change(run)
    with pytest.raises(CallerError, match=re.escape(path)):
        schema.validate(a_result(run))


@pytest.mark.parametrize("wrong", [None, [], {}, 3])
def test_things_that_are_no_result_are_refused(wrong: object) -> None:
    with pytest.raises(CallerError, match="result:"):
        schema.validate(wrong)
