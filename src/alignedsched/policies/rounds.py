"""Rounds: what lies in a lane's device decodes in groups of similar context length, one after the other.

Everybody advances by the same number of steps a round, so a round costs the sum of its groups' steps. Members sorted
by length, the best grouping is an interval partition: under equal progress an exchange of two members between groups
that overlap never makes the sum smaller. It is found by a dynamic programme over length classes. Where attention
costs what its tokens cost (``balanced``), or the longest member binds however few there are (``unsplit``), one group
is always cheapest; ``padded`` pays members times the longest, and on ``gated`` a group below the gate pays no
imbalance at all, so long members run apart from the many short ones. Nobody's KV moves: who sits out a turn stays in
the device.

*Deep* rounds hold more requests than the lane has seats for: groups leave seats empty, and a lane that only decodes has
others pooled who could take them. Then no group has more members than seats (but of one length, who take turns in its
turn), and groups there have to be until no more are left than have seats.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate, pairwise

from attrs import define, field, frozen

from ..errors import CallerError
from ..lengths import length_class
from ..load import Costs, Load
from ..outside import is_count, is_number, show
from ..request import RequestId
from ..views import BatchReader
from .options import number, whole
from .protocols import PlainData

ANY = 1 << 60  # longer than any context
PROBE_STEPS = 4  # of a turn in which nearly all run together, to see what that costs
PROBE_EVERY = 50  # steps, of which at most one is spent so
WAIT_S = 30.0  # nobody who has begun sits out for longer, unless another bound is given
WAITS_A_TARGET = 4.0  # a gap of a few targets is made good by the tokens around it; a longer one is seen


@frozen
class RoundSettings:
    """When rounds are run, and how long turns last.

    ``bubble``: the share of a common step that imbalance must cost before a partition is looked for; ``saving``: the
    share of it that the best partition must save. ``round_s``: seconds in which every group should have its turn: long
    enough to pay for switching, short against what a reader notices; a turn has ``least`` to ``most`` steps.
    ``wait_s``: the longest that anybody who has begun sits out (``None``: no bound). ``tpot_target_s``: where a common
    step takes no longer than that, nobody sits out for longer than ``WAITS_A_TARGET`` times it; where it takes longer,
    the target is missed without rounds, and with them everybody's tokens come faster. ``deep``: in rounds a lane that
    only decodes holds up to so many times the requests that it has seats for (but not with a target), each group with
    all the seats, where that saves a share of ``deep_saving``: who shares with more of them waits longer for its last
    token, unless all are faster for it.
    """

    bubble: float = field(default=0.1, validator=number(0.0, 1.0))
    saving: float = field(default=0.1, validator=number(0.0, 1.0))
    round_s: float = field(default=1.0, validator=number(0.001))
    wait_s: float | None = field(default=WAIT_S, validator=number(0.0, none=True))
    tpot_target_s: float | None = field(default=None, validator=number(0.0, none=True))
    least: int = field(default=4, validator=whole(1))
    most: int = field(default=64, validator=whole(1))
    deep: float = field(default=4.0, validator=number(1.0))
    deep_saving: float = field(default=0.15, validator=number(0.0, 1.0))

    def residents(self, seats: int, turn: Turn | None) -> int:
        """Requests that a lane with so many seats, which only decodes, may hold."""
        return int(self.deep * seats) if turn is not None and turn.deep and self.tpot_target_s is None else seats

    def longest_wait(self, together: float = 0.0) -> float:
        """Seconds that nobody sits out longer than, where a common step takes so many."""
        wait = math.inf if self.wait_s is None else self.wait_s
        target = self.tpot_target_s
        return wait if target is None or together > target else min(wait, WAITS_A_TARGET * target)


@frozen
class Turn:
    """The group that runs: context lengths ``low`` <= length < ``high`` at step ``first``, up to step ``until``.

    ``pace`` is the seconds foreseen for one of its steps; ``round_step`` and ``round_at`` are where and when the round
    began that the turn is part of, and ``groups`` is how many groups there are (1: nearly all run, as a probe without
    the shortest, or because the longest are set aside). ``probe_at``: the first step at which a probe may begin.
    ``wait``: the longest that anybody may sit out (seconds). ``sets_aside``: it is no part of a round: who is far too
    long sits out, or has come back for a few steps. ``deep``: to hold more requests than there are seats for pays.
    """

    low: int
    high: int
    first: int
    until: int
    round_step: int
    round_at: float
    pace: float
    groups: int
    probe_at: int
    wait: float = math.inf
    sets_aside: bool = False
    deep: bool = False

    def holds(self, length: int) -> bool:
        """Whether a request that does not run belongs to the group."""
        return self.low <= length < self.high

    def wake_at(self, step: int, now: float) -> float:
        """When the turn should be over at the pace foreseen, seen from ``step``.

        Where steps are slower it is not over then, and its end is foreseen anew. At a pace measured it might be passed
        by far: a round's other groups are slower, and so are the steps under way when a turn begins.
        """
        return now + max(1, self.until - step) * self.pace

    def strays(self, batch: BatchReader, step: int) -> list[RequestId]:
        """Members that do not belong to the group. O(1) where there are none; members grow with the steps."""
        if not len(batch):
            return []
        end = self.high + max(0, step - self.first)
        if batch.shortest >= self.low and batch.longest < end:
            return []
        return [member for member in batch if not self.low <= batch.context_length(member) < end]

    def plain(self) -> PlainData:
        wait = None if math.isinf(self.wait) else self.wait
        return [
            self.low, self.high, self.first, self.until, self.round_step, self.groups, self.probe_at,
            self.round_at, self.pace, wait, self.sets_aside, self.deep,
        ]  # fmt: skip

    @staticmethod
    def from_plain(plain: PlainData) -> Turn:
        """Raises CallerError for anything but seven integers, three numbers (the last may be None) and two flags."""
        if not isinstance(plain, list) or len(plain) != 12 or not all(map(is_number, plain[7:9])):
            raise CallerError(f"a turn is seven integers, three numbers and two flags, got {show(plain)}")
        low, high, first, until, step, groups, probe, at, pace, wait, aside, deep = plain
        if not all(map(is_count, (low, high, first, until, step, groups, probe))) or not groups:
            raise CallerError(f"a turn begins with seven integers, the sixth of them above 0, got {show(plain)}")
        if not (wait is None or is_number(wait)) or not (isinstance(aside, bool) and isinstance(deep, bool)):
            raise CallerError(f"a turn ends with seconds or None, and two flags, got {show(plain)}")
        longest = math.inf if wait is None else float(wait)
        return Turn(low, high, first, until, step, float(at), float(pace), groups, probe, longest, aside, deep)  # type: ignore[arg-type]


@frozen
class Partition:
    """Groups by length: ``edges`` between them, a round's seconds, what running together would take, and if it pays."""

    edges: tuple[int, ...]
    seconds: float
    together: float
    pays: bool = True


