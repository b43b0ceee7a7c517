"""What the HTML page draws of each run, gathered while it goes, in memory that does not grow with it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from attrs import define, field

from ..events import Event
from ..metrics import LatencyCollector
from ..metrics.bubbles import Idle, split
from ..plan import Plan
from .lookout import Views
from .series import Series
from .stretches import Pause, Stretch

FloatArray = npt.NDArray[np.float64]
SHARES = ("busy", "iteration", "batch", "copy_stall", "no_work")  # of the time of the lanes that decode
_IDLE = {Idle.BATCH: "batch", Idle.COPY: "copy_stall", Idle.NO_WORK: "no_work"}
_LENGTHS = ("members", "shortest", "mean", "longest")  # each times the seconds in which somebody decoded
_STATE = ("pool", "queue", "used")  # each times seconds; used: blocks of the devices that decode, as a share
# Quantiles from 0.1 % to 99.9 %, evenly spread where they are drawn (see svg.odds).
QUANTILES = tuple(1 / (1 + math.exp(-x)) for x in np.linspace(math.log(0.001 / 0.999), math.log(0.999 / 0.001), 140))


@define
class Curves:
    """One run as it is drawn: ``lanes`` has what lanes did by time, ``state`` what waited, ``quantiles`` latencies."""

    policy: str
    lanes: Series = field(factory=lambda: Series(("tokens", "decoding", *_LENGTHS, *SHARES)))
    state: Series = field(factory=lambda: Series(("seconds", *_STATE)))
    quantiles: dict[str, list[float] | None] = field(factory=dict)

    def rate(self) -> FloatArray:
        """Tokens a second, of each bin of ``lanes``; nan where a bin has no time."""
        ends = self.lanes.ends()
        return _over(self.lanes.sums("tokens"), np.diff(ends, prepend=ends[0] - self.lanes.width))

    def length(self, column: str) -> FloatArray:
        """Mean over the time of decode steps of one of members, shortest, mean and longest; nan without any."""
        return _over(self.lanes.sums(column), self.lanes.sums("decoding"))

    def spread(self) -> FloatArray:
        """Longest minus shortest context length of those that decode together, in tokens, as ``length``."""
        return self.length("longest") - self.length("shortest")

    def share(self, column: str) -> FloatArray:
        """One of SHARES as a fraction of the lanes' time; nan without any."""
        total = np.sum([self.lanes.sums(name) for name in SHARES], axis=0)
        return _over(self.lanes.sums(column), total)

    def level(self, column: str) -> FloatArray:
        """Mean over time of one of pool, queue and used, of each bin of ``state``; nan without any."""
        return _over(self.state.sums(column), self.state.sums("seconds"))


def _over(sums: FloatArray, by: FloatArray) -> FloatArray:
    quotients: FloatArray = np.divide(sums, by, out=np.full(len(sums), np.nan), where=by > 0)
    return quotients


class Gathering:
    """A Sink that keeps the curves of every run, in ``runs``."""

    _views: Views

    def __init__(self) -> None:
        self.runs: list[Curves] = []

    def begin(self, policy: str, views: Views) -> None:
        """See Sink."""
        self.runs.append(Curves(policy))
        self._views = views
        self._decoding = {lane for lane, view in views.items() if view.role.decodes}
        self._since: float | None = None  # the state has been this one
        self._state = (0.0, 0.0, 0.0)

    def ran(self, stretch: Stretch, missing: int) -> None:
        """See Sink."""
        seconds = stretch.end - stretch.begin
        lengths: tuple[float, ...] = (0.0,) * (1 + len(_LENGTHS))
        shares: tuple[float, ...] = (0.0,) * len(SHARES)
        if stretch.members:
            grown = (stretch.steps - 1) / 2
            mean = stretch.total / stretch.members
            each = (stretch.members, stretch.shortest + grown, mean + grown, stretch.longest + grown)
            lengths = (seconds, *(seconds * value for value in each))
        if stretch.lane in self._decoding:
            balanced = seconds if stretch.balanced_s is None else stretch.balanced_s
            shares = (*split(seconds, balanced, stretch.served, missing), 0.0, 0.0)
        self.runs[-1].lanes.add(stretch.begin, stretch.end, (stretch.tokens, *lengths, *shares))

    def paused(self, pause: Pause) -> None:
        """See Sink."""
        if pause.lane in self._decoding:
            seconds = pause.end - pause.begin
            shares = [seconds if name == _IDLE[pause.reason] else 0.0 for name in SHARES]
            self.runs[-1].lanes.add(pause.begin, pause.end, (0.0, 0.0, *(0.0,) * len(_LENGTHS), *shares))

    def called(self, now: float, events: Sequence[Event], plan: Plan) -> None:
        """See Sink."""
        self._hold(now)
        view = next(iter(self._views.values()))
        ranks = [rank for lane in sorted(self._decoding) for rank in self._views[lane].ranks]
        room = sum(rank.capacity for rank in ranks)
        used = 1 - sum(rank.free for rank in ranks) / room if room else 0.0
        pool = len(view.pool) + sum(len(view.candidates) + len(view.joining) for view in self._views.values())
        self._state = (pool, len(view.queue), min(1.0, max(0.0, used)))

    def _hold(self, until: float) -> None:
        """What the state was counts up to now."""
        if self._since is not None and until > self._since:
            seconds = until - self._since
            self.runs[-1].state.add(self._since, until, (seconds, *(seconds * value for value in self._state)))
        self._since = until

    def end(self, now: float, latency: LatencyCollector | None) -> None:
        """See Sink."""
        self._hold(now)
        if latency is not None:
            self.runs[-1].quantiles = latency.quantiles(QUANTILES)
