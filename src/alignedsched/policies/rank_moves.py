"""Who should go over to another rank of a lane, where the cost surface says that this pays.

Placing evens the ranks when requests begin. What each of them makes nobody knows then, so ranks drift apart, and a
lockstep lane waits for its slowest one at every step. A member that goes from the slowest rank to a lighter one
shortens every step for as long as it lives, and has to pause for it: it leaves, its KV is copied over the link between
the two devices, and it joins there. So members move if the steps to come are shorter by more than that: counted for
all members together, and ``margin`` times over for each that moves, so that nobody pauses for others' sake. The steps
to come are ``ahead`` at most (by then other ends may have evened the ranks anyway), and no more than whoever moves is
expected to make.

Several moves are planned together, for with two equally slow ranks no single one helps. Each is the greedy step of
makespan balancing (list scheduling, Graham, SIAM J. Appl. Math. 17, 1969): the slowest rank gives to a lighter one
whoever leaves the slower of both as fast as can be.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable

from attrs import evolve, field, frozen

from ..load import Costs, Load
from ..request import RequestId
from ..views import LaneView
from .options import number, whole
from .rank_balance import RankLoad

Left = Callable[[RequestId], float]  # tokens that a member is expected to make from here on


@frozen
class MoveSettings:
    """``every``: steps from one look to the next. ``at_once``: members of a lane that may be under way together.

    ``patience_s``: nobody is under way for longer (seconds), and nobody sets out who would be for half of it.
    """

    ahead: int = field(default=256, validator=whole(1))
    every: int = field(default=32, validator=whole(1))
    margin: float = field(default=2.0, validator=number(1.0))
    at_once: int = field(default=8, validator=whole(1))
    patience_s: float = field(default=1.0, validator=number(0.0))


@frozen
class Move:
    """A member, the ranks it leaves and goes to, and its context length."""

    request: RequestId
    source: int
    target: int
    length: int


def lane_seconds(view: LaneView, costs: Costs) -> float:
    """The lane's next step as its members stand; 0 without any. O(ranks)."""
    batches = (rank.batch for rank in view.ranks)
    return max(costs.step_seconds(Load(len(b), b.total, b.longest)) if len(b) else 0.0 for b in batches)


def linked(view: LaneView, source: int, target: int) -> bool:
    """Whether KV can be copied from one rank to another now."""
    return source != target and view.route(view.ranks[source].tier, view.ranks[target].tier) is not None


def room_for(view: LaneView, rank: int, length: int) -> bool:
    """Whether a rank has the blocks for a member of that context length."""
    return view.layout.blocks(length) <= view.ranks[rank].free


def moves_that_pay(view: LaneView, costs: Costs, left: Left, settings: MoveSettings) -> list[Move]:
    """The moves to begin now. O(ranks) prices where the ranks are even, else O(members of the ranks that give)."""
    plan = _Plan(view, costs, settings.ahead // 2)  # gains are reckoned half way
    before, n = plan.slowest(), sum(len(rank.batch) for rank in view.ranks)
    pause = (2 + view.lane.run_ahead) * lane_seconds(view, costs)  # one step until it has left, then to join
    if n < 2 or (before - plan.mean()) * settings.ahead < settings.margin * pause:
        return []  # perfectly even ranks would not be worth one pause
    planned: list[Move] = []
    best, most, price, steps = 0, 0.0, 0.0, float(settings.ahead)
    links: dict[tuple[int, int], float] = {}  # seconds of copies, one after the other
    while len(planned) < settings.at_once and (move := plan.next_move()) is not None:
        link = move.source, move.target
        links[link] = links.get(link, 0.0) + _copy_seconds(view, move)
        each = pause + links[link]
        if each > settings.patience_s / 2:
            break
        planned.append(move)
        price += each
        steps = min(steps, left(move.request))
        gain = (before - plan.slowest()) * steps
        if gain > settings.margin * each and gain * n - price > most:
            best, most = len(planned), gain * n - price
    return planned[:best]


def _copy_seconds(view: LaneView, move: Move) -> float:
    link = view.route(view.ranks[move.source].tier, view.ranks[move.target].tier)
    assert link is not None
    return link.latency_s + view.layout.copy_bytes(0, move.length) / link.bytes_per_s


class _Plan:
    """The ranks as they would be after the moves planned so far, some steps ahead."""

    def __init__(self, view: LaneView, costs: Costs, ahead: int) -> None:
        self._view = view
        self._costs = costs
        self._ahead = ahead
        self._ranks = RankLoad.of(view, view.lane.max_tokens, view.lane.max_members)
        self._seconds = [rank.seconds(costs, ahead) for rank in self._ranks]
        self._members: dict[int, list[tuple[int, RequestId]]] = {}  # of ranks that give: by length, ascending

    def slowest(self) -> float:
        """Seconds of the lane's step."""
        return max(self._seconds)

    def mean(self) -> float:
        """Seconds of a step of the mean rank."""
        return sum(self._seconds) / len(self._seconds)

    def next_move(self) -> Move | None:
        """Plan one more, to the lightest rank that can take somebody; None if none would even the two."""
        ranks = sorted(self._ranks, key=lambda rank: (self._seconds[rank.rank], rank.rank))
        source = ranks.pop()
        for target in ranks:
            if target.seats > 0 and linked(self._view, source.rank, target.rank):
                move = self._between(source, target)
                if move is not None:
                    self._do(move)
                    return move
        return None

    def _between(self, source: RankLoad, target: RankLoad) -> Move | None:
        """Whoever leaves the slower of both as fast as can be: what one gives the other takes. O(log members)."""
        members, blocks = self._of(source.rank), self._view.layout.blocks
        room = target.free - blocks((target.n + 1) * self._ahead)  # what its members need as they grow
        at = bisect_left(members, True, key=lambda member: self._turns(source, target, member[0]))
        best, fastest = None, self._seconds[source.rank]
        for length, request in members[max(0, at - 1) : at + 1]:
            slower = max(self._without(source, length), target.seconds(self._costs, self._ahead, length))
            if slower < fastest and blocks(length) <= room:
                best, fastest = Move(request, source.rank, target.rank, length), slower
        return best

    def _turns(self, source: RankLoad, target: RankLoad, length: int) -> bool:
        """Whether the target would then be the slower one."""
        return target.seconds(self._costs, self._ahead, length) >= self._without(source, length)

    def _without(self, rank: RankLoad, length: int) -> float:
        return self._less(rank, length).seconds(self._costs, self._ahead)

    def _less(self, rank: RankLoad, length: int) -> RankLoad:
        """A rank without a member of that length."""
        members, longest = self._of(rank.rank), rank.longest
        if length == longest == members[-1][0] and len(members) > 1:
            longest = members[-2][0]
        return evolve(rank, n=rank.n - 1, total=rank.total - length, longest=longest)

    def _do(self, move: Move) -> None:
        source, target = self._ranks[move.source], self._ranks[move.target]
        self._ranks[move.source] = self._less(source, move.length)
        self._of(move.source).remove((move.length, move.request))
        target.take(move.length - 1, self._view.layout.blocks(move.length))
        for rank in (move.source, move.target):
            self._seconds[rank] = self._ranks[rank].seconds(self._costs, self._ahead)

    def _of(self, rank: int) -> list[tuple[int, RequestId]]:
        members = self._members.get(rank)
        if members is None:
            batch = self._view.ranks[rank].batch
            members = self._members[rank] = [(batch.context_length(member), member) for member in batch]
        return members