@define(eq=False)
class _Programme:
    """The dynamic programme: ``cuts`` are indexes into the sorted lengths at which a group may begin."""

    costs: Costs
    lengths: Sequence[int]
    sums: Sequence[int]
    seats: int

    def group(self, low: int, high: int) -> float:
        """Seconds for a token each."""
        n, total, longest = high - low, self.sums[high] - self.sums[low], self.lengths[high - 1]
        if n <= self.seats:
            return self.costs.step_seconds(Load(n, total, longest))
        return n / self.seats * self.costs.step_seconds(Load(self.seats, total * self.seats // n, longest))

    def best(self, cuts: Sequence[int]) -> tuple[float, list[int]]:
        """The least seconds of a round and the cuts inside it; what is not cut may be more than there are seats for.

        O(classes²) prices.
        """
        least, back = [0.0], [0]
        for j in range(1, len(cuts)):
            fitting = (i for i in range(j) if i == j - 1 or cuts[j] - cuts[i] <= self.seats)
            seconds, start = min((least[i] + self.group(cuts[i], cuts[j]), -i) for i in fitting)
            least.append(seconds)
            back.append(-start)
        inside = []
        at = back[-1]
        while at > 0:
            inside.append(cuts[at])
            at = back[at]
        return least[-1], inside[::-1]


def partition(
    costs: Costs, lengths: Sequence[int], settings: RoundSettings, seats: int = ANY, must: bool = False
) -> Partition | None:
    """The best groups of members of these ascending context lengths; None where running all together is good enough.

    No group has more than ``seats`` (but of one length). Where members are more than that, running together means in
    as many steps as it takes, each with members of all lengths. ``must``: groups there have to be.

    One price where imbalance costs little; else O(classes²) prices, at most a few hundred.
    """
    if len(lengths) < 2:
        return None
    load = _mixed(lengths, seats)
    times = len(lengths) / load.n
    together = times * costs.step_seconds(load)
    if not must and together - times * costs.balanced_seconds(load) <= settings.bubble * together:
        return None
    widest = max(1, seats // 4) if len(lengths) > seats else ANY  # members between two cuts, so that groups can be full
    cuts = [0]
    for index, (shorter, longer) in enumerate(pairwise(lengths), 1):
        if length_class(longer) != length_class(shorter) or (shorter < longer and index - cuts[-1] >= widest):
            cuts.append(index)
    cuts.append(len(lengths))
    seconds, inside = _Programme(costs, lengths, [0, *accumulate(lengths)], seats).best(cuts)
    saving = settings.deep_saving if len(lengths) > seats else settings.saving
    pays = bool(inside) and seconds <= (1.0 - saving) * together
    return Partition(tuple(lengths[index] for index in inside), seconds, together, pays) if pays or must else None


def _mixed(lengths: Sequence[int], seats: int) -> Load:
    """A step of as many of them as there are seats for, of all lengths, the longest with them."""
    n = min(len(lengths), seats)
    members = lengths if n == len(lengths) else [lengths[(at + 1) * len(lengths) // n - 1] for at in range(n)]
    return Load(n, sum(members), members[-1])


def next_turn(
    costs: Costs,
    lengths: Sequence[int],
    last: Turn | None,
    step: int,
    now: float,
    settings: RoundSettings,
    urgent: int | None = None,
    curious: bool = False,
    seats: int = ANY,
    must: bool = False,
) -> Turn | None:
    """The turn of the next longer group after ``last`` (or of the shortest); None if all should run together.

    Turns of a round have equally many steps. ``lengths`` are the residents', ascending. With ``urgent``, the length of
    one who has waited too long, it is that one's group's turn. All run together, too, where even the shortest round
    would keep somebody waiting for more than half of the longest wait. ``curious``: before the next round all but the
    shortest should run together for a few steps, to see what that costs. At most one of ``PROBE_EVERY`` steps is spent
    so. No group has more than ``seats``; ``must``: all cannot run together, so there is a turn whatever it costs.
    """
    groups = partition(costs, lengths, settings, seats, must)
    if groups is None:
        return None
    edges = (1, *groups.edges, ANY)
    wait = settings.longest_wait(groups.together)
    # Only where a round is well within the longest wait, so that no group waits for too long.
    deep = len(lengths) > seats and groups.pays and 16 * settings.least * groups.seconds <= wait
    if len(lengths) > seats and not deep and not must:
        return None
    opens = last is None or last.high >= ANY
    probe_at = _probe_at(last, step)
    if curious and opens and step >= probe_at:
        # It may be as fast as if balanced. The shortest sit out: a lane where nobody waits is not asked again.
        pace = costs.balanced_seconds(_mixed(lengths, seats))
        return Turn(lengths[0] + 1, ANY, step, step + PROBE_STEPS, step, now, pace, 1, probe_at, wait)
    steps = _steps(groups, last, step, now, wait, settings, must) if last is None or opens else last.until - last.first
    if steps is None:
        return None
    if len(lengths) > seats:  # however many groups there have come to be, and whoever finds no seat in its group's turn
        steps = max(1, int(min(steps, wait / (4 * groups.seconds))))
    begun = (step, now) if last is None or opens else (last.round_step, last.round_at)
    after = urgent if urgent is not None else 1 if last is None or opens else last.high
    spans = [span for span in pairwise(edges) if span[1] > after]
    for low, high in [*spans, *pairwise(edges)]:
        first, end = bisect_left(lengths, low), bisect_left(lengths, high)
        if first < end:
            members = lengths[first:end]
            pace = costs.step_seconds(_mixed(members, seats))
            return Turn(low, high, step, step + steps, *begun, pace, len(edges) - 1, probe_at, wait, deep=deep)
    return None


def _probe_at(last: Turn | None, step: int) -> int:
    """The first step at which a probe may begin: rounds begin without one, and each pays for those that follow it."""
    if last is None:
        return step + (PROBE_EVERY - 1) * PROBE_STEPS
    return step + (PROBE_EVERY - 1) * (step - last.first) if last.groups == 1 else last.probe_at


def _steps(
    groups: Partition, last: Turn | None, step: int, now: float, wait: float, settings: RoundSettings, must: bool
) -> int | None:
    """Steps for each turn of a new round: as many as fit in ``round_s``; None if somebody would wait for too long.

    At the pace foreseen, or, where prefill slows the lane, at the pace of the last round. Where there ``must`` be a
    round, fewer than the least, as many as fit in half of the wait.
    """
    turns = len(groups.edges) + 1
    pace = groups.seconds / turns
    if last is not None and step > last.round_step:
        pace = max(pace, (now - last.round_at) / (step - last.round_step))
    if settings.least * turns * pace > wait / 2:
        return max(1, int(wait / (2 * turns * pace))) if must else None
    return max(settings.least, min(settings.most, int(settings.round_s / (turns * pace))))
