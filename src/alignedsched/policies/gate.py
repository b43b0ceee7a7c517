"""The gate: would sorted waves serve this backlog better than order of arrival, on this surface?

A closed form over the length classes of what queues, asked only when not all of it fits. In order of arrival a
device's residents are a random sample: as many as fit of the mean length, the longest of them distributed as the
maximum of so many draws. In sorted order they are all of about one length, class after class. Either way residents
run as they would (in rounds, where that pays). Prefill costs the same in both. Waves must be faster, not only kinder
to short requests: where they are not, the last of each wave would pay for the first.
"""

from __future__ import annotations

from collections.abc import Sequence

from attrs import frozen

from ..load import Costs, Load
from .rounds import RoundSettings, partition


@frozen
class Room:
    """What residents may take: tokens of KV and seats."""

    tokens: int
    seats: int


@frozen
class Gain:
    """Arrival order relative to waves: time for the whole backlog, and mean wait in it."""

    time: float
    wait: float


def gain(
    costs: Costs, classes: Sequence[tuple[int, int]], room: Room, output: float, prefills: bool, rounds: RoundSettings
) -> Gain:
    """``classes`` are (requests, prefill tokens) by ascending length; ``output`` tokens are expected of each request.

    O(classes²) prices for each class that may hold the longest resident.
    """
    count = sum(n for n, _ in classes)
    lengths = [tokens // n + int(output / 2) for n, tokens in classes]
    share = [n / count for n, _ in classes]
    work = [_prefill_seconds(costs, tokens // n) if prefills else 0.0 for n, tokens in classes]
    arrival = output * _sampled(costs, lengths, share, room, rounds)
    arrival += sum(s * w for s, w in zip(share, work, strict=True))
    done = waited = 0.0
    for length, s, w in zip(lengths, share, work, strict=True):
        n = max(1, min(room.seats, room.tokens // length))
        took = s * (output * costs.step_seconds(Load(n, n * length, length)) / n + w)
        waited += s * (done + took / 2)
        done += took
    return Gain(arrival / done, (arrival / 2) / waited)


def _prefill_seconds(costs: Costs, tokens: int) -> float:
    """What a prompt adds to the steps that compute it."""
    chunk = Load(1, 1, 1, ((0, tokens),))
    return max(0.0, costs.step_seconds(chunk) - costs.step_seconds(Load(1, 1, 1)))


def _sampled(costs: Costs, lengths: Sequence[int], share: Sequence[float], room: Room, rounds: RoundSettings) -> float:
    """Seconds a token with residents drawn at random."""
    mean = sum(length * s for length, s in zip(lengths, share, strict=True))
    n = max(1, min(room.seats, int(room.tokens / mean)))
    seconds = below = 0.0
    for index, s in enumerate(share):
        upto = min(1.0, below + s)
        chance = upto**n - below**n  # that the longest of n draws is of this class
        if chance > 0.001:
            seconds += chance * _residents(costs, lengths[: index + 1], share[: index + 1], n, rounds)
        below = upto
    return seconds / n


def _residents(costs: Costs, lengths: Sequence[int], share: Sequence[float], n: int, rounds: RoundSettings) -> float:
    """A round of ``n`` residents drawn from these classes, at least one of them from the last."""
    weight = sum(share)
    members, owed = [lengths[-1]], 0.0
    for length, s in zip(lengths, share, strict=True):
        owed += (n - 1) * s / weight
        whole = int(owed + 1e-9)
        owed -= whole
        members += [length] * whole
    members.sort()
    groups = partition(costs, members, rounds)
    return groups.seconds if groups else costs.step_seconds(Load(len(members), sum(members), members[-1]))
