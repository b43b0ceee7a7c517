"""The HTML page: it needs nothing else, escapes every name, and its figures are those of the JSON."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignedsched import policy
from alignedsched.cli import main
from alignedsched.metrics import LatencyCollector
from alignedsched.report import charts, svg, terminal, text
from alignedsched.report.curves import QUANTILES, Curves, Gathering
from alignedsched.report.html import page
from alignedsched.report.lookout import Lookout
from alignedsched.report.series import BINS, Series
from alignedsched.sim.build import build
from alignedsched.sim.compare import compare
from alignedsched.sim.run import run
from alignedsched.sim.settings import CompareSettings
from alignedsched.workloads import workload
from tests.results import a_result, a_run

VOID = {"meta", "br"}
HOSTILE = "</title><script>alert(1)</script>\"'&\x1b[31m\u202e\ud800 <img src=x onerror=a> https://evil.example"


class Parsed(HTMLParser):
    """Elements of a page, checked to be closed in order."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(source)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, tag
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.fixture(scope="module")
def made() -> tuple[dict[str, Any], list[Curves]]:
    settings = CompareSettings(
        workload="mooncake", requests=150, topology="disaggregated", rate_scale=8.0, policies=("fcfs", "density_first")
    )
    gathering = Gathering()
    result = compare(settings, None, Lookout([gathering]))
    unseen = compare(settings)
    for one, two in zip(result["runs"], unseen["runs"], strict=True):
        assert {**one, "wall_s": 0} == {**two, "wall_s": 0}, "looking on changes nothing"
    return result, gathering.runs


