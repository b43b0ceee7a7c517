"""The event log: cut anywhere it is read up to there, changed anywhere it is refused, and it replays to the byte."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import zlib
from functools import partial
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest
from attrs import evolve

from alignedsched import Cluster, Device, KVLayout, Lane, LogError, Request, Role, Scheduler, policy
from alignedsched.cli import main
from alignedsched.errors import CallerError, HookError
from alignedsched.events import Arrived, Cancelled
from alignedsched.policies.protocols import Policy
from alignedsched.story import (
    Call,
    LogReader,
    RecordedScheduler,
    Replayed,
    frames,
    replay,
    rerun,
    restore,
    resume,
    snapshot,
)
from alignedsched.story.codec import encode, parse
from alignedsched.story.log import CUT, NoEvent
from tests.lives import POLICIES, Life, chaos

CLUSTER = Cluster((Device("g0", Role.BOTH, 400),), (Lane("l0", ("g0",), 0, 4, 64),), layout=KVLayout(4, 1000))


def written(path: Path, calls: int = 30, per_frame: int = 4, **options: Any) -> list[bytes]:
    """A log of a few requests, in small frames; returns the plans."""
    plans = []
    with RecordedScheduler(path, CLUSTER, policy("fcfs"), calls=per_frame, **options) as scheduler:
        for number in range(calls):
            plans.append(encode(scheduler.handle(float(number), Arrived(Request(f"r{number}", 9, 20)))))
    return plans


def calls_of(path: Path) -> tuple[list[Call], bool]:
    with LogReader(path) as log:
        calls = [item for item in log if isinstance(item, Call)]
        return calls, log.torn


# -- reading


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.alog"
    plans = written(path)
    calls, torn = calls_of(path)
    assert [encode(call.plan) for call in calls] == plans
    assert [(call.number, call.now, call.events) for call in calls] == [
        (number, float(number), (Arrived(Request(f"r{number}", 9, 20)),)) for number in range(30)
    ]
    assert not torn


def test_a_log_that_is_cut_anywhere_is_read_up_to_the_cut(tmp_path: Path) -> None:
    path = tmp_path / "a.alog"
    written(path, calls=12)
    data = path.read_bytes()
    whole, _ = calls_of(path)
    cut = tmp_path / "cut.alog"
    seen: set[tuple[int, bool]] = set()
    with path.open("rb") as file:
        sound = frames.Frames(file, "a")
        ends = [sound.end for _ in sound]  # where a frame begins, and the one before ended
    for at in sorted({*range(40), *range(40, len(data), 3), *ends}):
        cut.write_bytes(data[:at])
        try:
            calls, torn = calls_of(cut)
        except LogError:
            assert not seen  # not even its beginning is there
            continue
        assert calls == whole[: len(calls)]
        assert len(calls) % 4 == 0
        assert torn or cut.stat().st_size == at
        seen.add((len(calls), torn))
    assert {(0, True), (4, False), (4, True), (8, True)} <= seen


def test_a_log_that_was_changed_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.alog"
    written(path, calls=8)
    data = path.read_bytes()
    changed = tmp_path / "changed.alog"
    for at in (*range(40), *range(40, len(data), 3)):
        copy = bytearray(data)
        copy[at] ^= 0x40
        changed.write_bytes(copy)
        with pytest.raises(LogError, match=r"changed\.alog"):
            calls_of(changed)


def test_frames_left_out_doubled_or_exchanged_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.alog"
    written(path, calls=12)
    data = path.read_bytes()
    starts = [len(frames.MAGIC)]
    while starts[-1] < len(data):
        starts.append(starts[-1] + 12 + struct.unpack(">I", data[starts[-1] : starts[-1] + 4])[0])
    pieces = [data[a:b] for a, b in pairwise(starts)]
    for other in (
        [*pieces[:-2], pieces[-1]],
        [*pieces, pieces[-1]],
        [*pieces[:-2], pieces[-1], pieces[-2]],
    ):
        path.write_bytes(frames.MAGIC + b"".join(other))
        with pytest.raises(LogError, match=r"the head of a frame was changed; the \d+ bytes before it are sound"):
            calls_of(path)


def test_what_is_said_of_a_bad_record_names_file_record_byte_and_field(tmp_path: Path) -> None:
    path = tmp_path / "a.alog"
    written(path, calls=4)
    data = path.read_bytes()
    with LogReader(path) as log:
        list(log)
        check = log._frames.check
    frame, _ = frames.pack(encode([["call", 1.0, [["Cancelled", 7]], None, "", ""]]), check)
    path.write_bytes(data + frame)
    with pytest.raises(
        LogError, match=rf"a.alog, record \d+, byte {len(data)}: \[0\].request: must be a string, got 7"
    ):
        calls_of(path)
    for part in ("text", 5, [], ["call"], ["call", 1, 2, 3], ["nothing"], [["call"]]):
        frame, _ = frames.pack(encode([part]), check)
        path.write_bytes(data + frame)
        with pytest.raises(LogError, match=f"byte {len(data)}"):
            calls_of(path)


def test_a_bomb_costs_no_more_than_a_frame(tmp_path: Path) -> None:
    path = tmp_path / "bomb.alog"
    inside = zlib.compress(b"\0" * (1 << 27))
    check = zlib.crc32(inside, frames.FIRST)
    own = zlib.crc32(struct.pack(">II", len(inside), check), frames.FIRST)
    path.write_bytes(frames.MAGIC + struct.pack(">III", len(inside), check, own) + inside)
    with pytest.raises(LogError, match=f"longer than {frames.MOST_BYTES} bytes when inflated"):
        calls_of(path)
    long = struct.pack(">II", 0xFFFFFFFF, 1)
    own = zlib.crc32(long, frames.FIRST)
    path.write_bytes(frames.MAGIC + long + struct.pack(">I", own) + b"x" * 100)
    with pytest.raises(LogError, match="longer than any may be"):
        calls_of(path)


# -- writing


def test_a_log_is_not_overwritten_but_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "a.alog"
    written(path, calls=6)
    with pytest.raises(LogError, match="is there already"):
        written(path)
    torn = path.read_bytes()[:-3]
    path.write_bytes(torn)
    written(path, calls=5, append=True)
    calls, torn_now = calls_of(path)
    assert (len(calls), torn_now) == (4 + 5, False)
    assert replay(path).starts == 2
    assert replay(path).difference is None
    path.write_bytes(path.read_bytes()[:-2] + b"??")
    with pytest.raises(LogError, match="a frame was changed"):
        written(path, append=True)


def test_a_call_with_very_many_events_is_cut_and_put_together(tmp_path: Path) -> None:
    path = tmp_path / "a.alog"
    with RecordedScheduler(path, CLUSTER, policy("fcfs")) as scheduler:
        many = [Cancelled(f"r{i}") for i in range(2 * CUT + 5)]
        scheduler.handle(0.0, *many)
    calls, _ = calls_of(path)
    assert [len(call.events) for call in calls] == [2 * CUT + 5]
    assert calls[0].events == tuple(many)


def killed_in_a_long_call(path: Path) -> None:
    """A log of one short call, cut behind the first pieces of a long one."""
    scheduler = RecordedScheduler(path, CLUSTER, policy("fcfs"))
    scheduler.handle(0.0, Arrived(Request("first", 9, 20)))
    scheduler.handle(1.0, *(Arrived(Request(f"r{i}", 9, 20)) for i in range(2 * CUT + 5)))
    scheduler.log._parts.clear()  # what was not written yet
    scheduler.close()


def test_a_call_in_which_the_process_was_killed_never_was(tmp_path: Path) -> None:
    path = tmp_path / "a.alog"
    killed_in_a_long_call(path)
    cut = replay(path)
    assert (cut.calls, cut.torn, cut.difference) == (1, True, None)
    with resume(path) as again:
        again.handle(2.0, Arrived(Request("later", 9, 20)))
    calls, torn = calls_of(path)
    assert [[event.request.id for event in call.events] for call in calls] == [["first"], ["later"]]  # type: ignore[union-attr]
    assert not torn
    whole = replay(path)
    assert (whole.calls, whole.events, whole.torn, whole.difference) == (2, 2, False, None)
    with path.open("rb") as file:
        assert not any(content.startswith(b'[["events"') for content in frames.Frames(file, "a"))
    with resume(path) as once_more:
        books = once_more._books
        assert {*books.live, *(request for _, request in books.queue.rows())} == {"first", "later"}


def test_pieces_of_a_call_that_stayed_before_a_snapshot_are_passed_over(tmp_path: Path) -> None:
    path, later = tmp_path / "a.alog", tmp_path / "later.alog"
    killed_in_a_long_call(path)
    with LogReader(path) as log:
        list(log)
        check = log._frames.check
    written(later, calls=3)
    data = path.read_bytes()
    with later.open("rb") as file:
        for content in frames.Frames(file, "later"):
            frame, check = frames.pack(content, check)
            data += frame
    path.write_bytes(data)
    calls, torn = calls_of(path)
    assert ([len(call.events) for call in calls], torn) == ([1, 1, 1, 1], False)
    assert replay(path).difference is None


def test_a_process_killed_as_it_began_leaves_what_was_there_before(tmp_path: Path) -> None:
    """Its snapshot is cut off: the log ends with the process before, and the next one begins there."""
    path = tmp_path / "a.alog"
    plans = written(path, calls=6)
    before = path.stat().st_size
    with LogReader(path) as log:
        kept = [item for item in log if isinstance(item, Call)]
    with resume(path) as again:
        state = snapshot(again)
        again.handle(8.0, Arrived(Request("now", 9, 20)))
    data = path.read_bytes()
    with path.open("rb") as file:
        read = frames.Frames(file, "a")
        begun = next(read.end for content in read if read.end > before and content.startswith(b'[["end"]'))
    for cut in [*range(before + 1, begun, 7), begun, begun + 1]:
        path.write_bytes(data[:cut])
        calls, torn = calls_of(path)
        assert ([encode(call.plan) for call in calls], torn) == (plans, True)
        result = replay(path)
        assert (result.calls, result.starts, result.torn, result.difference) == (len(kept), 1, True, None)
        with resume(path) as third:
            assert snapshot(third) == state
            third.handle(9.0, Arrived(Request("later", 9, 20)))
        whole = replay(path)
        assert (whole.calls, whole.starts, whole.torn, whole.difference) == (len(kept) + 1, 2, False, None)


class FullDisk(io.BytesIO):
    """A file that takes so many bytes and no more."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def write(self, data: Any) -> int:
        self.room -= len(data)
        if self.room < 0:
            raise OSError(28, "No space left on device")
        return len(data)


