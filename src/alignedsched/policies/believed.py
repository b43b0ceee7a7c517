"""A cost surface as it is believed to be: the published one, its parts corrected by factors.

The published surface is a model with structure (rooflines, host time, tables) that a few numbers could not hold. So a
correction scales its parts instead of replacing them: what a step costs beside decode attention and prefill, decode
attention per token, prefill, and the longest member's own time, with the number of members from which that binds.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from attrs import field, frozen

from ..load import Costs, Load, check_uniform
from ..outside import is_number
from .protocols import PlainData

if TYPE_CHECKING:
    from ..arrays import FloatArray

MANY = 4096  # members: beyond any gate
FAR = 1_000_000  # tokens: the longest member's time is told by its slope
UNLIKE = 1.2  # factors further apart than this may decide otherwise
_MEMO_SIZE = 8192


@frozen
class Parts:
    """What one load costs, taken apart: ``base`` without attention and chunks; attention if balanced, and if padded;
    and what the chunks add.
    """

    n: int
    longest: int
    base: float
    even: float
    padded: float
    prefill: float = 0.0


@frozen
class Correction:
    """Factors on the published parts (``base``, ``even``, ``prefill``), and the longest member's seconds per token.

    ``gate``: members from which the longest binds (inf: never). ``padded``: attention is paid for members times the
    longest, and no longest member binds beyond that.
    """

    base: float = 1.0
    even: float = 1.0
    longest: float = 0.0
    gate: float = math.inf
    padded: bool = False
    prefill: float = 1.0

    def seconds(self, parts: Parts) -> float:
        """A step's seconds. O(1)."""
        attention = self.even * (parts.padded if self.padded else parts.even)
        if not self.padded and parts.n >= self.gate:
            attention = max(attention, self.longest * parts.longest)
        return self.base * parts.base + self.prefill * parts.prefill + attention

    def balanced(self, parts: Parts) -> float:
        """The same step's if imbalance cost nothing. O(1)."""
        return self.base * parts.base + self.prefill * parts.prefill + self.even * parts.even

    def unlike(self, other: Correction) -> bool:
        """Whether decisions may be others by this than by the other: another kind, or a factor far from the other's."""
        mine, others = (
            (c.base, c.even, c.prefill, *((c.longest, c.gate) if self.longest else ())) for c in (self, other)
        )
        return self.surface != other.surface or any(
            max(a, b) > UNLIKE * min(a, b) for a, b in zip(mine, others, strict=True)
        )

    @property
    def surface(self) -> str:
        """The name of the corrected surface."""
        if self.padded:
            return "padded"
        return "balanced" if math.isinf(self.gate) else "unsplit" if self.gate <= 1 else "gated"

    def plain(self) -> PlainData:
        gate = None if math.isinf(self.gate) else self.gate
        return {
            "base": self.base, "even": self.even, "longest": self.longest, "gate": gate, "padded": self.padded,
            "prefill": self.prefill,
        }  # fmt: skip

    @staticmethod
    def from_plain(plain: PlainData) -> Correction:
        """Raises KeyError, TypeError or ValueError for anything else."""
        if not isinstance(plain, dict):
            raise TypeError("a correction is a dict")

        def factor(key: str) -> float:
            value = plain[key]
            if not is_number(value, 0.0):
                raise ValueError("no number of at least 0")
            return float(value)

        base, even, longest, prefill = map(factor, ("base", "even", "longest", "prefill"))
        if not min(base, even, prefill) > 0:
            raise ValueError("a part that costs nothing")
        gate = math.inf if plain["gate"] is None else factor("gate")
        return Correction(base, even, longest, gate, plain["padded"] is True, prefill)


def published_correction(published: Costs) -> Correction:
    """The correction that changes nothing: its gate and slope are read off the published surface by asking it.

    O(log members) questions.
    """
    if published.surface == "padded":
        return Correction(padded=True)

    def excess(n: int) -> float:
        load = Load(n, n + FAR, FAR)
        return published.step_seconds(load) - published.balanced_seconds(load)

    if not excess(MANY) > 0:
        return Correction()
    low, high = 0, MANY  # the longest binds from `high` members on, and not with `low`
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if excess(middle) > 0 else (middle, high)
    alone = published.step_seconds(Load(MANY, MANY + FAR, FAR)) - published.balanced_seconds(Load(MANY, MANY, 1))
    return Correction(longest=alone / FAR, gate=float(high))


@frozen(eq=False)
class BelievedCosts:
    """Costs: the published ones corrected. Twice the work of the published ones; what depends on n alone is kept."""

    published: Costs
    correction: Correction
    _base: dict[int, float] = field(init=False, factory=dict)

    @property
    def surface(self) -> str:
        """See Costs."""
        return self.correction.surface

    def parts(self, load: Load, padded: bool) -> Parts:
        """A load that is not empty, taken apart; attention as if padded only where that is asked for."""
        published, n = self.published, load.n
        base = self._base.get(n)
        if base is None:
            if len(self._base) >= _MEMO_SIZE:
                self._base.clear()
            base = self._base[n] = published.balanced_seconds(Load(n, n, min(n, 1)))
        beside = published.balanced_seconds(Load(n, n, min(n, 1), load.chunks)) if load.chunks else base
        even = max(0.0, published.balanced_seconds(load) - beside)
        uneven = max(even, self.padded_seconds(load) - beside) if padded else even
        return Parts(n, load.longest, base, even, uneven, max(0.0, beside - base))

    def padded_seconds(self, load: Load) -> float:
        """The published balanced step if every member were as long as the longest."""
        return self.published.balanced_seconds(Load(load.n, load.n * load.longest, load.longest, load.chunks))

    def step_seconds(self, load: Load) -> float:
        """See Costs."""
        return self.correction.seconds(self.parts(load, self.correction.padded)) if load.n or load.chunks else 0.0

    def balanced_seconds(self, load: Load) -> float:
        """See Costs."""
        if not (load.n or load.chunks):
            return 0.0
        return self.correction.balanced(self.parts(load, padded=False))

    def finishing_times(self, load: Load, steps: int) -> FloatArray:
        """See Costs. O(steps), one at a time."""
        import numpy as np

        check_uniform(steps, load)
        ahead = (Load(load.n, load.total + load.n * j, load.longest + j) for j in range(steps))
        return np.cumsum([self.step_seconds(step) for step in ahead]) if load.n else np.zeros(steps)
