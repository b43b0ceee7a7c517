"""What clients felt, derived from events and plans alone: TTFT, TPOT, ITL, E2E, and what the pool added to them.

Nobody reports tokens one by one. An order's joins and leaves take effect at the step its report names, every member
gets one token a step, a last prefill chunk gives one token, and a finish names its step: so each token has its time,
and a step with n members costs the collector O(1), not O(n). The gap before a token is the same for all members that
also decoded in the lane's previous step (one weighted histogram entry); whoever joins gets a gap of its own.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from operator import itemgetter

import numpy as np
import numpy.typing as npt

from ..cluster import Cluster
from ..errors import CallerError
from ..events import (
    Arrived,
    DeviceBack,
    DeviceLost,
    Event,
    LaneBack,
    LaneLost,
    StepsDone,
    StepsFailed,
)
from ..plan import Outcome, Plan
from ..request import RequestId
from .histogram import LogHistogram, rank_of, summarize
from .lane_clock import LaneClock, Live, StepTimes

FloatArray = npt.NDArray[np.float64]
Durations = Mapping[str, list[float] | FloatArray]  # seconds of steps, by lane
FIGURES = ("ttft", "tpot", "tpot_decoding", "itl", "e2e", "pool_wait")


def seconds_after(events: Sequence[Event]) -> Mapping[int, float]:
    """By event index: seconds of later reports of the same lane in this call. Empty in the common case."""
    if len(events) < 2:
        return {}
    later: dict[str, float] = {}
    after: dict[int, float] = {}
    for index in range(len(events) - 1, -1, -1):
        event = events[index]
        if type(event) is StepsDone:
            after[index] = later.get(event.lane, 0.0)
            later[event.lane] = after[index] + event.seconds
        elif type(event) is StepsFailed:
            after[index] = later.get(event.lane, 0.0)
    return after


class LatencyCollector:
    """Fed with every scheduler call; asked at the end. Queued requests cost one dictionary entry, ended ones 56 bytes.

    ``cluster`` is needed only where whole devices may be lost (to know their lanes).
    """

    def __init__(self, cluster: Cluster | None = None) -> None:
        self._lane_of = {rank: lane.id for lane in cluster.lanes for rank in lane.ranks} if cluster else {}
        self._queued: dict[RequestId, tuple[float, int]] = {}  # arrival and prompt tokens, until the first token
        self._live: dict[RequestId, Live] = {}
        self._lanes: dict[str, LaneClock] = {}
        self._gaps = LogHistogram()
        self._columns = {name: array("d") for name in ("arrival", "first", "last", "pool_wait")}
        self._tokens = array("q")
        self._prompts = array("q")
        self._outcomes = dict.fromkeys(Outcome, 0)
        self._arrived = 0
        self._unfinished_tokens = 0

    def observe(self, now: float, events: Sequence[Event], plan: Plan, durations: Durations | None = None) -> None:
        """Take in one call of the scheduler: the events it was given at ``now`` (seconds) and the plan it returned.

        ``durations`` gives, per lane, the seconds of each newly reported step, shape (steps,), in step order over all
        of the call's reports; without them the steps of a report share its seconds equally. The last step reported for
        a lane ends at ``now`` unless the report says when. O(events + joins + leaves), plus O(steps) where durations
        are given. Late and duplicate reports and unknown ids change nothing.
        """
        after: Mapping[int, float] | None = None  # made when a report needs it
        used: dict[str, int] = {}  # per lane, how many durations its earlier reports of this call took
        for index, event in enumerate(events):
            if isinstance(event, (StepsDone, StepsFailed)):
                end = event.ended if isinstance(event, StepsDone) else None
                if end is None:
                    after = seconds_after(events) if after is None else after
                    end = now - after.get(index, 0.0)
                self._steps(event, end, durations, used)
            elif isinstance(event, Arrived):
                request = event.request
                if request.id not in self._queued and request.id not in self._live:
                    self._queued[request.id] = (request.arrival, request.prompt_tokens)
                    self._arrived += 1
            elif isinstance(event, (LaneLost, DeviceLost, LaneBack, DeviceBack)):
                self._lane_changed(event)
        for step in plan.steps:
            self._lane(step.lane).ordered(step)
        for release in plan.releases:
            self._ended(release.request, release.outcome)

    def _lane(self, name: str) -> LaneClock:
        lane = self._lanes.get(name)
        if lane is None:
            lane = self._lanes[name] = LaneClock(self._gaps, self._live)
        return lane

    def _lane_changed(self, event: LaneLost | DeviceLost | LaneBack | DeviceBack) -> None:
        name = event.lane if isinstance(event, (LaneLost, LaneBack)) else self._lane_of.get(event.device)
        if name is None:
            return
        if isinstance(event, (LaneLost, DeviceLost)):
            self._lane(name).lost()
        else:
            self._lane(name).back(event.next_step)

    def _steps(
        self,
        event: StepsDone | StepsFailed,
        end: float,
        durations: Durations | None,
        used: dict[str, int],
    ) -> None:
        lane = self._lanes.get(event.lane) or self._lane(event.lane)
        steps = lane.newly_reported(event.first, event.through)
        if isinstance(event, StepsDone):
            seconds = event.seconds
        else:  # no seconds are reported: at most since the lane's last step
            seconds = end - lane.end if lane.reported is not None and steps else 0.0
        told = durations.get(event.lane) if durations and steps else None
        each = None if told is None else self._each(event.lane, told, steps, used)
        finished = sorted(event.finished, key=itemgetter(1)) if len(event.finished) > 1 else event.finished
        lane.advance(event.order, event.first, event.through, StepTimes(end, steps, seconds, each), finished)
        if isinstance(event, StepsDone):
            for request in event.prefilled:
                if lane.wrote_last_chunk(event.order, request):
                    self._prefilled(request, end)
        for request, _ in finished:
            live = self._live.get(request)
            if live is not None:
                live.finished = True

    @staticmethod
    def _each(lane: str, told: list[float] | FloatArray, steps: int, used: dict[str, int]) -> list[float]:
        """The seconds of a report's new steps, among all that were told of its lane in this call."""
        begin = used.get(lane, 0)
        used[lane] = begin + steps
        if begin + steps > len(told):
            raise CallerError(
                f"observe: lane {lane!r} newly reports {begin + steps} steps, but durations has {len(told)}"
            )
        each = told if steps == len(told) else told[begin : begin + steps]
        return each.tolist() if isinstance(each, np.ndarray) else each

    def _prefilled(self, request: RequestId, end: float) -> None:
        """A last chunk gave a token: the first one, or after a preemption by recompute the next one."""
        live = self._live.get(request)
        if live is None:
            queued = self._queued.pop(request, None)
            if queued is not None:
                self._live[request] = Live(*queued, end)
            return
        if live.lane is not None:
            live.lane.expel(request)
        self._gaps.add(max(0.0, end - live.last))
        live.last = end
        live.tokens += 1

    def _ended(self, request: RequestId, outcome: Outcome) -> None:
        self._outcomes[outcome] += 1
        self._queued.pop(request, None)
        live = self._live.get(request)
        if live is None:
            return
        if live.lane is not None:
            live.lane.expel(request)
        del self._live[request]
        if outcome is not Outcome.FINISHED:
            self._unfinished_tokens += live.tokens
            return
        columns = self._columns
        columns["arrival"].append(live.arrival)
        columns["first"].append(live.first)
        columns["last"].append(live.last)
        columns["pool_wait"].append(live.pool_wait)
        self._tokens.append(live.tokens)
        self._prompts.append(live.prompt_tokens)

    @property
    def requests(self) -> dict[str, int]:
        """``arrived`` (distinct live ids taken in), then how many ended in each way."""
        return {"arrived": self._arrived, **{outcome.value: n for outcome, n in self._outcomes.items()}}

    @property
    def output_tokens(self) -> int:
        """Tokens given to clients by every request that ended, finished or not. O(finished)."""
        return int(self.finished_columns()["tokens"].sum()) + self._unfinished_tokens

    def finished_columns(self) -> dict[str, npt.NDArray[np.float64] | npt.NDArray[np.int64]]:
        """Finished requests in order of their release: copies of ``arrival``, ``first``, ``last`` (token times) and
        ``pool_wait`` in seconds, ``tokens`` made and ``prompt`` tokens; each of shape (finished,). O(finished).
        """
        columns: dict[str, npt.NDArray[np.float64] | npt.NDArray[np.int64]] = {
            name: np.array(column, dtype=np.float64) for name, column in self._columns.items()
        }
        columns["tokens"] = np.array(self._tokens, dtype=np.int64)
        columns["prompt"] = np.array(self._prompts, dtype=np.int64)
        return columns

    def figures(self) -> dict[str, FloatArray]:
        """Per finished request, in seconds: ``ttft``, ``e2e``, ``pool_wait`` of shape (finished,); ``tpot`` and
        ``tpot_decoding`` only of those with more than one token. O(finished).
        """
        columns = self.finished_columns()
        several = columns["tokens"] > 1
        steps = columns["tokens"][several] - 1
        decoding = (columns["last"] - columns["first"])[several]
        waited = columns["pool_wait"]
        return {
            "ttft": np.maximum(columns["first"] - columns["arrival"], 0.0),
            "tpot": decoding / steps,
            "tpot_decoding": np.maximum(decoding - waited[several], 0.0) / steps,
            "e2e": np.maximum(columns["last"] - columns["arrival"], 0.0),
            "pool_wait": np.asarray(waited, dtype=np.float64),
        }

    def quantiles(self, at: Sequence[float]) -> dict[str, list[float] | None]:
        """Per figure of FIGURES its values at k quantiles within [0, 1], in seconds; None where nothing counts.

        By the rule of ``summary``, so equal to its percentiles. O(n log n + k · bins).
        """
        figures = {name: np.sort(values) for name, values in self.figures().items()}
        told: dict[str, list[float] | None] = {}
        for name in FIGURES:
            if name == "itl":
                gaps = [self._gaps.quantile(q) for q in at]
                told[name] = [gap for gap in gaps if gap is not None] or None
            else:
                ordered = figures[name]
                told[name] = [float(ordered[rank_of(q, len(ordered)) - 1]) for q in at] if len(ordered) else None
        return told

    def summary(self) -> dict[str, dict[str, float | None]]:
        """Per figure of FIGURES: ``mean``, ``p50``, ``p90``, ``p99``, ``max`` in seconds, None where nothing counts.

        O(n log n) in the finished requests. ``itl`` covers every gap between two tokens of one request, of requests
        that did not finish too, its quantiles within 0.1 % (see histogram); all others are exact, nearest-rank.
        """
        figures = self.figures()
        return {name: self._gaps.summary() if name == "itl" else summarize(figures[name]) for name in FIGURES}
