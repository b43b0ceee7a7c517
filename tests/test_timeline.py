"""The timeline: what Perfetto needs of a trace holds for every run, and cuts are said."""

from __future__ import annotations

import gzip
import io
import json
from collections import defaultdict
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignedsched import HOST, Cluster, Device, Lane, Request, Role, Scheduler, policy
from alignedsched.cli import main
from alignedsched.cluster import KVLayout, Link
from alignedsched.costs import AffineCosts
from alignedsched.events import Arrived, CopyDone, CopyFailed, Event, StepsDone
from alignedsched.plan import Copy, Join, Plan, Step
from alignedsched.report.lookout import Lookout
from alignedsched.report.timeline import Timeline
from alignedsched.report.trace_events import TraceWriter
from alignedsched.sim.compare import compare
from alignedsched.sim.run import run
from alignedsched.sim.settings import CompareSettings
from alignedsched.story import RecordedScheduler, restore, snapshot
from alignedsched.testing.world import World
from alignedsched.workloads import Row, Workload

Trace = dict[str, Any]
NEEDED = {
    "X": {"name", "cat", "ts", "dur", "pid", "tid", "args"},
    "i": {"name", "cat", "ts", "s", "pid", "tid", "args"},
    "C": {"name", "ts", "pid", "args"},
    "M": {"name", "pid", "tid", "args"},
}


def check(trace: Trace) -> None:
    """The schema: known phases with their fields, named processes and tracks, slices in order that do not overlap."""
    assert set(trace) == {"displayTimeUnit", "traceEvents", "otherData"}
    processes: dict[int, str] = {}
    tracks: dict[tuple[int, int], str] = {}
    ends: dict[int, float] = defaultdict(float)
    counted: dict[tuple[int, str], float] = defaultdict(float)
    for event in trace["traceEvents"]:
        phase = event["ph"]
        assert set(event) - {"ph"} == NEEDED[phase], event
        assert isinstance(event["pid"], int)
        assert event["pid"] > 0  # 0 is the idle process
        if phase == "M":
            if event["name"] == "process_name":
                processes[event["pid"]] = event["args"]["name"]
            if event["name"] == "thread_name":
                assert event["tid"] not in {tid for _, tid in tracks}, "a track's number belongs to one process"
                tracks[event["pid"], event["tid"]] = event["args"]["name"]
            continue
        assert event["pid"] in processes
        assert event["ts"] >= 0
        if phase == "C":
            assert event["ts"] >= counted[event["pid"], event["name"]]
            counted[event["pid"], event["name"]] = event["ts"]
            assert all(isinstance(level, int | float) for level in event["args"].values())
            continue
        assert (event["pid"], event["tid"]) in tracks
        if phase == "X":
            assert event["dur"] > 0
            assert event["ts"] >= ends[event["tid"]] - 1e-3, "slices of a track overlap, or are out of order"
            ends[event["tid"]] = event["ts"] + event["dur"]
    for pid in processes:
        names = [name for (of, _), name in tracks.items() if of == pid]
        assert len(set(names)) == len(names)


def timeline_of(settings_: CompareSettings, **options: Any) -> tuple[Trace, dict[str, Any], TraceWriter]:
    stream = io.StringIO()
    writer = TraceWriter(stream, **options)
    result = compare(settings_, None, Lookout([Timeline(writer)]))
    writer.close({})
    return json.loads(stream.getvalue()), result, writer


SETTINGS = CompareSettings(
    workload="mooncake", requests=150, topology="disaggregated", rate_scale=8.0, policies=("fcfs", "density_first")
)


@pytest.fixture(scope="module")
def whole() -> tuple[Trace, dict[str, Any], TraceWriter]:
    return timeline_of(SETTINGS)


def slices(trace: Trace, kind: str, pid: int) -> list[dict[str, Any]]:
    return [event for event in trace["traceEvents"] if event.get("cat") == kind and event["pid"] == pid]


