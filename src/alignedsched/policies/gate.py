"""The gate: would sorted waves serve this backlog better than order of arrival, on this surface?

A closed form over the length classes of what queues, asked only when not all of it fits. In order of arrival a
device's residents are a random sample: as many as fit of the mean length, the longest of them distributed as the
maximum of so many draws. In sorted order they are neighbours in length, one deviceful after the other; a backlog that
is hardly more than one gains nothing, whatever its lengths. Either way residents
have made tokens of their own, which no order by length can know of: as many as draws from an exponential distribution
would be. Where outputs are long against prompts they spread the lengths as much in one order as in the other, and
waves gain little. Either way residents run as they would (in rounds, where that pays). Prefill costs the same in both.
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
    that the slower of both sets the pace.
    """

    tokens: int
    seats: int
    prefill: float = 0.0
    apart: bool = False


@frozen
class Gain:
    """Arrival order relative to waves: time for the whole backlog, and mean wait in it."""

    time: float
    wait: float


def gain(costs: Costs, classes: Sequence[tuple[int, int]], room: Room, output: float, rounds: RoundSettings) -> Gain:
    """``classes`` are (requests, prefill tokens) by ascending length; ``output`` tokens are expected of each request.

    O(classes²) prices for each class that may hold the longest resident, and for each deviceful.
    """
    count = sum(n for n, _ in classes)
    lengths = [tokens // n for n, tokens in classes]
    work = {n: room.prefill * _prefill_seconds(costs, n) if room.prefill else 0.0 for n in lengths}
    prefill = sum(n * work[length] for (n, _), length in zip(classes, lengths, strict=True))
    residents = _Residents(costs, evolve(room, seats=min(room.seats, count)), output / 2, rounds)
    done = waited = 0.0
    full = list(residents.neighbours([(n, length) for (n, _), length in zip(classes, lengths, strict=True)]))
    for members, times in full:
        begun = [0.0 if room.apart else seconds for seconds in accumulate(work[length] for length in members)]
        took = output * residents.round(members) + begun[-1]
        # Whoever is admitted first begins first; all of a deviceful decode for as long as it takes.
        waited += times * (len(members) * (done + (times - 1) * took / 2 + (took - begun[-1]) / 2) + sum(begun))
        done += times * took
    if count < (DEVICEFULS if room.apart or not room.prefill else 1) * len(full[0][0]):
        return Gain(1.0, 1.0)
    arrival = count * output * residents.drawn(lengths, [n / count for n, _ in classes])
    arrival += 0.0 if room.apart else prefill
    if room.apart:
        arrival, done = max(arrival, prefill), max(done, prefill)
    return Gain(arrival / done, count * (arrival / 2) / waited)


def _prefill_seconds(costs: Costs, tokens: int) -> float:
    """What a prompt adds to the steps that compute it."""
    chunk = Load(1, 1, 1, ((0, tokens),))
    return max(0.0, costs.step_seconds(chunk) - costs.step_seconds(Load(1, 1, 1)))


@frozen
class _Residents:
    """Seconds that those who fill a device take for a token; ``made`` is what each has made on average."""

    costs: Costs
    room: Room
    made: float
    rounds: RoundSettings

    def neighbours(self, classes: Sequence[tuple[int, int]]) -> Iterator[tuple[list[int], int]]:
        """Prompts of one deviceful after the other, and how often in a row; of classes (requests, prompt) ascending."""
        members: list[int] = []
        tokens = 0
        for count, length in classes:
            while count:
                each = length + int(self.made)
                more = min(self.room.seats - len(members), (self.room.tokens - tokens) // max(1, each))
                if more <= 0 and members:
                    yield members, 1
                    members, tokens = [], 0
                elif not members and count >= (whole := max(1, more)):
                    yield [length] * whole, count // whole
                    count %= whole
                else:
                    here = min(count, max(1, more))
                    members += [length] * here
                    tokens += here * each
                    count -= here
        if members:
            yield members, 1

    def drawn(self, lengths: Sequence[int], share: Sequence[float]) -> float:
        """Drawn at random from classes of these shares."""
        n = self._fit(sum(length * s for length, s in zip(lengths, share, strict=True)))
        seconds = below = 0.0
        for index, s in enumerate(share):
            upto = min(1.0, below + s)
            chance = upto**n - below**n  # that the longest of n draws is of this class
            if chance > 0.001:
                seconds += chance * self.round(_draw(lengths[: index + 1], share[: index + 1], n))
            below = upto
        return seconds / n

    def _fit(self, length: float) -> int:
        return max(1, min(self.room.seats, int(self.room.tokens / (length + self.made))))

    def round(self, prompts: Sequence[int]) -> float:
        """One token for each: their prompts, and tokens made spread over them as over as many exponential draws."""
        n = len(prompts)
        stride = next(step for step in range(int(0.618 * n) + 1, n + 2) if math.gcd(step, n) == 1)
        spread = (-math.log(1.0 - (at * stride % n + 0.5) / n) for at in range(n))
        members = sorted(prompt + int(self.made * more) for prompt, more in zip(prompts, spread, strict=True))
        groups = partition(self.costs, members, self.rounds)
        return groups.seconds if groups else self.costs.step_seconds(Load(n, sum(members), members[-1]))


def _draw(lengths: Sequence[int], share: Sequence[float], n: int) -> list[int]:
    """``n`` prompts of these classes by their shares, at least one of them of the last class; ascending."""
    last = share[-1] / sum(share)
    expected = n * last / (1.0 - (1.0 - last) ** n) if last < 1.0 else n  # of the last class, given that one is
    longest = [lengths[-1]] * min(n, max(1, round(expected)))
    rest: list[int] = []
    owed, shorter = 0.0, sum(share[:-1])
    for length, s in zip(lengths[:-1], share[:-1], strict=True):
        owed += (n - len(longest)) * s / shorter if shorter else 0.0
        here = int(owed + 0.5)
        owed -= here
        rest += [length] * here
    return rest + longest