def test_a_full_disk_stops_the_log_and_not_the_scheduler(tmp_path: Path) -> None:
    plain = Scheduler(CLUSTER, policy("fcfs"))
    scheduler = RecordedScheduler(tmp_path / "a.alog", CLUSTER, policy("fcfs"), calls=1)
    scheduler.log._file.close()
    scheduler.log._file = FullDisk(2000)
    for number in range(60):
        event = Arrived(Request(f"r{number}", 9, 20))
        assert scheduler.handle(float(number), event) == plain.handle(float(number), event)
    with pytest.raises(LogError, match=r"nothing was written behind byte .*No space left"):
        scheduler.close()


def test_what_cannot_be_written_stops_the_log_and_not_the_scheduler(tmp_path: Path) -> None:
    np = pytest.importorskip("numpy")
    scheduler = RecordedScheduler(tmp_path / "a.alog", CLUSTER, policy("fcfs"), calls=1)
    scheduler.handle(0.0, Arrived(Request("r0", 9, 20)))
    scheduler.handle(1.0, Arrived(Request("r1", 9, 20, priority=np.int64(2))))
    with pytest.raises(LogError, match="int64 is no plain data"):
        scheduler.close()
    assert len(calls_of(tmp_path / "a.alog")[0]) == 1


def test_a_log_that_nobody_closed_has_its_last_calls(tmp_path: Path) -> None:
    program = (
        "import sys; from alignedsched import *; from alignedsched.story import RecordedScheduler\n"
        "from alignedsched.events import Arrived\n"
        "cluster = Cluster((Device('g0', Role.BOTH, 400),), (Lane('l0', ('g0',)),))\n"
        "s = RecordedScheduler(sys.argv[1], cluster, policy('fcfs')); s.handle(0.0, Arrived(Request('r0', 9)))\n"
    )
    path = tmp_path / "a.alog"
    subprocess.run([sys.executable, "-c", program, str(path)], check=True, timeout=60)
    assert len(calls_of(path)[0]) == 1


