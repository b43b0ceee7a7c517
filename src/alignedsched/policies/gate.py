"""The gate: would sorted waves serve this backlog better than order of arrival, on this surface?

A closed form over the length classes of what queues, asked only when not all of it fits. In order of arrival a
device's residents are a random sample: as many as fit of the mean length, the longest of them distributed as the
maximum of so many draws; whoever makes more tokens is met the more often. In sorted order they are neighbours in
length, one deviceful after the other; a backlog that is hardly more than one gains nothing, whatever its lengths.
Either way residents have made tokens of their own, which no order by length can know of: as many as draws from an
exponential distribution would be. Where outputs are long against prompts they spread the lengths as much in one order
as in the other, and waves gain little. Either way residents run as they would (in rounds, where that pays), and whoever
is grouped, by waves or rounds, leaves some room free to grow into, which costs members. Prefill costs the same in both.
Waves must be faster, not only kinder to short requests: where they are not, the last of each wave would pay for the
first.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import accumulate

from attrs import evolve, frozen

from ..load import Costs, Load
from .rounds import RoundSettings, partition

DEVICEFULS = 2  # a backlog of less has hardly an order for who only decodes: most of it runs together anyhow


@frozen
class Room:
    """What serves the backlog: tokens of KV and seats of a device that decodes.

    ``prefill``: such devices for each one that prefills (0: all is prefilled already); ``apart``: those are others, so
    that the slower of both sets the pace. ``spare``: tokens kept free for each member while members are grouped.
    """

    tokens: int
    seats: int
    prefill: float = 0.0
    apart: bool = False
    spare: int = 0


@frozen
class Class:
    """Requests alike: how many, their prompt tokens, and the tokens that each is expected to make."""

    count: int
    prompt: int
    output: float

    @property
    def length(self) -> float:
        """The mean context length while one of them decodes: what waves are sorted by."""
        return self.prompt + self.output / 2


@frozen
class Gain:
    """Arrival order relative to waves: time for the whole backlog, and mean wait in it.

    ``told``: the share of requests whose prompt says more of their length than their output does.
    """

    time: float
    wait: float
    told: float = 1.0


def gain(costs: Costs, backlog: Sequence[Class], room: Room, rounds: RoundSettings) -> Gain:
    """What waves would gain on this backlog.

    O(classes²) prices for each class that may hold the longest resident, and for each deviceful.
    """
    classes = sorted(backlog, key=lambda c: (c.length, c.prompt))
    count = sum(c.count for c in classes)
    work = {c.prompt: room.prefill * _prefill_seconds(costs, c.prompt) if room.prefill else 0.0 for c in classes}
    prefill = sum(c.count * work[c.prompt] for c in classes)
    residents = _Residents(costs, evolve(room, seats=min(room.seats, count)), rounds)
    # In full, though with fewer members a step is shorter, too: whoever begins waves should be sure.
    price = residents.devicefuls(classes, room.spare) / residents.devicefuls(classes)
    done = waited = 0.0
    full = list(residents.neighbours(classes))
    for members, times in full:
        begun = [0.0 if room.apart else seconds for seconds in accumulate(work[c.prompt] for c in members)]
        took = price * sum(c.output for c in members) / len(members) * residents.round(members)[0] + begun[-1]
        # Whoever is admitted first begins first; all of a deviceful decode for as long as it takes.
        waited += times * (len(members) * (done + (times - 1) * took / 2 + (took - begun[-1]) / 2) + sum(begun))
        done += times * took
    if count < (DEVICEFULS if room.apart or not room.prefill else 1) * len(full[0][0]):
        return Gain(1.0, 1.0)
    arrival = sum(c.count * c.output for c in classes) * residents.drawn(classes, price)
    arrival += 0.0 if room.apart else prefill
    if room.apart:
        arrival, done = max(arrival, prefill), max(done, prefill)
    told = sum(c.count for c in classes if 2 * c.prompt >= c.output) / count
    return Gain(arrival / done, count * (arrival / 2) / waited, told)


def _prefill_seconds(costs: Costs, tokens: int) -> float:
    """What a prompt adds to the steps that compute it."""
    chunk = Load(1, 1, 1, ((0, tokens),))
    return max(0.0, costs.step_seconds(chunk) - costs.step_seconds(Load(1, 1, 1)))


@frozen
class _Residents:
    """Seconds that those who fill a device take for a token. Each has made half of its output on average."""

    costs: Costs
    room: Room
    rounds: RoundSettings

    def neighbours(self, classes: Sequence[Class]) -> Iterator[tuple[list[Class], int]]:
        """One deviceful after the other, a class for each member, and how often in a row; of ascending classes."""
        members: list[Class] = []
        tokens = 0
        for c in classes:
            count, each = c.count, int(c.length)
            while count:
                more = min(self.room.seats - len(members), (self.room.tokens - tokens) // max(1, each))
                if more <= 0 and members:
                    yield members, 1
                    members, tokens = [], 0
                elif not members and count >= (whole := max(1, more)):
                    yield [c] * whole, count // whole
                    count %= whole
                else:
                    here = min(count, max(1, more))
                    members += [c] * here
                    tokens += here * each
                    count -= here
        if members:
            yield members, 1

    def devicefuls(self, classes: Sequence[Class], spare: int = 0) -> float:
        """How many times they fill a device, each with so many tokens more than it has."""
        tokens, count = sum(c.count * (c.length + spare) for c in classes), sum(c.count for c in classes)
        return max(tokens / self.room.tokens, count / self.room.seats)

    def drawn(self, classes: Sequence[Class], price: float) -> float:
        """Drawn at random, by the tokens that classes make; in rounds that times ``price``."""
        made = sum(c.count * c.output for c in classes)
        share = [c.count * c.output / made for c in classes]
        n = self._fit(sum(c.length * s for c, s in zip(classes, share, strict=True)))
        seconds = below = 0.0
        for index, s in enumerate(share):
            upto = min(1.0, below + s)
            chance = upto**n - below**n  # that the longest of n draws is of this class
            if chance > 0.001:
                took, grouped = self.round(_draw(classes[: index + 1], share[: index + 1], n))
                seconds += chance * took * (price if grouped else 1.0)
            below = upto
        return seconds / n

    def _fit(self, length: float) -> int:
        return max(1, min(self.room.seats, int(self.room.tokens / max(1.0, length))))

    def round(self, members: Sequence[Class]) -> tuple[float, bool]:
        """One token for each, and whether it is in rounds.

        Lengths are prompts, and tokens made spread over members as over as many exponential draws.
        """
        n = len(members)
        stride = next(step for step in range(int(0.618 * n) + 1, n + 2) if math.gcd(step, n) == 1)
        spread = (-math.log(1.0 - (at * stride % n + 0.5) / n) for at in range(n))
        lengths = sorted(c.prompt + int(c.output / 2 * more) for c, more in zip(members, spread, strict=True))
        groups = partition(self.costs, lengths, self.rounds)
        if groups:
            return groups.seconds, True
        return self.costs.step_seconds(Load(n, sum(lengths), lengths[-1])), False


def _draw(classes: Sequence[Class], share: Sequence[float], n: int) -> list[Class]:
    """``n`` members of these classes by their shares, at least one of them of the last class; ascending."""
    last = share[-1] / sum(share)
    expected = n * last / (1.0 - (1.0 - last) ** n) if last < 1.0 else n  # of the last class, given that one is
    longest = [classes[-1]] * min(n, max(1, round(expected)))
    rest: list[Class] = []
    owed, shorter = 0.0, sum(share[:-1])
    for c, s in zip(classes[:-1], share[:-1], strict=True):
        owed += (n - len(longest)) * s / shorter if shorter else 0.0
        here = int(owed + 0.5)
        owed -= here
        rest += [c] * here
    return rest + longest
