"""What steps take: seconds between decisions for policies that learn, and a line of the step log for each step.

A step is taken to last from one call of vLLM's scheduler to the next; a call after idleness tells nothing. With
overlapped scheduling that is the time of a step in the middle of a run, as the log wants it.
"""

from __future__ import annotations

from attrs import define, field

from ..step_log import StepLog


@define(eq=False)
class Pace:
    """``begin`` is called before each step, ``end`` after it is scheduled."""

    log: StepLog | None = None
    _since: float | None = field(init=False, default=None)
    _seconds: float = field(init=False, default=0.0)
    _plain: bool = field(init=False, default=True)
    _line: tuple[int, int, int, int] | None = field(init=False, default=None)

    def begin(self, now: float, busy: bool) -> None:
        """A step is about to be scheduled; ``busy``: the last one has gone on until now."""
        since, self._since = self._since, now
        line, self._line = self._line, None
        if not busy or since is None or now <= since:
            self._plain = False
            return
        self._seconds += now - since
        if self.log is not None and line is not None:
            self.log.step(*line, 1e3 * (now - since))

    def end(self, rows: int, tokens: int, line: tuple[int, int, int, int] | None = None) -> None:
        """A step of ``tokens`` tokens for ``rows`` requests was scheduled; ``line`` as the log has it, without ms."""
        if rows != tokens or not rows:
            self._plain = False
        self._line = line

    def take(self) -> float:
        """Seconds since the last call, if only plain decode steps lie between; else 0."""
        seconds = self._seconds if self._plain else 0.0
        self._seconds, self._plain = 0.0, True
        return seconds
