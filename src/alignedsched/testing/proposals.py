"""What a policy may propose over a view: known ids, once each, in states where the proposal makes sense.

Whether there is room is the scheduler's business and no fault of a policy; naming what is not there is one.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from ..cluster import Cluster
from ..policies.protocols import Composition, Evict, Sacrifice, Take, Transfer
from .captured import Captured


def composition_faults(proposed: object, shown: Captured) -> Iterator[str]:
    """What is wrong with a composition. O(what the view shows)."""
    if not isinstance(proposed, Composition):
        yield f"compose returned {_kind(proposed)}, not a Composition"
        return
    pool = {request for request, *_ in shown.pool}
    members = {member for rank in shown.ranks for member, _ in rank.members}
    claimed = {*shown.candidates, *shown.joining}
    yield from _known("joins", proposed.joins, pool | claimed | {*shown.expected})
    yield from _known("candidates", proposed.candidates, pool | {*shown.candidates})
    yield from _known("parks", proposed.parks, members)
    yield from _known("unclaims", proposed.unclaims, claimed)
    both = {*proposed.joins} & {*proposed.candidates}
    if both:
        yield f"compose names {_few(both)} as joins and as candidates"


def wake_faults(proposed: object, now: float) -> Iterator[str]:
    """What is wrong with the times at which a composition wants to be asked again."""
    for name in ("wake_at", "look_at"):
        wake = getattr(proposed, name, None)
        if wake is None:
            continue
        if not isinstance(wake, int | float) or isinstance(wake, bool) or not math.isfinite(wake):
            yield f"compose: {name} is {wake!r}, not a finite time"
        elif wake <= now:
            yield f"compose: {name} {wake!r} is not after now ({now!r})"


def take_faults(proposed: Iterable[object], shown: Captured, max_tokens: int) -> Iterator[str]:
    """What is wrong with what admission takes."""
    takes = [take for take in proposed if isinstance(take, Take)]
    yield from (f"admit gave {_kind(p)}, not a Take" for p in proposed if not isinstance(p, Take))
    known = {waiting.request.id for waiting in shown.queue} | {begun.request for begun in shown.prefilling}
    yield from _known("admit", [take.request for take in takes], known)
    for take in takes:
        if not 0 <= take.rank < len(shown.ranks):
            yield f"admit: {take} on a rank the lane does not have"
        if type(take.tokens) is not int or not 0 < take.tokens <= max_tokens:
            yield f"admit: {take} of no tokens, or of more than a step may compute ({max_tokens})"


def victim_faults(proposed: Iterable[object], shown: Captured, rank: int) -> Iterator[str]:
    """What is wrong with the victims of a rank: members, or others whose KV may lie there."""
    pairs: list[tuple[Any, Any]] = []
    for victim in proposed:
        if isinstance(victim, tuple) and len(victim) == 2 and isinstance(victim[1], Sacrifice):
            pairs.append(victim)
        else:
            yield f"victims gave {victim!r}, not (id, Sacrifice)"
    members = {member for member, _ in shown.ranks[rank].members}
    others = {*shown.resident, *shown.candidates, *shown.joining, *(begun.request for begun in shown.prefilling)}
    yield from _known("victims", [request for request, _ in pairs], members | others)


def place_faults(proposed: Iterable[object], shown: Captured, cluster: Cluster) -> Iterator[str]:
    """What is wrong with wishes about where KV lies."""
    known = {request for request, _ in shown.entries}
    moved = [wish.request for wish in proposed if isinstance(wish, Transfer)]
    yield from _known("place (transfers)", moved, known)
    for wish in proposed:
        if isinstance(wish, Transfer):
            if wish.target not in cluster.tiers:
                yield f"place: {wish} to a tier that is not there"
        elif isinstance(wish, Evict):
            if wish.request not in known or wish.tier not in cluster.tiers:
                yield f"place: {wish} names what is not there"
        else:
            yield f"place gave {_kind(wish)}, neither Transfer nor Evict"


def rank_faults(proposed: object) -> Iterator[str]:
    """What is wrong with where a request is to queue."""
    if not isinstance(proposed, int | float) or math.isnan(proposed):
        yield f"rank returned {proposed!r}, not a number"


def _known(what: str, ids: Collection[object], known: Collection[str]) -> Iterator[str]:
    unknown = [one for one in ids if one not in known]
    if unknown:
        yield f"{what}: {_few(unknown)} not there, or in no state for it"
    twice = [one for one, count in Counter(ids).items() if count > 1]
    if twice:
        yield f"{what}: {_few(twice)} more than once"


def _few(ids: Iterable[object]) -> str:
    named = sorted(map(repr, ids))
    return ", ".join(named[:3]) + (f" and {len(named) - 3} more" if len(named) > 3 else "")


def _kind(thing: object) -> str:
    return f"{type(thing).__name__} {thing!r:.60}"
