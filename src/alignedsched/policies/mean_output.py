"""The mean output of a request, those that still run included: tokens made so far for each end so far.

The mean of the ends alone is too short after a busy start, since short requests end first. If lives were exponential,
this would be their maximum-likelihood mean under censoring (Epstein and Sobel, J. Am. Stat. Assoc. 48, 1953); of other
lives it is a fair first answer, and the right one in the long run. Older tokens and ends fade alike.
"""

from __future__ import annotations

from attrs import define, frozen

from ..errors import CallerError
from ..outside import is_number, show
from ..request import Request
from .predict import Predictor
from .protocols import PlainData, Stepped

HALF_LIFE = 2048  # ends until an older end counts half
KNOWN = 64.0  # ends that say enough
_FADE = 0.5 ** (1.0 / HALF_LIFE)


@define
class MeanOutput:
    """A Watch. O(ranks) for a report of steps, O(1) for an end."""

    made: float = 0.0
    ends: float = 0.0

    @property
    def tokens(self) -> float:
        """The mean output; 0 before anybody has ended."""
        return self.made / self.ends if self.ends else 0.0

    @property
    def known(self) -> bool:
        """Whether enough have ended to go by."""
        return self.ends >= KNOWN

    def stepped(self, facts: Stepped) -> None:
        """See Watch."""
        loads = facts.loads
        self.made += facts.steps * (loads[0].n if len(loads) == 1 else sum(load.n for load in loads))

    def ended(self, request: Request, produced: int, finished: bool) -> None:
        """See Watch. However it ended: it makes room."""
        self.made *= _FADE
        self.ends = self.ends * _FADE + 1.0

    def state(self) -> PlainData:
        return [self.made, self.ends]

    def load(self, state: PlainData) -> None:
        """Restore ``state()``. Raises CallerError if it is no such state, and then changes nothing."""
        if not isinstance(state, list) or len(state) != 2:
            raise CallerError(f"MeanOutput: its state is tokens and ends, got {show(state)}")
        made, ends = state
        if not is_number(made, 0.0) or not is_number(ends, 0.0):
            raise CallerError(f"MeanOutput: its state is two numbers of at least 0, got {show(state)}")
        self.made, self.ends = float(made), float(ends)


@frozen
class Expected:
    """The output expected of a request: what ends of its kind say, as much longer as those that still run make all."""

    predictor: Predictor
    outputs: MeanOutput

    @property
    def known(self) -> bool:
        """Whether enough is known to go by."""
        return self.outputs.known

    @property
    def mean(self) -> float:
        """Tokens expected of a request of which nothing is known."""
        return max(self.outputs.tokens, self._ended(1))

    def of(self, tokens: int) -> float:
        """Tokens expected of a request with so many prompt tokens. O(log bins)."""
        return self._ended(tokens) * max(1.0, self.outputs.tokens / self._ended(1))

    def _ended(self, tokens: int) -> float:
        return self.predictor.remaining("", tokens, 0) or 1.0
