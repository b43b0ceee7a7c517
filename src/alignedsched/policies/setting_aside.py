"""Setting aside: the few members that are far too long sit out while a wave of shorter requests goes by.

Where the longest member binds a step (``unsplit``), one of a hundred thousand tokens makes everybody wait at every
step, and equal progress cannot help: whoever runs with it gains nothing, whoever runs without it pays for a step more.
But while sorted waves are on, as long ones as it are to come, at the wave's end, and run with it then at no further
cost. Until then the others go on alone, many times faster. Nobody's KV moves: who is set aside keeps its seat and
blocks, and is brought back for a few steps before it has sat out for longer than allowed.

That costs nothing only as long as nobody needs the room: so the blocks that are set aside must be free once more.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..load import Costs, Load
from .rounds import ANY, RoundSettings, Turn

FEW = 4  # at most one of so many members is set aside
FASTER = 2.0  # as much work in less time, by this factor at least


def without_the_longest(
    costs: Costs, lengths: Sequence[int], step: int, now: float, room: int, overdue: bool, settings: RoundSettings
) -> Turn | None:
    """The turn of all but the longest members; None where imbalance would not cost much less without them.

    ``lengths`` are the residents', ascending, at least one, and ``room`` is the tokens that would fit besides them.
    With ``overdue``, when somebody has sat out for long, it is everybody's turn for a few steps. O(members) prices.
    """
    everybody = Load(len(lengths), sum(lengths), lengths[-1])
    together = costs.step_seconds(everybody)
    wait = settings.longest_wait()
    if 2 * settings.least * together > wait / 2:
        return None  # coming back would take too long
    found = _cut(costs, lengths, costs.balanced_seconds(everybody) / together, room)
    if found is None:
        return None
    high, pace, steps = (ANY, together, settings.least) if overdue else (*found, settings.most)
    return Turn(1, high, step, step + steps, step, now, pace, 1, step, wait, sets_aside=True)


def _cut(costs: Costs, lengths: Sequence[int], together: float, room: int) -> tuple[int, float] | None:
    """The length from which on members are set aside, and what a step without them takes.

    The cut after which the largest share of a step is work and not imbalance; ``together`` is the share of all.
    """
    best, found = FASTER * together, None
    n, total, held = len(lengths), sum(lengths), 0
    for left in range(n - 1, n - 1 - n // FEW, -1):
        held += lengths[left]
        if held > room:
            break
        if lengths[left - 1] < lengths[left]:
            others = Load(left, total - held, lengths[left - 1])
            pace = costs.step_seconds(others)
            share = costs.balanced_seconds(others) / pace
            if share > best:
                best, found = share, (lengths[left], pace)
    return found
