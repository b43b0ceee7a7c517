"""What one life of a request comes to: its tokens' times and the figures told at its end."""

from __future__ import annotations

from attrs import define, field

from ..live import Live
from ..plan import Copy, Outcome, Release
from .phases import Batch
from .sentences import seconds, several


@define
class Life:
    """One life of a request (an id may come again when it has ended). Times in seconds; None: not yet."""

    arrival: float
    live: Live | None = None  # as last seen
    met: Batch | None = None  # the batch it joined last
    first_token: float | None = None
    last_token: float | None = None
    rests_since: float | None = None  # has a token, and gets none since then
    longest_rest: float = 0.0
    copies: dict[int, tuple[Copy, float]] = field(factory=dict)  # under way, and since when
    unwanted: dict[int, None] = field(factory=dict)  # copies under way that were aborted

    def token(self, at: float, rests: bool) -> None:
        """A last chunk gave it a token; ``rests``: it does not decode at once."""
        if self.first_token is None:
            self.first_token = at
        if self.rests_since is not None:
            self.longest_rest = max(self.longest_rest, at - self.rests_since)
        self.rests_since = at if rests else None

    def decodes(self, now: float) -> None:
        """It decodes again, or for the first time."""
        if self.rests_since is not None:
            self.longest_rest = max(self.longest_rest, now - self.rests_since)
            self.rests_since = None

    def finished(self) -> str:
        """The figures of a finished request, as a client sees them."""
        made = 0 if self.live is None else self.live.produced
        first, last = self.first_token, self.last_token
        figures = [] if first is None else [f"TTFT {seconds(first - self.arrival)}"]
        if first is not None and last is not None and made > 1:
            figures.append(f"TPOT {seconds((last - first) / (made - 1))}")
        if last is not None:
            figures.append(f"E2E {seconds(last - self.arrival)}")
        if self.longest_rest > 0:
            figures.append(f"longest pause between tokens {seconds(self.longest_rest)}")
        return f"finished with {several(made, 'token')}: {', '.join(figures)}"

    def unfinished(self, release: Release) -> str:
        """How it ended otherwise."""
        made = 0 if self.live is None else self.live.produced
        how = "refused" if release.outcome is Outcome.REJECTED else release.outcome.value
        after = f" after {several(made, 'token')}" if made else ""
        return f"{how}{after}: {release.why}" if release.why and release.why != how else f"{how}{after}"
