"""Hostile event logs and snapshots: damaged bytes, and sound frames around parts that were changed."""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Callable, Iterable
from functools import cache, partial
from pathlib import Path
from random import Random
from typing import Any

from alignedsched import Cluster, Device, KVLayout, Lane, Link, Request, Role, Scheduler, policy
from alignedsched.cluster import HOST
from alignedsched.errors import AlignedSchedError, CallerError
from alignedsched.events import Arrived, Cancelled, StepsDone
from alignedsched.story import RecordedScheduler, frames, replay, restore, snapshot
from alignedsched.story.explain import LogFile, explain_request, explain_time
from benchmarks.fuzz_values import as_json, mutated_bytes, mutated_often

CLUSTER = Cluster(
    (Device("g0", Role.BOTH, 40),), (Lane("l0", ("g0",), 0, 4, 64),), 20,
    (Link("g0", HOST, 1e9), Link(HOST, "g0", 1e9)), KVLayout(4, 1000), 400,
)  # fmt: skip
NAME = "density_first"


def _play(scheduler: Scheduler) -> None:
    """A few calls of every kind."""
    scheduler.handle(0.0, *(Arrived(Request(f"r{i}", 9, 20)) for i in range(2)))
    done = StepsDone("l0", 0, 0, 0, prefilled=("r0", "r1"), seconds=0.5)
    scheduler.handle(1.0, done, Arrived(Request("late", 150, 2, tenant="t")))
    scheduler.handle(2.0, Cancelled("r0"))


@cache
def sound_log() -> bytes:
    """A log of a few calls."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.alog"
        scheduler = RecordedScheduler(path, CLUSTER, policy(NAME), calls=1)
        _play(scheduler)
        scheduler.log.close()
        return path.read_bytes()


@cache
def sound_snapshot() -> bytes:
    """A snapshot in the middle of the same calls."""
    scheduler = Scheduler(CLUSTER, policy(NAME))
    _play(scheduler)
    return snapshot(scheduler)


def goes_round() -> bool:
    """Whether a scheduler made from a snapshot has the same snapshot."""
    return snapshot(restore(sound_snapshot(), CLUSTER, policy(NAME))) == sound_snapshot()


def _contents(data: bytes) -> list[Any]:
    return [json.loads(content) for content in frames.Frames(io.BytesIO(data), "log")]


def _packed(contents: Iterable[Any]) -> bytes:
    """Frames with sound checks around whatever it is."""
    out, check = [frames.MAGIC], frames.FIRST
    for content in contents:
        frame, check = frames.pack(as_json(content), check)
        out.append(frame)
    return b"".join(out)


def made_of(sound: Callable[[], bytes]) -> Callable[[Random], tuple[Any, int]]:
    """Inputs made of a sound file."""

    def make(rng: Random) -> tuple[Any, int]:
        data = sound()
        if rng.random() < 0.3:
            data = mutated_bytes(rng, data)
        else:
            contents = _contents(data)
            if rng.random() < 0.8:  # one part; else the order of parts and frames
                at = rng.randrange(len(contents))
                contents[at] = mutated_often(rng, contents[at])
                data = _packed(contents)
            else:
                changed = mutated_often(rng, contents)
                data = _packed(changed if isinstance(changed, list) else [changed])
        return data, 4000 + len(data)

    return make


def feed_log(folder: Path) -> Callable[[Any], None]:
    """Replay it, and have its story told."""
    path = folder / "run.alog"

    def feed(payload: Any) -> None:
        path.write_bytes(payload)
        replay(path)
        source = LogFile(path)
        for tell in (partial(explain_request, source, "r0"), partial(explain_time, source, 1.0)):
            try:
                sentences = tell()
            except CallerError:
                continue
            assert all(sentence.text.isprintable() for sentence in sentences), "a story upsets a terminal"

    return feed


def feed_snapshot(payload: Any) -> None:
    """What it restores to is sound, and goes on."""
    scheduler = restore(payload, CLUSTER, policy(NAME))
    scheduler.check()
    try:
        scheduler.handle(scheduler.now + 1.0)
    except AlignedSchedError as error:
        raise AssertionError(f"what was restored does not go on: {error}") from error
    scheduler.check()