# -- replay


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("seed", range(4))
def test_lives_replay_to_the_same_plans(name: str, seed: int, tmp_path: Path) -> None:
    path = tmp_path / "a.alog"

    def make(*arguments: Any, **options: Any) -> Scheduler:
        return RecordedScheduler(path, *arguments, calls=16, **options)

    life = Life(seed, POLICIES[name](), make=make)
    plans = life.live(to_the_end=name != "chaos")
    life.scheduler.close()  # type: ignore[attr-defined]
    made = (lambda: chaos()) if name == "chaos" else None
    result = replay(path, policy=made)
    assert result.difference is None
    assert result.calls >= len(plans)  # those that raised beside them
    calls, _ = calls_of(path)
    assert [encode(call.plan) for call in calls if not call.error] == plans


def test_errors_are_recorded_and_raised_again(tmp_path: Path) -> None:
    path = tmp_path / "a.alog"
    with RecordedScheduler(path, CLUSTER, policy("fcfs")) as scheduler:
        scheduler.handle(0.0, Arrived(Request("r0", 9, 20)))
        with pytest.raises(CallerError):
            scheduler.handle(1.0, Arrived(Request("r0", 9, 20)))
        with pytest.raises(CallerError):
            scheduler.handle(2.0, Arrived(Request("r1", 9)), "no event")  # type: ignore[arg-type]
        scheduler.handle(3.0)
    calls, _ = calls_of(path)
    assert [call.error for call in calls] == ["", "CallerError", "CallerError", ""]
    told: tuple[object, ...] = calls[2].events
    assert told == (Arrived(Request("r1", 9)), NoEvent("'no event'"))
    assert replay(path).difference is None


