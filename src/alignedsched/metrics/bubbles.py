"""Where a lane's time goes: balanced work, iteration bubbles, batch bubbles, copy stalls, and having nothing to do.

Every second of a lane falls into exactly one share. A step of ``s`` seconds that would take ``b`` if imbalance cost
nothing, with ``n`` requests in it while ``m`` more from the pool could have been in it, splits into

    iteration bubble = s - b,    batch bubble = b * m / (n + m),    busy = b * n / (n + m),

and time without a step goes whole to the reason given. So the shares sum to the lane's time.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable

from ..errors import CallerError


class Idle(enum.Enum):
    """Why a lane runs no step."""

    NO_WORK = "no_work"  # nothing in queue or pool that it could run
    BATCH = "batch"  # there is work, waiting for no copy: a batch bubble
    COPY = "copy"  # KV wanted by the lane is still under way: a copy stall


def split(seconds: float, balanced_seconds: float, members: int, missing: int) -> tuple[float, float, float]:
    """Busy, iteration bubble and batch bubble of steps of so many ``seconds``, see BubbleMeter.step: they add up."""
    balanced = min(seconds, balanced_seconds)
    unfilled = balanced * missing / (members + missing) if missing else 0.0
    return balanced - unfilled, seconds - balanced, unfilled


class Reasons:
    """Why a lane would be idle, as it was seen from time to time. Both calls are O(changes of reason between steps)."""

    __slots__ = ("_seen",)

    def __init__(self) -> None:
        self._seen: list[tuple[float, Idle]] = [(-math.inf, Idle.NO_WORK)]

    def saw(self, now: float, reason: Idle) -> None:
        """From ``now`` on (seconds, never falling), time without a step has this reason."""
        if reason is not self._seen[-1][1]:
            self._seen.append((now, reason))

    def over(self, begin: float, end: float) -> list[tuple[float, float, Idle]]:
        """The time from ``begin`` to ``end``, cut where the reason changed. Both never fall from call to call: what
        was seen before is forgotten, what was seen later stays.
        """
        pieces: list[tuple[float, float, Idle]] = []
        seen = self._seen
        while True:
            until = seen[1][0] if len(seen) > 1 else math.inf
            if begin < min(until, end):
                pieces.append((begin, min(until, end), seen[0][1]))
                begin = min(until, end)
            if until > begin:
                return pieces
            del seen[0]


class BubbleMeter:
    """One lane's time by shares, all in seconds. Each call is O(1)."""

    __slots__ = ("batch", "busy", "copy_stall", "iteration", "no_work")

    def __init__(self) -> None:
        self.busy = 0.0
        self.iteration = 0.0
        self.batch = 0.0
        self.copy_stall = 0.0
        self.no_work = 0.0

    def step(self, seconds: float, balanced_seconds: float, members: int, missing: int = 0) -> None:
        """Count a step, or the sums over several steps of equal ``members`` and ``missing``.

        ``members`` are the requests served (decode rows, and requests with a chunk); ``missing`` is how many pooled
        requests could have been members besides, by count and by free blocks. ``balanced_seconds`` above ``seconds``
        (measured surfaces, rounding) counts as no iteration bubble. Raises CallerError for negative or non-finite.
        """
        if not (0.0 <= seconds < math.inf and 0.0 <= balanced_seconds < math.inf and members >= 0 and missing >= 0):
            raise CallerError(
                f"a step needs finite seconds and counts of at least 0, got seconds={seconds!r}, "
                f"balanced_seconds={balanced_seconds!r}, members={members!r}, missing={missing!r}"
            )
        busy, iteration, batch = split(seconds, balanced_seconds, members, missing)
        self.busy += busy
        self.iteration += iteration
        self.batch += batch

    def idle(self, seconds: float, reason: Idle) -> None:
        """Count time without a step. Raises CallerError for negative or non-finite seconds."""
        if not 0.0 <= seconds < math.inf:
            raise CallerError(f"idle time must be finite seconds of at least 0, got {seconds!r}")
        if reason is Idle.NO_WORK:
            self.no_work += seconds
        elif reason is Idle.BATCH:
            self.batch += seconds
        elif reason is Idle.COPY:
            self.copy_stall += seconds
        else:
            raise CallerError(f"reason must be one of {', '.join(str(known) for known in Idle)}, got {reason!r}")

    @property
    def seconds(self) -> float:
        """All time counted."""
        return self.busy + self.iteration + self.batch + self.copy_stall + self.no_work

    def fractions(self) -> dict[str, float]:
        """``iteration``, ``batch`` and ``copy_stall`` as fractions of the lane's time: their sum is at most 1.

        All 0 for a lane of which no time was counted.
        """
        return fractions([self])


def fractions(meters: Iterable[BubbleMeter]) -> dict[str, float]:
    """Bubbles of several lanes together: seconds of each kind over the seconds of all lanes. O(lanes)."""
    meters = list(meters)
    seconds = sum(meter.seconds for meter in meters)
    kinds = {
        "iteration": sum(meter.iteration for meter in meters),
        "batch": sum(meter.batch for meter in meters),
        "copy_stall": sum(meter.copy_stall for meter in meters),
    }
    return {kind: part / seconds if seconds > 0.0 else 0.0 for kind, part in kinds.items()}
