"""The fluid bound: a linear programme over length classes that no schedule of the same work can beat.

    least lane time = min sum over kinds of step of t[k],  then  max(least lane time / lanes, metrics.bound)

Decode tokens are fluid. A token's class is the context length at which it is made (the length its step reads); classes
are at least ``CLASSES`` where there are so many lengths, spaced so that each carries an even share of the tokens or of
the range, and a class's length is its least, rounded *down*. Every decode step is of one kind: the class ``m`` of its
longest member, and on ``gated`` whether it has fewer members than the gate. For each kind the programme chooses steps
``y``, tokens ``x[c]`` of each class c <= m, tokens read ``r``, block-steps ``q`` and prefill tokens ``p`` that ride
along, and pays at least what such steps cost:

* rows: the lower convex hull of the linear layers' time as a function of rows. By Jensen's inequality, steps that share
  some rows cost at least each line under the hull, summed: ``a y + b (sum x + p)``. The head's rows likewise.
* attention: ``((c n)^p + (e total)^p)^(1/p)`` is a norm, so it is at least each of its supporting planes
  ``u c n + v e total``, and those sum. ``padded`` reads at least ``L[m]`` for each member; on ``unsplit``, and on
  ``gated`` above the gate, a step takes at least the tail of its longest, ``s L[m]``.
* limits: ``sum x <= members y``; ``q <= blocks y``; no step has more tokens of a class than there are requests that
  ever pass through it; and one request's steps are all different, so steps whose longest is of class c or more are at
  least as many as any one request makes tokens at such lengths.

Each of these holds for every step a schedule can run, so the sums over its steps satisfy the programme and its lane
time is at least the optimum. Sums of ``r`` and ``q`` over all kinds equal the workload's true sums, so rounding costs
only in who meets whom. A step with chunks costs at least as if its rows were joined and its attention added, which is
how prefill enters where a lane does both: all its tokens must ride in some step (kind 0 has no decode), all its
attention is paid. Lanes that only decode are bounded by decode alone. Ranks in lockstep count as lanes: each rank's
step takes at least its own time. A request whose KV is computed again after a preemption gets one token out of its
repeated prefill instead of a decode row; as in ``metrics.bound``, such a token counts as decoded here.

HiGHS (through scipy) solves it in 0.02 to 2 s.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from attrs import define, field, frozen

from alignedsched.costs import AffineCosts, Costs, ModelCosts
from alignedsched.errors import ConfigError
from alignedsched.metrics import Lanes, bound
from alignedsched.metrics.bounds import decode_alone
from alignedsched.metrics.work import Envelope, Terms, terms_of

CLASSES = 80  # asked for; a few fall together or are empty
ANGLES = 7  # supporting planes of the attention's norm
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@frozen
class Fluid:
    """``bound_s``: least seconds; ``programme_s``: the programme's lane time over the lanes; ``other_s``: the bound by
    sums and by the longest request alone (``metrics.bound``; with ``prefilled`` its decode alone); ``classes``: their
    number.
    """

    bound_s: float
    programme_s: float
    other_s: float
    classes: int


def fluid_bound(
    arrival: npt.ArrayLike, prompt: npt.ArrayLike, output: npt.ArrayLike, costs: Costs, lanes: Lanes,
    classes: int = CLASSES, prefilled: bool = False,
) -> Fluid:  # fmt: skip
    """The bound for requests with these arrivals (seconds), prompt and output tokens, each of shape (n,).

    Give the work that was done. ``prefilled``: prefill took no time, so that decode alone counts.

    Raises as ``metrics.bound`` does, and ConfigError where scipy is missing, for GPUs whose prefill and decode rows
    share one attention kernel on lanes that do both (their attention does not add up), or if the solver fails. All 0
    without requests.
    """
    prompts, outputs = np.asarray(prompt, dtype=np.int64), np.asarray(output, dtype=np.int64)
    if prefilled and len(prompts):
        since = np.asarray(arrival, dtype=np.float64) - np.min(arrival)
        other = float(np.max(since + decode_alone(prompts, outputs, costs))) * (1.0 - 1e-9)
    else:
        other = bound(arrival, prompt, output, costs, lanes).bound_s
    if not len(prompts) or int(outputs.max()) < 2:
        return Fluid(other, 0.0, other, 0)
    demand = Demand.of(prompts, outputs, lanes.block_size, classes)
    shared = lanes.both > 0 and lanes.prefill == 0 and not prefilled
    surface = Surface.of(costs, lanes, shared)
    riders = Riders.of(prompts, surface.terms, lanes) if shared else Riders()
    seconds = Programme(demand, surface, riders, lanes).solve() / (lanes.decode + lanes.both)
    seconds *= 1.0 - 1e-6  # the solver's tolerance
    return Fluid(max(seconds, other), seconds, other, len(demand.length))


@frozen(eq=False)
class Demand:
    """What has to be decoded, by class: shapes (classes,). ``most[c]``: the most tokens one request makes at class c or
    above; ``passing[c]``: requests that make a token in class c.
    """

    length: Ints  # least context length of the class
    tokens: Ints
    passing: Ints
    most: Ints
    read: float  # tokens read by all decode rows
    block_steps: float

    @classmethod
    def of(cls, prompts: Ints, outputs: Ints, block_size: int, classes: int) -> Demand:
        """O(n · classes)."""
        first, last = prompts + 1, prompts + outputs - 1  # of the lengths at which decode tokens are made
        decoding = last >= first
        first, last = first[decoding], last[decoding]
        edges = _edges(first, last, classes)
        above = np.maximum(last[:, None] - np.maximum(first[:, None], edges[None, :]) + 1, 0)  # tokens at >= each edge
        inside = above[:, :-1] - above[:, 1:]
        kept = inside.sum(axis=0) > 0
        starts = np.maximum(edges[:-1], first.min())
        return cls(
            starts[kept],
            inside.sum(axis=0)[kept],
            (inside > 0).sum(axis=0)[kept],
            above[:, :-1].max(axis=0)[kept],
            float(((first + last) * (last - first + 1) / 2.0).sum()),
            float((_blocks_up_to(last, block_size) - _blocks_up_to(first - 1, block_size)).sum()),
        )


def _edges(first: Ints, last: Ints, classes: int) -> Ints:
    """Class borders from the least length to beyond the greatest: half evenly spaced in ratio, half in tokens made."""
    low, high = int(first.min()), int(last.max()) + 1
    if high - low <= classes:
        return np.arange(low, high + 1, dtype=np.int64)
    # Tokens made below a length, on a fine grid; its quantiles are the borders that share the tokens out.
    grid = np.unique(np.geomspace(low, high, 2048).astype(np.int64))
    below = np.array([np.maximum(np.minimum(last + 1, g) - first, 0).sum() for g in grid], dtype=np.float64)
    even = np.interp(np.linspace(0, below[-1], classes // 2 + 1), below, grid).astype(np.int64)
    ratio = np.geomspace(low, high, classes + 1).astype(np.int64)
    ratio = ratio[:: 1 if len(np.unique(ratio)) < classes else 2]
    return np.unique(np.concatenate(([low], even, ratio, [high])))


def _blocks_up_to(tokens: Ints, size: int) -> Ints:
    whole, rest = tokens // size, tokens % size
    return np.asarray(size * whole * (whole + 1) // 2 + rest * (whole + 1), dtype=np.int64)


@frozen(eq=False)
class Surface:
    """A step's cost as lower envelopes: the balanced ``terms``, and what imbalance adds."""

    terms: Terms
    name: str
    tail: float  # seconds per token of the longest member, where sequences are not split
    free_members: int  # members that a `gated` step may have and still cost as `balanced`

    @classmethod
    def of(cls, costs: Costs, lanes: Lanes, shared: bool) -> Surface:
        """Raises ConfigError for costs without known convex terms."""
        terms = terms_of(costs, lanes.max_tokens if shared else min(lanes.max_members, lanes.max_tokens))
        if isinstance(costs, AffineCosts):
            return cls(terms, costs.surface, costs.longest_per_token, _below(costs.gate))
        assert isinstance(costs, ModelCosts)  # or terms_of had refused them
        if shared and costs.gpu.prefill.tile:
            raise ConfigError(f"fluid bound: {costs.gpu.name} runs prefill and decode rows in one attention kernel")
        return cls(terms, costs.surface, costs.tail, _below(costs.gate))


