"""The story of a scheduler: an event log that replays to the same decisions, and snapshots to go on from."""

from __future__ import annotations

from .log import Call, LogReader, Start
from .recorder import RecordedScheduler
from .recovery import recovery_events, resume
from .replay import Difference, Replayed, replay, rerun
from .snapshot import restore, snapshot

__all__ = [
    "Call", "Difference", "LogReader", "RecordedScheduler", "Replayed", "Start",
    "recovery_events", "replay", "rerun", "restore", "resume", "snapshot",
]  # fmt: skip
