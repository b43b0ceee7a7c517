"""What a step costs, as a function of its members' lengths: the surface that batch formation optimises over.

A surface says how decode attention grows with the lengths: ``balanced`` with their sum, ``unsplit`` with the longest
once that binds, ``gated`` as balanced until the grid is full and as unsplit from there on (FlashAttention-type kernels,
as measured), ``padded`` with members times the longest. `docs/costs.md` explains each and its accuracy.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from attrs import asdict, field, fields, frozen

from .arrays import FloatArray
from .cost_model import ModelCosts
from .cost_sheet import Curve, Sheet
from .cost_table import Prefill, TableCosts
from .errors import ConfigError
from .load import SURFACES, Costs, Load, check_surface, check_uniform
from .outside import is_number, read_json, show

__all__ = [
    "SURFACES",
    "AffineCosts",
    "Costs",
    "Curve",
    "Load",
    "ModelCosts",
    "Prefill",
    "Sheet",
    "TableCosts",
    "lane_balanced_seconds",
    "lane_finishing_times",
    "lane_seconds",
    "load_costs",
]


FORMAT, VERSION = "alignedsched-affine-costs", 1


def lane_seconds(costs: Costs, loads: Sequence[Load]) -> float:
    """One step of a lane whose ranks meet at its end: the slowest rank's time. O(ranks)."""
    return max(map(costs.step_seconds, loads), default=0.0)


