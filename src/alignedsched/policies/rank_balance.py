"""Who goes to which rank of a lane: equal loads at every step, for a lockstep lane waits for its slowest rank.

With data-parallel attention each rank has its own members and KV, and every step lasts as long as the slowest rank's.
What has to be equal are the ranks' *loads* (the sum of context lengths under a balanced surface), not the lengths
within a rank. Three moves serve that, all at the one moment when moving is free, before a request has KV:

* a request goes to the rank whose step would be the shortest with it, ``ahead`` steps from now (by then all members
  have grown, so that a rank of many short ones counts for what it becomes);
* where one rank has an opening, the request for it is chosen among the first ``window`` that queue: the one that
  brings the rank closest to the mean of all. Whoever is first in the queue is passed by fewer than ``window`` others;
* prefill is begun on many ranks at once: while one computes a prompt alone, all others wait for it.

Taking requests as they come is Graham's list scheduling; the longest first would be his LPT (SIAM J. Appl. Math. 17,
1969), which the window comes close to without letting anybody wait for ever.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

from attrs import define, evolve, field

from ..errors import CallerError
from ..load import Costs, Load
from ..outside import is_number, show
from ..queue import Waiting
from ..request import Request
from ..views import LaneView
from .admission import ArrivalOrder
from .lane_share import EvenShare, gives_way
from .options import flag, one_of, whole
from .protocols import PlainData, Stepped, Take

PLACES = ("least", "round_robin")
UNTOLD = 1e12  # seconds: longer than any prefill is worth waiting for
EVEN = 0.05  # ranks within this share of the mean are even enough to go on in order of arrival


@define(eq=False)
class RankLoad:
    """One rank while it is filled: what it runs and is about to run, and what it can still take."""

    rank: int
    n: int
    total: int
    longest: int
    tokens: int
    free: int
    seats: int

    @staticmethod
    def of(view: LaneView, budget: int, max_members: int) -> list[RankLoad]:
        """The ranks as they stand, requests in prefill counted with what they still have to compute. O(ranks).

        Candidates on their way from rank to rank may join at either end, so each rank keeps a seat for each of them.
        """
        coming = len(view.candidates)
        loads = [
            RankLoad(
                rank.rank,
                len(rank.batch),
                rank.batch.total,
                rank.batch.longest,
                budget - len(rank.batch),
                rank.free,
                max_members - len(rank.batch) - rank.waiting - coming,
            )
            for rank in view.ranks
        ]
        for begun in view.prefilling:
            loads[begun.rank].add(begun.remaining)
        return loads

    def add(self, length: int) -> None:
        """One more member of that context length."""
        self.n += 1
        self.total += length
        self.longest = max(self.longest, length)

    def take(self, prefill_tokens: int, blocks: int) -> None:
        """A request begins its prefill here."""
        self.add(prefill_tokens + 1)
        self.tokens -= min(prefill_tokens, self.tokens)
        self.free -= blocks
        self.seats -= 1

    def seconds(self, costs: Costs | None, ahead: int, length: int = 0) -> float:
        """Its step in so many steps' time, with one more member if a length is given; unknown costs: tokens."""
        n = self.n + (1 if length else 0)
        total = self.total + length + n * ahead
        if costs is None or not n:
            return float(total)
        return costs.step_seconds(Load(n, total, max(self.longest, length) + ahead))


def least(ranks: Sequence[RankLoad], costs: Costs | None, length: int, ahead: int) -> RankLoad | None:
    """The rank whose step is the shortest with one more member of that length; None of none. O(ranks)."""
    return min(ranks, key=lambda rank: (rank.seconds(costs, ahead, length), rank.total, rank.rank), default=None)