def test_the_answers_of_the_eligible_hook_are_recorded(tmp_path: Path) -> None:
    path, rng = tmp_path / "a.alog", Random(3)

    def moody(request: Request) -> bool:
        if rng.random() < 0.1:
            raise RuntimeError("not today")
        return rng.random() < 0.4

    errors = 0
    with RecordedScheduler(path, CLUSTER, policy("fcfs"), eligible=moody) as scheduler:
        for number in range(40):
            try:
                scheduler.handle(float(number), *([Arrived(Request(f"r{number}", 9, 20))] if number < 20 else []))
            except HookError:
                errors += 1
    assert errors
    result = replay(path)
    assert (result.calls, result.difference) == (40, None)


def test_a_log_can_begin_with_a_scheduler_that_was_restored(tmp_path: Path) -> None:
    first = Scheduler(CLUSTER, policy("density_first", k_min=3))
    for number in range(20):
        first.handle(float(number), Arrived(Request(f"r{number}", 9, 20)))
    path = tmp_path / "a.alog"

    def make(*arguments: Any, **options: Any) -> Scheduler:
        return RecordedScheduler(path, *arguments, **options)

    again = restore(snapshot(first), CLUSTER, policy("density_first", k_min=3), make=make)
    assert isinstance(again, RecordedScheduler)
    with again:
        for number in range(20, 30):
            event = Arrived(Request(f"r{number}", 9, 20))
            assert again.handle(float(number), event) == first.handle(float(number), event)
    assert replay(path) == Replayed(str(path), "density_first", "0.1.0", 10, 10, 1, False, None)