def test_a_trace_is_whole_and_has_what_happened(whole: tuple[Trace, dict[str, Any], TraceWriter]) -> None:
    trace, result, writer = whole
    check(trace)
    assert not writer.cuts
    names = [e["args"]["name"] for e in trace["traceEvents"] if e["name"] == "process_name"]
    assert names == ["fcfs", "density_first"]
    tracks = {e["args"]["name"] for e in trace["traceEvents"] if e["name"] == "thread_name" and e["pid"] == 2}
    assert {"lane-p0 (prefill)", "lane-d0 (decode)", "lane-d0: decisions", "copies p0 → d0"} <= tracks
    for pid, figures in enumerate(result["runs"], 1):
        steps = [e["args"]["steps"] for kind in ("decode", "prefill") for e in slices(trace, kind, pid)]
        assert sum(steps) == figures["steps"]
        rows = [e["args"]["members"] * e["args"]["steps"] for e in slices(trace, "decode", pid)]
        assert sum(rows) + figures["requests"]["finished"] == figures["output_tokens"], "one token is a prefill's"
        copied = sum(e["args"]["bytes"] for kind in ("copy", "staging") for e in slices(trace, kind, pid))
        copies = figures["copies"]
        assert copied == sum(copies[f"{way}_bytes"] for way in ("host_to_device", "device_to_host", "peer"))
        assert sum(e["args"]["bytes"] for e in slices(trace, "staging", pid)) == copies["staged_bytes"]
        last = max(e["ts"] + e["dur"] for e in trace["traceEvents"] if e["ph"] == "X" and e["pid"] == pid)
        assert last / 1e6 == pytest.approx(figures["simulated_s"])
        counters = {e["name"] for e in trace["traceEvents"] if e["ph"] == "C" and e["pid"] == pid}
        assert counters == {
            "pool", "queue", "bubble share, %", "lane-d0 batch size", "d0 free blocks", "p0 free blocks"
        }  # fmt: skip
        whys = {e["name"] for e in slices(trace, "decision", pid)}
        assert whys & ({"everything that fits decodes"}, {"the next batch's turn", "all that is ready fits"})[pid - 1]


def test_slices_say_who_decoded_why_and_over_which_link() -> None:
    """One request, one copy: every figure is known."""
    cluster = Cluster(
        (Device("p", Role.PREFILL, 1000), Device("d", Role.DECODE, 1000)),
        (Lane("lane-p", ("p",)), Lane("lane-d", ("d",))),
        links=(Link("p", "d", 1e6, 0.25),),
        layout=KVLayout(16, 1000),
    )
    stream = io.StringIO()
    writer = TraceWriter(stream)
    lookout = Lookout([Timeline(writer)])
    run(
        Workload.from_rows("one", [Row(0.0, 500, 5, "a")]), cluster, AffineCosts(0.1, 0.0, 0.0), policy("fcfs"),
        begin=lambda scheduler: lookout.begin("fcfs", scheduler), observe=lookout.after,
    )  # fmt: skip
    lookout.end()
    writer.close({})
    trace = json.loads(stream.getvalue())
    check(trace)
    told = [
        (e["cat"], e["name"], round(e["ts"] / 1e6, 6), round(e["dur"] / 1e6, 6))
        for e in trace["traceEvents"] if e["ph"] == "X"
    ]  # fmt: skip
    assert ("prefill", "prefill a (500 a step)", 0.0, 0.1) in told
    assert ("copy", "a: 500 kB", 0.1, 0.75) in told
    assert ("decode", "n 1, sum L 501, max 501, spread 0", 0.85, 0.4) in told
    assert ("idle", "copy stall", 0.1, 0.75) in told
    assert ("idle", "no work", 0.0, 0.1) in told
    assert ("decision", "everything that fits decodes", 0.85, 0.4) in told


def test_slices_that_overlap_are_cut_and_counters_are_written_when_they_change() -> None:
    stream = io.StringIO()
    writer = TraceWriter(stream)
    writer.begin("one")
    writer.slice("track", 1.0, 3.0, "first", "kind", {})
    writer.slice("track", 2.0, 4.0, "second", "kind", {})
    writer.slice("track", 2.0, 3.5, "nothing is left of it", "kind", {})
    for at, level in ((0.0, 1), (1.0, 1), (2.0, 2)):
        writer.counter("level", at, {"of": level})
    writer.end(4.0)
    writer.close({})
    trace = json.loads(stream.getvalue())
    check(trace)
    told = [(e["name"], e["ts"], e["dur"]) for e in trace["traceEvents"] if e["ph"] == "X"]
    assert told == [("first", 1e6, 2e6), ("second", 3e6, 1e6)]
    assert [(e["ts"], e["args"]) for e in trace["traceEvents"] if e["ph"] == "C"] == [
        (0.0, {"of": 1}),
        (2e6, {"of": 2}),
    ]