def _below(gate: float) -> int:
    """The most whole members below a gate."""
    return max(0, int(np.ceil(gate)) - 1)


@frozen
class Riders:
    """Prefill that shares lanes with decode: its tokens, its least number of steps, its attention."""

    tokens: float = 0.0
    steps: float = 0.0
    attention: float = 0.0

    @classmethod
    def of(cls, prompts: Ints, terms: Terms, lanes: Lanes) -> Riders:
        tokens = float(prompts.sum())
        steps = float(max(-(-int(prompts.max()) // lanes.max_tokens), np.ceil(tokens / lanes.max_tokens)))
        pairs = float((prompts * (prompts + terms.half_pair) / 2.0).sum())
        attention = terms.prefill_attention(np.array([tokens]), np.array([pairs]), np.array([steps]))
        return cls(tokens, steps, float(attention[0]))


@frozen
class Kind:
    """Decode steps whose longest is of class ``top`` at most: how many members, and what imbalance costs."""

    top: int
    members: int
    imbalance: str  # "none", "tail" or "padding"


def kinds_of(surface: Surface, classes: int, members: int) -> list[Kind]:
    """All kinds of decode step on a surface. Where lengths do not matter one kind, of every class, is enough."""
    whole = classes - 1
    if surface.name == "balanced":
        return [Kind(whole, members, "none")]
    each = [Kind(m, members, "padding" if surface.name == "padded" else "tail") for m in range(classes)]
    if surface.name == "gated" and surface.free_members >= members:
        return [Kind(whole, members, "none")]
    free = [Kind(whole, surface.free_members, "none")] if surface.name == "gated" and surface.free_members else []
    return free + each


@define(eq=False)
class Programme:
    """The programme's rows, gathered as triplets. Variables are numbered as they are made."""

    demand: Demand
    surface: Surface
    riders: Riders
    lanes: Lanes
    _size: int = 0
    _costs: dict[int, float] = field(factory=dict)
    _rows: list[dict[int, float]] = field(factory=list)  # each: sum of coefficient times variable <= limit
    _limits: list[float] = field(factory=list)
    _equal: list[tuple[dict[int, float], float]] = field(factory=list)

    def solve(self) -> float:
        """Least lane time in seconds. Raises ConfigError where there is no solver, or it fails."""
        made: list[dict[int, float]] = [{} for _ in self.demand.length]
        reads: dict[int, float] = {}
        blocks: dict[int, float] = {}
        prefill: dict[int, float] = {}
        attention: dict[int, float] = {}
        steps: list[tuple[int, int]] = []
        members = min(self.lanes.max_members, self.lanes.max_tokens)
        for kind in kinds_of(self.surface, len(self.demand.length), members):
            y = self._kind(kind, made, reads, blocks, prefill, attention)
            steps.append((kind.top, y))
        if self.riders.tokens:
            self._prefill_only(prefill, attention)
            self._equal += [(prefill, self.riders.tokens), (attention, self.riders.attention)]
        for c, row in enumerate(made):
            self._equal.append((row, float(self.demand.tokens[c])))
        self._equal += [(reads, self.demand.read), (blocks, self.demand.block_steps)]
        for c, most in enumerate(self.demand.most.tolist()):
            self._at_most({y: -1.0 for top, y in steps if top >= c}, -float(most))
        return self._optimum()

    def _variable(self, cost: float = 0.0) -> int:
        self._size += 1
        if cost:
            self._costs[self._size - 1] = cost
        return self._size - 1

    def _at_most(self, row: dict[int, float], limit: float = 0.0) -> None:
        self._rows.append(row)
        self._limits.append(limit)

    def _kind(
        self, kind: Kind, made: list[dict[int, float]], reads: dict[int, float], blocks: dict[int, float],
        prefill: dict[int, float], attention: dict[int, float],
    ) -> int:  # fmt: skip
        """The variables and rows of one kind; returns the variable of its steps."""
        demand, terms, lanes = self.demand, self.surface.terms, self.lanes
        y, r, q, busy = self._variable(), self._variable(), self._variable(), self._variable()
        x = [self._variable() for _ in range(kind.top + 1)]
        tokens = dict.fromkeys(x, 1.0)
        for c, variable in enumerate(x):
            made[c][variable] = 1.0
            self._at_most({variable: 1.0, y: -float(demand.passing[c])})
        reads[r] = blocks[q] = 1.0
        self._at_most({**tokens, y: -float(kind.members)})
        self._at_most({q: 1.0, y: -float(lanes.decode_blocks)})
        self._at_most({r: -1.0, **{v: float(demand.length[c]) for c, v in enumerate(x)}})
        self._at_most({q: -1.0, **{v: float(-(-demand.length[c] // lanes.block_size)) for c, v in enumerate(x)}})
        self._attention(kind, y, r, busy, tokens)
        rows = dict(tokens)
        parts = {y: terms.decode_fixed, busy: 1.0}
        if self.riders.tokens:
            p, a = self._variable(), self._variable()
            prefill[p] = attention[a] = rows[p] = parts[a] = 1.0
            self._at_most({**rows, y: -float(lanes.max_tokens)})
        self._step(y, rows, tokens, parts)
        return y

    def _attention(self, kind: Kind, y: int, r: int, busy: int, tokens: dict[int, float]) -> None:
        """``busy`` is at least each supporting plane of the attention, and the tail where sequences are not split."""
        terms, longest = self.surface.terms, float(self.demand.length[kind.top])
        read = self._variable()
        self._at_most({r: 1.0, read: -1.0})
        if kind.imbalance == "padding":
            self._at_most({read: -1.0, **dict.fromkeys(tokens, longest)})
        for u, v in _planes(terms):
            row = dict.fromkeys(tokens, u * terms.per_member) if u * terms.per_member else {}
            self._at_most({**row, read: v * terms.per_token, busy: -1.0})
        if kind.imbalance == "tail" and self.surface.tail:
            self._at_most({y: self.surface.tail * longest, busy: -1.0})

    def _prefill_only(self, prefill: dict[int, float], attention: dict[int, float]) -> None:
        y, p, a = self._variable(), self._variable(), self._variable()
        prefill[p] = attention[a] = 1.0
        self._at_most({p: 1.0, y: -float(self.lanes.max_tokens)})
        self._step(y, {p: 1.0}, {}, {a: 1.0})

    def _step(self, y: int, rows: dict[int, float], sampled: dict[int, float], parts: dict[int, float]) -> None:
        """Time of ``y`` steps that share ``rows`` and ``sampled`` rows, with ``parts`` on top: one variable, priced."""
        terms, t, linear, head = self.surface.terms, self._variable(1.0), self._variable(), self._variable()
        for envelope, shared, at_least in ((terms.rows, rows, linear), (terms.sampled, sampled, head)):
            for constant, slope in _lines(envelope):
                self._at_most({y: constant, **dict.fromkeys(shared, slope), at_least: -1.0})
        gpu = {**parts, linear: 1.0, head: 1.0}
        host = {y: terms.host_fixed, **dict.fromkeys(sampled, terms.host_per_member)}
        if terms.host_overlaps:
            self._at_most({**gpu, t: -1.0})
            self._at_most({**host, t: -1.0})
        else:
            both = dict(gpu)
            for variable, amount in host.items():
                both[variable] = both.get(variable, 0.0) + amount
            self._at_most({**both, t: -1.0})

    def _optimum(self) -> float:
        linprog, matrix = _solver()
        objective = np.zeros(self._size)
        for variable, cost in self._costs.items():
            objective[variable] = cost
        equal = [row for row, _ in self._equal]
        done = linprog(
            objective,
            A_ub=matrix(self._rows, self._size), b_ub=np.array(self._limits),
            A_eq=matrix(equal, self._size), b_eq=np.array([limit for _, limit in self._equal]),
            method="highs",
        )  # fmt: skip
        if done.status != 0:
            raise ConfigError(f"fluid bound: the solver gave up ({done.message})")
        return float(done.fun)


def _lines(envelope: Envelope) -> list[tuple[float, float]]:
    """(constant, slope) of lines that lie under a convex function everywhere from 0 on; it is flat below 1."""
    at, seconds = envelope.at, envelope.seconds
    slopes = np.diff(seconds) / np.diff(at) if len(at) > 1 else np.zeros(0)
    lines = [(float(seconds[i] - s * at[i]), float(s)) for i, s in enumerate(slopes) if s > 0]
    # Eight lines are enough; leaving some out only lowers the bound.
    lines = [lines[i] for i in sorted({round(i) for i in np.linspace(0, len(lines) - 1, 8)})] if lines else []
    return [(float(seconds.min()), 0.0), *lines]


def _planes(terms: Terms) -> list[tuple[float, float]]:
    """Pairs (u, v) with u a + v b <= (a^p + b^p)^(1/p) for all a, b >= 0: of dual norm 1."""
    if not terms.per_member:
        return [(0.0, 1.0)]
    if terms.p <= 1.0:
        return [(1.0, 1.0)]
    dual = terms.p / (terms.p - 1.0)
    shares = np.linspace(0.0, 1.0, ANGLES)
    return [(float(s ** (1 / dual)), float((1 - s) ** (1 / dual))) for s in shares]


def _solver() -> tuple[Any, Any]:
    try:
        from scipy.optimize import linprog
        from scipy.sparse import csr_array
    except ImportError as error:
        raise ConfigError("the fluid bound needs scipy: pip install 'alignedsched[dev]'") from error

    def matrix(rows: list[dict[int, float]], size: int) -> Any:
        columns = np.fromiter((v for row in rows for v in row), dtype=np.int64)
        values = np.fromiter((a for row in rows for a in row.values()), dtype=np.float64)
        ends = np.cumsum([0, *map(len, rows)])
        return csr_array((values, columns, ends), shape=(len(rows), size))

    return linprog, matrix
