"""The options of batch-level scheduling, and what it remembers of a lane, as plain data."""

from __future__ import annotations

from attrs import field, frozen

from ..errors import CallerError
from ..outside import is_number, show
from ..request import RequestId
from .options import number
from .protocols import PlainData


@frozen
class Settings:
    """What batch-level scheduling may be told. Raises ConfigError naming the field for a value out of range.

    ``batch_share``: a batch takes up to this share of its devices' blocks. ``k_min``: from so many pooled requests on
    the next batch is chosen ahead. ``mix_share``: what is ready runs unsorted while it takes no more than this share of
    the blocks (0: never). A request is *near* a batch if its length is within ``near_tokens``, or within ``near_share``
    of the median length, of that median. ``drain_share``: a batch less full than this is switched. ``guard_s``: the
    starvation guard (``None``: off); ``patience_s``: the longest that chosen candidates wait for a switch (``None``: no
    bound); ``dwell_s``: the least time between two switches. Seconds on the caller's clock.
    """

    batch_share: float = field(default=0.4, validator=number(0.001, 1.0))  # arXiv 2605.23389: 40 % of the blocks
    k_min: int = field(default=36, validator=number(1))  # the same, evaluation: 36 requests
    mix_share: float = field(default=0.8, validator=number(0.0, 1.0))  # two batches of 40 %
    near_share: float = field(default=0.25, validator=number(0.0, 1e9))
    near_tokens: int = field(default=512, validator=number(0))
    drain_share: float = field(default=0.5, validator=number(0.0, 1.0))
    guard_s: float | None = field(default=30.0, validator=number(0.0, none=True))
    patience_s: float | None = field(default=30.0, validator=number(0.0, none=True))
    dwell_s: float = field(default=0.25, validator=number(0.0))

    def reach(self, median: int) -> int:
        """How far in tokens from a batch's median length a request is near it."""
        return int(max(self.near_tokens, self.near_share * median))


def read_seconds(what: str, value: object) -> float:
    """A finite number of seconds out of plain data. Raises CallerError naming ``what``."""
    if not is_number(value):
        raise CallerError(f"density_first: {what} of its state must be finite seconds, got {show(value)}")
    return float(value)


@frozen
class LaneMemory:
    """What is remembered of a lane: members of the old batch, the last switch, when the candidates were chosen."""

    old: tuple[RequestId, ...] = ()
    since: float | None = None
    chosen: float | None = None
    turning: bool = False  # a switch has begun, and candidates still wait for room

    def plain(self) -> PlainData:
        return {"old": list(self.old), "since": self.since, "chosen": self.chosen, "turning": self.turning}

    @staticmethod
    def from_plain(lane: str, plain: PlainData) -> LaneMemory:
        """Raises CallerError naming the lane and the key."""
        keys = {"old", "since", "chosen", "turning"}
        if not isinstance(plain, dict) or plain.keys() != keys:
            raise CallerError(
                f"density_first: lanes[{show(lane)}] of its state needs {sorted(keys)}, got {show(plain)}"
            )
        old, turning = plain["old"], plain["turning"]
        ids = [request for request in old if isinstance(request, str)] if isinstance(old, list) else []
        if ids != old or not isinstance(turning, bool):
            raise CallerError(f"density_first: lanes[{show(lane)}]: 'old' must be a list of ids, 'turning' a bool")
        times = [
            None if plain[key] is None else read_seconds(f"lanes[{show(lane)}][{key!r}]", plain[key])
            for key in ("since", "chosen")
        ]
        return LaneMemory(tuple(ids), times[0], times[1], turning)