def by_hand(*calls: tuple[float, tuple[Event, ...], Plan]) -> list[dict[str, Any]]:
    """The slices of calls that no scheduler made, on two devices whose links to the host share a switch."""
    links = tuple(Link(HOST, d, 1e6, 0.0, ("switch",)) for d in "de")
    cluster = Cluster(
        (Device("p", Role.PREFILL, 100), Device("d", Role.BOTH, 1000), Device("e", Role.BOTH, 1000)),
        (Lane("lane-p", ("p",)), Lane("lane-d", ("d",)), Lane("lane-e", ("e",))),
        1000,
        (*links, *(Link("p", d, 1e6) for d in "de")),
        KVLayout(16, 1000),
    )
    stream = io.StringIO()
    writer = TraceWriter(stream)
    lookout = Lookout([Timeline(writer)])
    lookout.begin("by hand", Scheduler(cluster, policy("fcfs")))
    for call in calls:
        lookout.after(*call)
    lookout.end()
    writer.close({})
    trace = json.loads(stream.getvalue())
    check(trace)
    return [event for event in trace["traceEvents"] if event["ph"] in "Xi"]


def test_copies_that_share_a_switch_take_turns() -> None:
    copies = (Copy(0, "a", HOST, "d", 0, 100), Copy(1, "b", HOST, "e", 0, 200), Copy(2, "c", HOST, "d", 0, 10))
    told = by_hand(
        (0.0, (), Plan(copies=copies)),
        (0.1, (CopyDone(0),), Plan()),
        (0.3, (CopyDone(1),), Plan()),
        (0.31, (CopyFailed(2, "out of \x1b luck"),), Plan()),
    )
    found = {e["name"]: e for e in told if e["cat"] == "copy"}
    assert set(found) == {"a: 100 kB", "b: 200 kB", "copy of c failed: out of \\x1b luck"}
    assert (found["b: 200 kB"]["ts"], found["b: 200 kB"]["dur"]) == (0.1e6, pytest.approx(0.2e6))
    assert found["b: 200 kB"]["args"]["waited for the link, ms"] == pytest.approx(100)


def test_a_turn_begins_when_somebody_is_taken_out() -> None:
    def step(number: int, joins: str, leaves: str = "") -> Plan:
        return Plan(steps=(Step("lane-d", number, 9, tuple(Join(r, 10) for r in joins), tuple(leaves), (), "turn"),))

    told = by_hand((0.0, (), step(0, "a")), (1.0, (), step(1, "bc")), (2.0, (), step(2, "d", "ab")), (5.0, (), Plan()))
    turns = [(e["ts"], e["dur"], e["args"]) for e in told if e["cat"] == "decision"]
    assert turns == [
        (0.0, 2e6, {"orders": 2, "joined": 3, "left": 0}),
        (2e6, 3e6, {"orders": 1, "joined": 1, "left": 2}),
    ]


def test_a_log_gives_the_same_timeline_as_its_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made, again = tmp_path / "made.json", tmp_path / "again.json.gz"
    options = [
        "--workload",
        "mooncake",
        "--requests",
        "60",
        "--offline",
        "--policy",
        "fcfs",
        "--policy",
        "density_first",
    ]
    asked = ["--record", str(tmp_path / "logs"), "--timeline", str(made)]
    assert main(["compare", *options, *asked]) == 0
    assert f"timeline written to {made}" in capsys.readouterr().err
    assert main(["replay", str(tmp_path / "logs"), "--timeline", str(again)]) == 0
    first = json.loads(made.read_text())
    second = json.loads(gzip.decompress(again.read_bytes()))
    check(first)
    assert first["traceEvents"] == second["traceEvents"]
    packed = again.read_bytes()
    assert main(["replay", str(tmp_path / "logs"), "--timeline", str(again)]) == 0
    assert again.read_bytes() == packed, "the same text is the same file"


def test_each_process_that_wrote_a_log_is_one_of_the_trace(tmp_path: Path) -> None:
    log, out = tmp_path / "a.alog", tmp_path / "t.json"
    cluster = Cluster((Device("d", Role.BOTH, 100),), (Lane("lane", ("d",)),))
    with RecordedScheduler(log, cluster, policy("fcfs")) as scheduler:
        (step,) = scheduler.handle(0.0, Arrived(Request("a", 9, 20))).steps
        scheduler.handle(1.0, StepsDone("lane", step.order, 0, 0, (), ("a",), 1.0))
        state = snapshot(scheduler)
    again = restore(state, cluster, policy("fcfs"), make=partial(RecordedScheduler, log, append=True))
    assert isinstance(again, RecordedScheduler)
    with again:
        again.handle(3.0, StepsDone("lane", step.order + 1, 1, 2, (), (), 2.0))
    assert main(["replay", str(log), "--timeline", str(out)]) == 0
    trace = json.loads(out.read_text())
    check(trace)
    names = [e["args"]["name"] for e in trace["traceEvents"] if e["name"] == "process_name"]
    assert names == ["fcfs", "fcfs (2)"]
    told = [
        (e["pid"], e["name"], e["ts"], e["dur"]) for e in trace["traceEvents"] if e.get("cat") in ("decode", "prefill")
    ]
    assert told == [(1, "prefill a (9 a step)", 0.0, 1e6), (2, "n 1, sum L 10, max 10, spread 0", 1e6, 2e6)]