@pytest.mark.parametrize("name", [name for name in POLICIES if name != "chaos"])
def test_from_any_call_on_a_restored_scheduler_and_the_rest_of_the_log_give_the_same_plans(
    name: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.alog"
    life = Life(11, POLICIES[name](), make=partial(RecordedScheduler, path, calls=16))
    life.live(40)
    life.scheduler.close()  # type: ignore[attr-defined]
    calls, _ = calls_of(path)
    with LogReader(path) as log:
        for again in rerun(log):
            if again.call.number % 5:
                continue
            scheduler = restore(snapshot(again.scheduler), life.cluster, POLICIES[name]())
            for call in calls[again.call.number + 1 :]:
                assert encode(scheduler.handle(call.now, *call.events)) == encode(call.plan)


def test_a_killed_process_goes_on_from_its_log(tmp_path: Path) -> None:
    """Every call was written before its plan was handed out; the last frame is torn: its plan was never out."""
    path = tmp_path / "a.alog"
    scheduler = RecordedScheduler(path, CLUSTER, policy("fcfs"), calls=1, eligible=lambda request: request.id != "r3")
    whole = Scheduler(CLUSTER, policy("fcfs"), eligible=lambda request: request.id != "r3")
    for number in range(8):
        event = Arrived(Request(f"r{number}", 9, 20))
        scheduler.handle(float(number), event)
        if number < 7:
            whole.handle(float(number), event)
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(LogError, match="with an `eligible` hook"):
        resume(path)
    with resume(path, eligible=lambda request: request.id != "r3") as again:
        assert snapshot(again) == snapshot(whole)
        for number in range(7, 12):
            event = Arrived(Request(f"r{number}", 9, 20))
            assert again.handle(float(number), event) == whole.handle(float(number), event)
    result = replay(path)
    assert (result.calls, result.starts, result.difference) == (12, 2, None)
    with pytest.raises(LogError, match="call 0 comes out differently now"):
        resume(path, policy=lambda: evolve(policy("fcfs", token_budget=4), made_as=None), eligible=lambda request: True)


def test_the_first_difference_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.alog"
    with RecordedScheduler(path, CLUSTER, Policy("mine", *parts("fcfs"))) as scheduler:
        for number in range(10):
            scheduler.handle(float(number), *(Arrived(Request(f"r{number}-{i}", 5 + 3 * i, 20)) for i in range(3)))
    with pytest.raises(LogError, match="no name makes: give `policy`"):
        replay(path)
    with pytest.raises(LogError, match="under the policy 'mine', not 'other'"):
        replay(path, policy=lambda: Policy("other", *parts("fcfs")))
    assert replay(path, policy=lambda: Policy("mine", *parts("fcfs"))).difference is None
    result = replay(path, policy=lambda: Policy("mine", *parts("fcfs", token_budget=10)))
    assert result.difference is not None
    assert result.difference.call.number == 0
    text = "\n".join(result.difference.lines())
    assert "call 0 at 0.0 s, with 3 events:" in text
    assert "event: Arrived(request=Request(id='r0-0'" in text
    assert "then: Step(lane='l0', order=0, horizon=1" in text
    assert "now : Step(lane='l0', order=0, horizon=1" in text
    assert "Chunk(request='r0-2'" in text


def parts(name: str, **options: Any) -> tuple[Any, Any, Any]:
    made = policy(name, **options)
    return made.admission, made.batching, made.residency


def test_recording_changes_nothing(tmp_path: Path) -> None:
    for name, make_policy in POLICIES.items():
        recorded = Life(3, make_policy(), make=partial(RecordedScheduler, tmp_path / name))
        assert recorded.live(30) == Life(3, make_policy()).live(30)
        recorded.scheduler.close()  # type: ignore[attr-defined]


REPLAY = """
import sys, zlib
from alignedsched.story import LogReader, rerun, snapshot
from alignedsched.story.codec import plan_bytes
for path in sys.argv[1:]:
    plans = b""
    with LogReader(path) as log:
        for again in rerun(log):
            plans += plan_bytes(again.plan)
    print(zlib.crc32(plans), zlib.crc32(snapshot(again.scheduler)))
"""


def test_runs_of_compare_replay_the_same_in_other_processes_with_other_hash_seeds(tmp_path: Path) -> None:
    def python(hash_seed: str, *arguments: str) -> bytes:
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        command = [sys.executable, *arguments]
        return subprocess.run(command, env=environment, check=True, timeout=100, capture_output=True).stdout

    options = "compare --workload mooncake --requests 40 --topology disaggregated --policy fcfs --policy density_first"
    for seed in ("1", "4711"):
        python(seed, "-m", "alignedsched", *options.split(), "--record", str(tmp_path / seed))
    logs, others = (sorted((tmp_path / seed).iterdir()) for seed in ("1", "4711"))
    assert [log.name for log in logs] == ["1-fcfs.alog", "2-density_first.alog"]
    assert [log.read_bytes() for log in logs] == [log.read_bytes() for log in others]
    assert python("2", "-c", REPLAY, *map(str, logs)) == python("99", "-c", REPLAY, *map(str, others))
    for log in logs:
        result = replay(log)
        assert result.difference is None
        assert log.stat().st_size < 80 * result.events  # some 2 kB of these are the beginning


# -- the command


def test_the_command_records_and_replays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "logs"
    assert main(["compare", "--workload", "mooncake", "--requests", "30", "--record", str(folder)]) == 0
    capsys.readouterr()
    assert main(["replay", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["log", "policy", "calls", "events", "result"]
    assert [line.split()[:2] for line in lines[1:]] == [
        ["1-fcfs.alog", "fcfs"],
        ["2-cost_aligned.alog", "cost_aligned"],
        ["3-density_first.alog", "density_first"],
    ]
    assert all(line.endswith("every plan the same") for line in lines[1:])
    assert main(["compare", "--workload", "mooncake", "--record", str(folder)]) == 2
    assert "has logs of another run" in capsys.readouterr().err


def test_the_command_says_what_differs_and_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.alog"
    written(path, calls=5)
    data = path.read_bytes()
    with LogReader(path) as log:
        list(log)
        check = log._frames.check
    wrong = [["call", 9.0, [["Cancelled", "\x1b[31mred"]], [[], [], [7], [], [], 5.0], "", ""]]
    wrong[0][3][2] = [[7]]  # type: ignore[index]
    frame, _ = frames.pack(encode(wrong), check)
    path.write_bytes(data + frame + b"torn")
    assert main(["replay", str(path)]) == 1
    out = capsys.readouterr().out
    assert "call 5 differs" in out
    assert "Abort(copy=7)" in out
    assert "then: wake_at 5.0" in out
    assert "\x1b" not in out
    path.write_bytes(data[:-1])
    assert main(["replay", str(path)]) == 0
    assert "every plan the same; cut off at its end" in capsys.readouterr().out
    path.write_bytes(data[:-1] + b"?")
    assert main(["replay", str(path)]) == 2
    assert "a.alog, byte" in capsys.readouterr().err
    for arguments in ([], [str(tmp_path / "nothing")], [str(tmp_path / "folder")], ["--what"]):
        (tmp_path / "folder").mkdir(exist_ok=True)
        assert main(["replay", *arguments]) == 2
    assert main(["replay", "--help"]) == 0


def test_parts_are_json_that_any_tool_can_read(tmp_path: Path) -> None:
    path = tmp_path / "a.alog"
    written(path, calls=1)
    with path.open("rb") as file:
        names = [part[0] for content in frames.Frames(file, "a") for part in parse(content)]
    assert names == ["scheduler", "policy", "facts", "links", "tiers", "untold", "lane", "end", "call"]