@define(eq=False)
class RankOrder:
    """Admission: prefill in about the order of arrival, placed so that a lane's ranks stay equally loaded.

    On a lane of one rank it is ``ArrivalOrder``. ``place="round_robin"`` binds requests to ranks in turn as they
    arrive, each rank with a queue of its own, as SGLang's data-parallel controller does: the baseline. It looks at
    ``scan`` queued requests at most. ``least`` costs O(window + ranks) step costs a request taken; with
    ``by_priority`` nobody passes anybody. It has to be among the policy's watches: it counts how long ago a lane last
    had prefill.
    """

    token_budget: int | None = field(default=None, validator=whole(1, none=True))
    by_priority: bool = field(default=False, validator=flag())
    place: str = field(default="least", validator=one_of(PLACES))
    window: int = field(default=8, validator=whole(1))
    ahead: int = field(default=64, validator=whole(0))
    scan: int = field(default=512, validator=whole(1))
    _decoded: dict[str, float] = field(init=False, factory=dict)  # seconds since a lane's last step with prefill

    def rank(self, request: Request) -> float:
        return -float(request.priority) if self.by_priority else 0.0

    def admit(self, view: LaneView) -> Iterator[Take]:
        """See Admission."""
        if len(view.ranks) == 1:
            yield from ArrivalOrder(self.token_budget).admit(view)
            return
        if not view.prefilling and not len(view.queue):
            return
        lane = view.lane
        ranks = RankLoad.of(view, min(self.token_budget or lane.max_tokens, lane.max_tokens), lane.max_members)
        for begun in view.prefilling:
            take = min(begun.remaining, ranks[begun.rank].tokens)
            if take > 0:
                ranks[begun.rank].tokens -= take
                yield Take(begun.request, take, begun.rank)
        if view.role.decodes and gives_way(view):
            return  # who was preempted with its KV goes on before anybody new begins
        yield from self._begin(view, ranks)

    def _begin(self, view: LaneView, ranks: Sequence[RankLoad]) -> list[Take]:
        """Those that begin now; none if it is better to wait."""
        share = EvenShare.of(view, len(view.queue)) if view.role.decodes else None
        pairs = self._bound(view, ranks) if self.place == "round_robin" else self._chosen(view, ranks)
        begin: list[Take] = []
        work = [0] * len(ranks)  # prefill tokens of those who begin
        for waiting, rank in islice(pairs, len(view.queue) if share is None else share.most):
            need = view.layout.blocks(waiting.prefill_tokens + 1)
            if share is not None and len(begin) >= share.need(need):
                break
            begin.append(Take(waiting.request.id, min(waiting.prefill_tokens, rank.tokens), rank.rank))
            work[rank.rank] += waiting.prefill_tokens
            rank.take(waiting.prefill_tokens, need)
        if begin and self.place == "least" and not view.prefilling and self._waits(view, work):
            return []
        return begin

    @staticmethod
    def _fits(view: LaneView, waiting: Waiting, rank: RankLoad, ahead: int = 0) -> bool:
        """Whether a rank can take it, and keep what all its members need in the coming steps."""
        room = view.layout.blocks(waiting.prefill_tokens + 1) + view.layout.blocks(rank.n * ahead)
        return room <= rank.free and rank.tokens > 0 and rank.seats > 0

    def _bound(self, view: LaneView, ranks: Sequence[RankLoad]) -> Iterator[tuple[Waiting, RankLoad]]:
        """Each rank's own queue, in order of arrival; the first that does not fit blocks those behind it there."""
        blocked: dict[int, None] = {}
        for waiting in islice(view.queue, self.scan):
            rank = ranks[waiting.order % len(ranks)]
            if rank.rank in blocked or not view.eligible(waiting.request):
                continue
            if self._fits(view, waiting, rank):
                yield waiting, rank
            else:
                blocked[rank.rank] = None
                if len(blocked) == len(ranks):
                    return

    def _chosen(self, view: LaneView, ranks: Sequence[RankLoad]) -> Iterator[tuple[Waiting, RankLoad]]:
        """The least loaded open rank first: who comes next in the queue, or who evens it out.

        Only those may pass the first in the queue whose arrival number is less than ``window`` above its own: there
        are never more of them than that.
        """
        queue = (waiting for waiting in view.queue if view.eligible(waiting.request))
        reach = 1 if self.by_priority else self.window
        window = list(islice(queue, reach))
        while window:
            near = [waiting for waiting in window if waiting.order - window[0].order < reach]
            pair = self._pair(view, near, ranks)
            if pair is None:
                return
            window.remove(pair[0])
            window += islice(queue, 1)
            yield pair

    def _pair(
        self, view: LaneView, window: Sequence[Waiting], ranks: Sequence[RankLoad]
    ) -> tuple[Waiting, RankLoad] | None:
        costs, ahead = view.costs, self.ahead
        now = [rank.seconds(costs, ahead) for rank in ranks]
        mean = sum(now) / len(ranks)
        for rank in sorted(ranks, key=lambda rank: (now[rank.rank], rank.rank)):
            fitting = [w for w in window if self._fits(view, w, rank, self.ahead if w is not window[0] else 0)]
            if not fitting:
                continue
            here = now[rank.rank]
            if abs(here - mean) <= EVEN * mean:
                return fitting[0], rank  # even enough: who comes first
            after = {w.request.id: rank.seconds(costs, ahead, w.prefill_tokens + 1) for w in fitting}
            goal = sum(after.values()) / len(after) + mean - here
            return min(fitting, key=lambda w: (abs(after[w.request.id] - goal), w.order)), rank
        return None

    def _waits(self, view: LaneView, work: Sequence[int]) -> bool:
        """Whether prefill waits for openings on more ranks; the lane goes on decoding meanwhile.

        Begun now, the other ranks idle for their share of the prefill. Waiting wastes the share of the blocks that are
        free. So it waits until the second, since the last prefill, has cost as much as the first would: at most about
        twice what the better of both would have cost, had it been known when openings come (the ski rental rule).
        """
        costs, members = view.costs, sum(len(rank.batch) for rank in view.ranks)
        if costs is None or not members:
            return False
        slowest = max(view.ranks, key=lambda rank: (len(rank.batch), -rank.rank)).batch
        load = Load(len(slowest), slowest.total, slowest.longest)
        longest = max(work)
        prefill = costs.step_seconds(evolve(load, chunks=((0, longest),))) - costs.step_seconds(load)
        idle = 1 - sum(work) / (len(work) * longest)
        vacant = sum(rank.free for rank in view.ranks) / max(1, sum(rank.capacity for rank in view.ranks))
        return self._decoded.get(view.lane.id, 0.0) * vacant < prefill * idle

    # -- the watch

    def stepped(self, facts: Stepped) -> None:
        """Count the seconds a lane has decoded since its last prefill; where they are not told, prefill never waits."""
        if facts.seconds > 0:
            before = self._decoded.get(facts.lane, 0.0)
            self._decoded[facts.lane] = 0.0 if facts.prefill else before + facts.seconds
        else:
            self._decoded[facts.lane] = UNTOLD

    def ended(self, request: Request, produced: int, finished: bool) -> None:
        """Nothing to learn."""

    def state(self) -> PlainData:
        """Seconds by lane."""
        return dict(self._decoded)

    def load(self, state: PlainData) -> None:
        """Restore ``state()``. Raises CallerError if it is no such state, and then changes nothing."""
        if not isinstance(state, dict) or not all(is_number(seconds, 0.0) for seconds in state.values()):
            raise CallerError(f"RankOrder: its state maps lanes to seconds, got {show(state)}")
        self._decoded = {lane: float(seconds) for lane, seconds in state.items()}  # type: ignore[arg-type]