def test_a_timeline_may_end_early(whole: tuple[Trace, dict[str, Any], TraceWriter]) -> None:
    trace, _, writer = timeline_of(SETTINGS, until=2.0)
    check(trace)
    assert writer.cuts == [("fcfs", 2.0), ("density_first", 2.0)]
    assert max(e["ts"] + e.get("dur", 0) for e in trace["traceEvents"] if e["ph"] != "M") <= 2e6
    early = [e for e in whole[0]["traceEvents"] if e["ph"] == "X" and e["ts"] + e["dur"] <= 2e6]
    kept = [e for e in trace["traceEvents"] if e["ph"] == "X"]
    assert len(early) > 20
    assert all(event in kept for event in early)
    said = [e["name"] for e in trace["traceEvents"] if e.get("cat") == "cut"]
    assert len(said) == 2
    assert said[0].startswith("cut at 2 s of ")


def test_a_long_timeline_is_cut_and_says_so(
    whole: tuple[Trace, dict[str, Any], TraceWriter],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    trace, _, writer = timeline_of(SETTINGS, limit=500)
    check(trace)
    (name, at), _ = writer.cuts
    assert name == "fcfs"
    events = [e for e in trace["traceEvents"] if e["pid"] == 1 and e["ph"] != "M"]
    assert len(events) == 501  # and the word that it was cut
    early = [e for e in whole[0]["traceEvents"] if e["ph"] == "X" and e["pid"] == 1 and e["ts"] + e["dur"] < at * 1e6]
    assert all(e in events for e in early), "all that ended before the cut is there"
    monkeypatch.setattr(TraceWriter.__init__, "__kwdefaults__", {"until": None, "limit": 100})
    asked = ["--workload", "mooncake", "--requests", "20", "--offline", "--policy", "fcfs"]
    assert main(["compare", *asked, "--timeline", str(tmp_path / "t.json")]) == 0
    assert "the timeline of fcfs ends at" in capsys.readouterr().err


@settings(max_examples=40)
@given(st.integers(0, 1 << 20), st.booleans())
def test_whatever_happens_the_trace_is_one(seed: int, trouble: bool) -> None:
    world, rng, stream = World(seed, trouble), Random(seed), io.StringIO()
    writer = TraceWriter(stream)
    lookout = Lookout([Timeline(writer)])
    call = world.call

    def watched(*events: Any) -> Any:
        plan = call(*events)
        lookout.after(world.scheduler.now, events, plan)
        return plan

    world.call = watched  # type: ignore[method-assign]
    lookout.begin("any \x1b\u202e\ud800 name", world.scheduler)
    for _ in range(60):
        world.act(rng)
    lookout.end()
    writer.close({"about": "a world"})
    stream.getvalue().encode("utf-8")
    check(json.loads(stream.getvalue()))


def test_wrong_use_is_said_before_the_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "a.alog"
    log.write_text("")
    for argv, said in (
        (["compare", "--workload", "mooncake", "--timeline-until", "3"], "it goes with --timeline FILE"),
        (["compare", "--workload", "mooncake", "--timeline", "t", "--timeline-until", "0"], "finite number above 0"),
        (["compare", "--workload", "mooncake", "--timeline", str(tmp_path)], "is a folder"),
        (["replay", str(log), "--timeline-until", "3"], "it goes with --timeline FILE"),
        (["replay", str(log), "--timeline", str(log)], "name the same file"),
        (["replay", str(log), "--timeline", str(tmp_path)], "is a folder"),
    ):
        assert main(argv) == 2
        assert said in capsys.readouterr().err
    assert log.read_text() == ""
    assert main(["replay", str(log), "--timeline", str(tmp_path / "t.json")]) == 2
    assert list(tmp_path.iterdir()) == [log], "a file was left of a replay that failed"