def test_the_page_is_whole_and_alone(made: tuple[dict[str, Any], list[Curves]]) -> None:
    source = page(*made)
    parsed = Parsed(source)
    tags = {tag for tag, _ in parsed.elements}
    assert not tags & {"script", "link", "img", "iframe", "object", "use", "image", "a", "form"}
    assert not re.search(r"https?:|url\(|@import|//", source)
    attributes = {name for _, attributes in parsed.elements for name in attributes}
    assert not any(name.startswith("on") or name in ("src", "href") for name in attributes)
    only = next(a["content"] for tag, a in parsed.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert only == "default-src 'none'; style-src 'unsafe-inline'"
    assert "prefers-color-scheme: dark" in source
    assert not re.search(r"\bnan\b|\binf\b", re.sub(r"<details>.*", "", source, flags=re.DOTALL))
    drawn = [attributes["aria-label"] for tag, attributes in parsed.elements if tag == "svg"]
    assert len(drawn) == len(charts.LATENCIES) + 6 + 2 * 2
    assert len(source) < 300_000


def test_figures_are_those_of_the_terminal_and_losses_stand_out_as_wins_do() -> None:
    slow, fast = a_run("fcfs"), a_run("aligned", speed=2.0)
    fast["latency_s"]["ttft"] = {part: 3 * value for part, value in slow["latency_s"]["ttft"].items()}
    source = page(a_result(slow, fast))
    rows = re.findall(r"<tr><th>([^<]+)</th>(.*?)</tr>", source)
    shown = {label: re.findall(r"<td[^>]*>([^<]*)</td>", cells) for label, cells in rows}
    for row in terminal.table([slow, fast])[1:]:
        assert [cell.lstrip("▲▼ ") for cell in shown[row[0].text]] == [cell.text for cell in row[1:]]
    classes = dict(re.findall(r"<td class='ratio (\w+)'>. (\S+) ", source))
    assert set(classes) >= {"better", "worse"}
    for verdict in ("better", "worse"):
        assert f"td.{verdict} {{ background: var(--{verdict}); color: var(--{verdict}-ink); }}" in source


def test_percentiles_are_those_of_the_json(made: tuple[dict[str, Any], list[Curves]]) -> None:
    result, curves = made
    source = page(*made)
    dots = re.findall(r"<title>([^<:]+): ([^<]+) (p\d+) ([^<]+)</title>", source)
    words = {words: kind for kind, words in charts.LATENCIES.items()}
    runs = {run["policy"]: run for run in result["runs"]}
    assert len(dots) == 2 * 3 * len(charts.LATENCIES)
    for name, figure, part, shown in dots:
        assert shown == text.seconds(runs[name]["latency_s"][words[figure]][part])
    for figures, curve in zip(result["runs"], curves, strict=True):
        for kind in charts.LATENCIES:
            values = curve.quantiles[kind]
            assert values is not None
            assert values == sorted(values)
            for quantile, part in ((0.5, "p50"), (0.9, "p90"), (0.99, "p99")):
                at = next(n for n, q in enumerate(QUANTILES) if q >= quantile)
                assert values[at - 1] <= figures["latency_s"][kind][part] <= values[at]


def test_quantiles_are_the_summarys() -> None:
    assert set(LatencyCollector().quantiles((0.5, 0.9)).values()) == {None}
    built = build("h100", "llama-3.1-8b", topology="colocated", lanes=1, surface="gated", staging=True)
    latency = run(workload("mooncake", seed=2, n=40).offline(), built.cluster, built.costs, policy("fcfs")).latency
    told = latency.quantiles((0.5, 0.9, 0.99, 1.0))
    for name, summary in latency.summary().items():
        assert told[name] == [summary[part] for part in ("p50", "p90", "p99", "max")]


@pytest.mark.parametrize("with_curves", [False, True])
def test_hostile_names_stay_text(with_curves: bool) -> None:
    names = (HOSTILE, "--></style>", "&lt;b&gt;")
    curves = []
    for name in names if with_curves else ():
        gathering = Curves(name)
        gathering.lanes.add(0.0, 1.0, [1.0] * len(gathering.lanes.columns))
        gathering.state.add(0.0, 1.0, [1.0] * len(gathering.state.columns))
        curves.append(gathering)
    source = page(a_result(*map(a_run, names), workload=HOSTILE), curves)
    source.encode("utf-8")
    parsed = Parsed(source)
    assert not {tag for tag, _ in parsed.elements} & {"script", "img", "b&gt"}
    assert "\x1b" not in source
    assert "\u202e" not in source
    assert any("<script>alert(1)</script>" in words for words in parsed.words), "it is shown, as text"
    assert any("&lt;b&gt;" in words for words in parsed.words)


def test_every_shape_of_result_has_a_page() -> None:
    """One policy, many policies, figures that do not exist, nothing that ran."""
    alone = a_run("alone")
    alone["latency_s"] = {kind: dict.fromkeys(latency) for kind, latency in alone["latency_s"].items()}
    alone["bound_ratio"] = None
    many = [a_run(f"policy {n}", speed=1 + n) for n in range(20)]
    for runs in ([alone], many):
        empty = [Curves(run["policy"]) for run in runs]
        for curves in ([], empty):
            source = page(a_result(*runs), curves)
            Parsed(source)
            assert "nan" not in source
            assert ("p3 dashed" in source) == (runs is many)


def test_the_page_is_written_only_when_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where, result = tmp_path / "page.html", tmp_path / "result.json"
    asked = ["compare", "--workload", "mooncake", "--requests", "30", "--offline", "--policy", "fcfs"]
    assert main([*asked, "--html", str(where), "--json", str(result)]) == 0
    assert f"page written to {where}" in capsys.readouterr().err
    source = where.read_text(encoding="utf-8")
    Parsed(source)
    shown = json.loads("".join(Parsed(re.findall(r"<pre>.*?</pre>", source, re.DOTALL)[0]).words))
    assert shown == json.loads(result.read_text())
    code = (
        "import sys; from alignedsched.cli import main; "
        f"assert main({asked!r}) == 0; "
        "print([name for name in sys.modules if name.startswith('alignedsched.report.')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    loaded = done.stdout.splitlines()[-1]
    assert "terminal" in loaded
    for name in ("html", "charts", "svg", "lookout", "curves", "stretches", "timeline", "trace_events"):
        assert f"alignedsched.report.{name}" not in loaded


def test_a_page_that_cannot_be_written_leaves_what_was_there(tmp_path: Path) -> None:
    where = tmp_path / "page.html"
    where.write_text("before")
    assert main(["compare", "--workload", "nonesuch", "--html", str(where)]) == 2
    assert where.read_text() == "before"
    assert list(tmp_path.iterdir()) == [where]


# -- what is drawn

# Begin and length on a grid of 1/7 s, which is none of the bins'; amounts.
PIECES = st.lists(
    st.tuples(
        st.integers(0, 40_000).map(lambda n: n / 7), st.integers(0, 2_000).map(lambda n: n / 7), st.integers(0, 100)
    ),
    min_size=1,
    max_size=12,
)


@given(PIECES)
def test_a_series_loses_nothing_and_puts_it_where_it_was(pieces: list[tuple[float, float, int]]) -> None:
    pieces.sort()
    series, origin = Series(("a", "b")), pieces[0][0]
    for begin, seconds, amount in pieces:
        series.add(begin, begin + seconds, (amount, 1.0))
    ends, sums = series.ends(), series.sums("a")
    assert len(ends) == len(sums) <= BINS
    assert np.all(np.diff(ends) >= 0)
    assert float(sums.sum()) == pytest.approx(sum(amount for _, _, amount in pieces))
    assert float(series.sums("b").sum()) == pytest.approx(len(pieces))
    assert ends[-1] == pytest.approx(max(begin + seconds for begin, seconds, _ in pieces))
    for number, end in list(enumerate(ends.tolist()))[:-1:9]:  # what had happened until then
        until = sum(
            amount * (min(1.0, max(0.0, (end - begin) / seconds)) if seconds else float(end > begin))
            for begin, seconds, amount in pieces
        )
        if all(abs(end - begin) > 1e-6 for begin, seconds, _ in pieces if not seconds):
            assert float(sums[: number + 1].sum()) == pytest.approx(until, rel=1e-6, abs=1e-6)
    assert series.width * BINS > ends[-1] - origin


def test_what_began_before_a_series_counts_where_it_begins() -> None:
    series = Series(("a",), narrowest=1.0)
    for begin, end in ((5.0, 6.5), (3.0, 6.0), (1.0, 2.0)):
        series.add(begin, end, (6.0,))
    assert series.sums("a").tolist() == [4.0 + 6.0 + 6.0, 2.0]
    assert series.ends().tolist() == [6.0, 6.5]


@given(st.floats(1e-6, 1e9), st.floats(1.0, 1e6))
def test_axes_keep_order_and_mark_round_numbers(low: float, ratio: float) -> None:
    for axis in (svg.linear(low, str), svg.time(low, str), svg.log(low, low * ratio, str)):
        places = [axis.at(value) for value, _ in axis.ticks]
        assert places == sorted(places)
        assert 2 <= len(places) <= 9
        assert places[-1] <= 1.0
        for value, _ in axis.ticks:
            assert float(f"{value:.3g}") == pytest.approx(value)
    axis = svg.log(low, low * ratio, str)
    assert 0.0 <= axis.at(low) <= axis.at(low * ratio) <= 1.0
    assert axis.at(0.0) == 0.0
    assert svg.linear(low, str).at(low) == pytest.approx(min(1.0, low / svg.linear(low, str).ticks[-1][0]))


def test_quantiles_are_placed_by_their_odds() -> None:
    axis = svg.odds(0.001, (0.5,), str)
    assert [axis.at(q) for q in (0.0, 0.001, 0.5, 0.999, 1.0)] == pytest.approx([0.0, 0.0, 0.5, 1.0, 1.0])
    assert axis.at(0.9) - 0.5 == pytest.approx(0.5 - axis.at(0.1))
    assert len(QUANTILES) == 140


def test_lines_have_gaps_where_nothing_is_known() -> None:
    chart = svg.Chart(svg.linear(10, str), svg.linear(10, str))
    nan = math.nan
    chart.line(zip(range(6), [nan, 1.0, 2.0, nan, 3.0, nan], strict=True), "line p0")
    chart.band(range(5), [0.0, 0.0, nan, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0, 1.0], "band p0")
    drawn = chart.svg("words <&>")
    assert drawn.count('class="line p0"') == 2
    assert drawn.count('class="band p0"') == 2
    assert "nan" not in drawn
    assert 'aria-label="words &lt;&amp;&gt;"' in drawn
    Parsed(drawn)
