"""Who is told why: the scheduler says each of its rules to a narrator, if somebody listens, and else says nothing.

The core is deterministic, so nothing has to be stored for an explanation: whoever wants one replays the calls with a
narrator switched on (see ``story.explain``). A note carries the rule and its figure; everything else the narrator
reads from the scheduler at that very moment. Without a narrator each place costs one comparison, and a decode step in
which nothing is decided does not even come by one.
"""

from __future__ import annotations

import enum
from typing import Protocol

from attrs import frozen


class Rule(enum.Enum):
    """Where the core decided something, and what the note's figure then is."""

    DECIDED = "decided"  # a lane's policies were asked and what was possible was taken; prefill tokens ordered
    NO_ROOM = "no room"  # a lane's next step does not fit, so nobody was asked; blocks short
    VICTIM = "victim"  # the policy named this request to make room; blocks short
    NEWEST = "newest"  # the policy named nobody who could, so the newest has to; blocks short
    STARTS_OVER = "starts over"  # nothing could go on beside the KV this one holds; how many hold KV there


class Narrator(Protocol):
    """Listens to one scheduler. It must change nothing."""

    def note(self, rule: Rule, lane: str, request: str, figure: int) -> None:
        """A rule was applied: on a lane (or "" for none), to a request (or "" for none), with its figure."""
        ...


@frozen
class Reason:
    """Why something waits, as words behind a figure that may change: ``Reason("blocks short on d0", 40)``."""

    text: str
    figure: int | None = None