def lane_balanced_seconds(costs: Costs, loads: Sequence[Load]) -> float:
    """The lane's step if neither members nor ranks were out of balance: the balanced time of the mean rank.

    The mean rank has 1/R of all members and of all tokens, and of each chunk the 1/R in its middle (which reads 1/R
    of the chunk's query-key pairs), rounded down but never to nothing. At most ``lane_seconds``; the difference is the
    step's iteration bubble. O(ranks + chunks).
    """
    ranks = len(loads)
    if ranks == 1:
        return costs.balanced_seconds(loads[0])
    bound = max(map(costs.balanced_seconds, loads), default=0.0)
    if bound == 0.0:
        return bound
    n = sum(load.n for load in loads)
    chunks = []
    for load in loads:
        for start, end in load.chunks:
            size = max(1, (end - start) // ranks)
            middle = (start + end - size) // 2
            chunks.append((middle, middle + size))
    members = max(1, n // ranks) if n else 0
    total = max(members, sum(load.total for load in loads) // ranks)
    # Rounding and the head's row per chunk can lift a nearly even lane's mean above its slowest rank: never report it.
    return min(bound, costs.balanced_seconds(Load(members, total, -(-total // max(1, members)), tuple(chunks))))


def lane_finishing_times(costs: Costs, loads: Sequence[Load], steps: int) -> FloatArray:
    """As ``Costs.finishing_times`` for a lane: each step takes what its slowest rank takes. O(ranks · steps)."""
    check_uniform(steps, *loads)
    loads = [load for load in loads if load.n]
    if not loads:
        return np.zeros(steps)
    if len(loads) == 1:
        return costs.finishing_times(loads[0], steps)
    slowest = np.diff(costs.finishing_times(loads[0], steps), prepend=0.0)
    for load in loads[1:]:
        np.maximum(slowest, np.diff(costs.finishing_times(load, steps), prepend=0.0), out=slowest)
    return np.cumsum(slowest)


def _check_number(costs: object, attribute: Any, value: Any) -> None:
    least = "" if attribute.name == "per_prompt" else " of at least 0"
    if not is_number(value, 0.0 if least else -math.inf):
        raise ConfigError(f"AffineCosts: {attribute.name} must be a finite number{least}, got {show(value)}")


@frozen
class AffineCosts:
    """Costs by plain arithmetic, for closed-form facts and tests: ``t0 + per_row·rows + attention``.

    Attention is ``d·total`` (balanced), ``max(d·total, s·longest)`` (unsplit, and gated from ``gate`` members on) or
    ``d·n·longest`` (padded), with d = ``per_token`` and s = ``longest_per_token``; a chunk pays ``per_pair`` for each
    context token that one of its tokens reads, and ``per_prompt`` for each token, beyond its row (below 0 where a
    member costs more than that). Rows are members plus chunk tokens. Seconds throughout.

    Raises ConfigError naming the field that is not finite or below 0, or where a token of a chunk would cost less than
    nothing (``per_row + per_prompt``).
    """

    t0: float = field(validator=_check_number)
    per_row: float = field(validator=_check_number)
    per_token: float = field(validator=_check_number)
    longest_per_token: float = field(default=0.0, validator=_check_number)
    surface: str = field(default="balanced", validator=check_surface)
    gate: float = field(default=0.0, validator=_check_number)
    per_pair: float = field(default=0.0, validator=_check_number)
    per_prompt: float = field(default=0.0, validator=_check_number)

    def __attrs_post_init__(self) -> None:
        if self.per_row + self.per_prompt < 0:
            raise ConfigError(
                f"AffineCosts: per_prompt must be at least -per_row = {-self.per_row!r} (a token of a chunk pays "
                f"both), got {self.per_prompt!r}"
            )

    def step_seconds(self, load: Load) -> float:
        """See Costs. O(chunks)."""
        return self._seconds(load, self.surface)

    def balanced_seconds(self, load: Load) -> float:
        """See Costs. O(chunks)."""
        return self._seconds(load, "balanced")

    def _seconds(self, load: Load, surface: str) -> float:
        if not (load.n or load.chunks):
            return 0.0
        prompt = sum(end - start for start, end in load.chunks)
        pairs = sum((end - start) * (start + end + 1) / 2 for start, end in load.chunks)
        attention = self.per_token * (load.n * load.longest if surface == "padded" else load.total)
        if surface == "unsplit" or (surface == "gated" and load.n >= self.gate):
            attention = max(attention, self.longest_per_token * load.longest)
        rows = self.per_row * (load.n + prompt) + self.per_prompt * prompt
        return self.t0 + rows + attention + self.per_pair * pairs

    def finishing_times(self, load: Load, steps: int) -> FloatArray:
        """See Costs. O(steps)."""
        check_uniform(steps, load)
        if not load.n:
            return np.zeros(steps)
        ahead = np.arange(steps, dtype=np.float64)
        tokens = load.n * load.longest if self.surface == "padded" else load.total
        attention = self.per_token * (tokens + load.n * ahead)
        if self.surface == "unsplit" or (self.surface == "gated" and load.n >= self.gate):
            np.maximum(attention, self.longest_per_token * (load.longest + ahead), out=attention)
        return np.cumsum(attention + (self.t0 + self.per_row * load.n))

    def content(self) -> dict[str, str | float]:
        """What ``save`` writes: plain data, with format and version."""
        return {"format": FORMAT, "version": VERSION, **asdict(self)}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the costs as a versioned JSON file."""
        Path(path).write_text(json.dumps(self.content(), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> AffineCosts:
        """Read what ``save`` wrote. Raises ConfigError naming the file and the field that is wrong."""
        where, content = os.fspath(path), read_json(path)
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise ConfigError(f"{where}: format must be {FORMAT!r}")
        if content.get("version") != VERSION:
            raise ConfigError(f"{where}: version must be {VERSION}, got {show(content.get('version'))}")
        if content.get("surface") not in SURFACES:
            raise ConfigError(
                f"{where}: surface must be one of {', '.join(SURFACES)}, got {show(content.get('surface'))}"
            )
        given = ((f.name, content.get(f.name)) for f in fields(cls))
        found: dict[str, Any] = {name: float(value) if is_number(value) else value for name, value in given}
        try:
            return cls(**found)
        except ConfigError as error:
            raise ConfigError(f"{where}: {str(error).removeprefix('AffineCosts: ')}") from None


def load_costs(path: str | os.PathLike[str]) -> AffineCosts | TableCosts:
    """Read costs that were saved, of either kind. Raises ConfigError naming the file and what is wrong with it."""
    content = read_json(path)
    affine = isinstance(content, dict) and content.get("format") == FORMAT
    return AffineCosts.load(path) if affine else TableCosts.load(path)
