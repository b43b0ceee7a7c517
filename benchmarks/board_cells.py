"""The scoreboard's cells: models, surfaces, topologies, traces, loads, and which of their combinations are run.

The whole product has thousands of cells. The design below takes the crossing of surfaces, traces and loads in full
where the figures to be held are stated (the deep pool, two models), and varies one factor at a time elsewhere. Blocks
stand in order of how much they tell: ``--minutes`` cuts the list from its end.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import attrs
import numpy as np
from attrs import frozen

from alignedsched.metrics import Objectives
from alignedsched.workloads import Workload, read_trace, workload
from alignedsched.workloads.synthesis import Arrivals, Marginal, Shape, spread_ticks, synthesise

ROOT = Path(__file__).resolve().parent.parent
TRACES = ROOT.parent / "shared" / "traces"
SEEDS = 5
OFFLINE_REQUESTS = 10_000
ONLINE_REQUESTS = 2_000  # five windows of the shortest real trace do not overlap
LOCKSTEP_RANKS = 8


@frozen
class System:
    """A model on its GPUs, and what its clients are promised. ``clamp``: lengths are cut to so many positions."""

    name: str
    hardware: str
    model: str
    promised: Objectives
    clamp: int


# Objectives are chosen, not measured: a token every 50 ms reads well; larger models on more GPUs are given twice that
# (DistServe, OSDI 2024, promises OPT-13B's chat clients 0.1 s a token).
SYSTEMS = {
    system.name: system
    for system in (
        System("8B", "h100", "llama-3.1-8b", Objectives(5.0, 0.05), 131_072),
        System("70B", "h200:4", "llama-3.1-70b", Objectives(10.0, 0.1), 131_072),
        System("13B", "a100", "opt-13b", Objectives(5.0, 0.1), 2_048),
    )
}
SURFACES = ("balanced", "gated", "unsplit", "padded", "lockstep")  # lockstep: balanced ranks, eight to a lane
# pool: prefill takes no time and the host holds everything, so that decode alone decides (the bound's own setting).
TOPOLOGIES = ("pool", "colocated", "disaggregated", "unstaged")

# Real traces, or what was fitted to them where they are not at hand.
REAL = {
    "mooncake": ("mooncake_conversation.jsonl.gz", "mooncake"),
    "azure": ("azure_llm_2023_conv.csv.gz", "azure-conv"),
    "r1": ("servegen_deepseek_r1_2h.csv.gz", "reasoning"),
    "m-large": ("servegen_m_large_1h.csv.gz", "m-large"),
}
_OURS = "chosen for the scoreboard as an extreme; no trace"
EXTRA = {
    "long-outputs": Shape(
        "long-outputs", f"{_OURS}: short questions, long reasoning",
        Marginal((0.0, 1.0), (64, 1024)),
        Marginal((0.0, 0.5, 0.9, 0.99, 1.0), (300, 2000, 8000, 20_000, 30_000)),
        Arrivals(2.0),
    ),
    "bursts": Shape(
        "bursts", f"{_OURS}: long-tailed lengths whose rate swings threefold within minutes",
        Marginal((0.0, 0.5, 0.9, 0.99, 1.0), (64, 800, 6000, 40_000, 60_000)),
        Marginal((0.0, 0.5, 0.9, 0.99, 1.0), (16, 160, 500, 2000, 4000)),
        Arrivals(6.0, 0.5, 1.5, 60),
    ),
}  # fmt: skip
BUILT_IN = {"mix": "long-tail-mix", "uniform": "uniform", "bimodal": "bimodal", "giant": "giant"}
TRACE_NAMES = (*REAL, *BUILT_IN, *EXTRA)


@frozen
class Cell:
    """One place of the board. ``load`` is "offline", or a share of what `fcfs` sustains offline in this very cell; with
    " even" behind it, of what `fcfs` sustains there at zero imbalance cost (so above 1 it may be a flood for `fcfs`).
    """

    system: str
    surface: str
    topology: str
    trace: str
    load: str

    @property
    def name(self) -> str:
        return "/".join(attrs.astuple(self))

    @property
    def offline(self) -> bool:
        return self.load == "offline"

    @property
    def even_load(self) -> bool:
        return self.load.endswith(" even")

    @property
    def share(self) -> float:
        """The load as a number (of an online cell)."""
        return float(self.load.split()[0])

    @property
    def requests(self) -> int:
        if self.offline:
            return OFFLINE_REQUESTS
        return ONLINE_REQUESTS * (2 if self.surface == "lockstep" else 1)


CORE = ("fcfs", "density_first", "cost_aligned")
BOTH = ("fcfs", "cost_aligned")


@frozen
class Block:
    """A full crossing of some values, and which policies run there."""

    why: str
    systems: tuple[str, ...]
    surfaces: tuple[str, ...]
    topologies: tuple[str, ...]
    traces: tuple[str, ...]
    loads: tuple[str, ...]
    policies: tuple[str, ...] = CORE

    def cells(self) -> Iterator[Cell]:
        for load in self.loads:
            for system in self.systems:
                for surface in self.surfaces:
                    for topology in self.topologies:
                        for trace in self.traces:
                            yield Cell(system, surface, topology, trace, load)


MAIN = ("mooncake", "r1", "azure", "m-large", "mix")
SOME = ("mooncake", "azure", "mix")
EXTREMES = ("uniform", "bimodal", "giant", "long-outputs", "bursts")
UNEVEN = ("gated", "unsplit", "padded")
EVERYBODY = (
    "fcfs", "density_first", "cost_aligned", "cost_aligned:remaining", "waves", "buckets", "sjf", "sjf_oracle",
)  # fmt: skip
IN_LOCKSTEP = (*CORE, "round_robin")
PROMISED = ("fcfs", "cost_aligned:tpot")  # told the TPOT that clients are promised
BLOCKS = (
    Block("what kernels do, flooded", ("8B", "70B"), UNEVEN, ("pool",), MAIN, ("1.3 even",)),
    Block("one plain server", ("8B",), ("gated", "balanced"), ("colocated",), MAIN, ("0.6", "1.3")),
    Block("offline, kernels as measured", ("8B", "70B"), ("gated",), ("pool",), MAIN, ("offline",), BOTH),
    Block("up to overload, kernels as measured", ("8B",), ("gated", "balanced"), ("pool",), MAIN, ("0.9", "1.3")),
    Block("everybody, above capacity", ("8B",), ("balanced", "gated"), ("pool",), SOME, ("1.3",), EVERYBODY),
    Block("offline, not split", ("8B", "70B"), ("unsplit",), ("pool",), ("mooncake", "mix"), ("offline",), BOTH),
    Block("nothing to win, offline", ("8B",), ("balanced",), ("pool",), SOME, ("offline",), BOTH),
    Block("density_first offline", ("8B", "70B"), ("gated",), ("pool",), ("mooncake", "mix"), ("offline",)),
    Block("density_first offline, the limit cases", ("8B",), ("unsplit", "padded"), ("pool",), ("mooncake",),
          ("offline",)),
    Block("up to overload, the limit cases", ("8B",), ("unsplit", "padded"), ("pool",), SOME, ("0.9", "1.3")),
    Block("nothing to win, two KV heads", ("70B",), ("balanced",), ("pool",), MAIN, ("1.3",)),
    Block("extremes", ("8B",), ("gated", "unsplit"), ("pool",), EXTREMES, ("1.3",)),
    Block("a small old model", ("13B",), ("gated", "padded"), ("pool", "disaggregated"), ("azure", "mooncake"),
          ("1.3",)),
    Block("prefill apart, with and without staging", ("8B",), ("gated", "unsplit"), ("disaggregated", "unstaged"),
          ("mooncake", "azure"), ("1.3",)),
    Block("ranks in lockstep", ("8B",), ("lockstep",), ("pool", "colocated"), ("mooncake", "r1"), ("1.3",),
          IN_LOCKSTEP),
    Block("idle", ("8B",), ("balanced", "gated", "unsplit", "padded"), ("pool",), ("mooncake", "mix"),
          ("0.6",)),
    Block("nearly idle", ("8B",), ("gated",), ("pool",), ("mooncake", "azure"), ("0.3",)),
    Block("near capacity, two KV heads", ("70B",), ("gated",), ("pool",), MAIN, ("0.9",)),
    Block("offline, padded", ("8B",), ("padded",), ("pool",), ("mooncake", "r1", "azure", "m-large"), ("offline",),
          BOTH),
    Block("offline, padded, two KV heads", ("70B",), ("padded",), ("pool",), ("mooncake",), ("offline",), BOTH),
    Block("with a TPOT target", ("8B",), ("gated",), ("pool", "colocated"), SOME, ("1.3",), PROMISED),
    Block("with a TPOT target, the limit cases", ("8B",), ("unsplit", "padded"), ("pool",), SOME, ("1.3 even",),
          PROMISED),
    Block("everybody, the limit cases flooded", ("8B",), ("unsplit", "padded"), ("pool",), MAIN, ("1.3 even",),
          EVERYBODY),
    Block("one plain server, the limit cases", ("8B",), ("unsplit", "padded"), ("colocated",), SOME, ("1.3",)),
    Block("prefill apart below capacity", ("8B", "13B"), ("gated",), ("disaggregated",), ("mooncake", "azure"),
          ("0.6",)),
    Block("extremes below capacity", ("8B",), ("gated",), ("pool",), ("long-outputs", "bursts"), ("0.6",)),
)  # fmt: skip


def even_twin(cell: Cell) -> Cell:
    """The cell where imbalance costs nothing, and the requests are the same: what `fcfs` reaches there is a yardstick.

    Only of cells that are offline, or whose load is told by this very cell.
    """
    return attrs.evolve(cell, surface="balanced", load=cell.load.removesuffix(" even"))


def design() -> dict[Cell, tuple[str, ...]]:
    """Cells in order of what they tell, and the policies of each; before an offline cell comes its yardstick."""
    found: dict[Cell, tuple[str, ...]] = {}
    for block in BLOCKS:
        for cell in block.cells():
            if cell.offline and cell.surface != "lockstep":
                found.setdefault(even_twin(cell), ("fcfs",))
            known = found.get(cell, ())
            found[cell] = known + tuple(policy for policy in block.policies if policy not in known)
    return found


@lru_cache(maxsize=8)
def _rows(trace: str, folder: Path) -> Workload | None:
    """A real trace; None where it is not at hand."""
    path = folder / REAL[trace][0]
    if not path.exists():
        return None
    with read_trace(path) as reader:
        rows = Workload.from_rows(trace, reader)
    plain = Workload(trace, rows.arrival_s, rows.prompt_tokens, rows.output_tokens)
    return spread_ticks(plain) if trace == "mooncake" else plain


def is_real(trace: str, folder: Path = TRACES) -> bool:
    """Whether a cell of this trace runs on recorded rows."""
    return trace in REAL and _rows(trace, folder) is not None


def requests_of(cell: Cell, seed: int, n: int, folder: Path = TRACES) -> Workload:
    """The cell's ``n`` requests of one seed, at the trace's own pace, cut to the model's positions.

    Real traces: offline ``n`` of its rows, each once as long as there are enough, in random order; online a window of
    ``n`` rows (around the end, if need be): those of the first ``SEEDS`` seeds begin as far apart as can be, those of
    the next as many half way between them, then at the quarters, and so on.
    """
    rows = _rows(cell.trace, folder) if cell.trace in REAL else None
    if rows is not None:
        drawn = _drawn(rows, seed, n) if cell.offline else _window(rows, seed, n)
    elif cell.trace in EXTRA:
        drawn = synthesise(EXTRA[cell.trace], seed=seed, n=n)
    else:
        drawn = workload(REAL[cell.trace][1] if cell.trace in REAL else BUILT_IN[cell.trace], seed=seed, n=n)
    drawn = drawn.clamped(SYSTEMS[cell.system].clamp)[0]
    return attrs.evolve(drawn.offline() if cell.offline else drawn, name=cell.trace)


def _drawn(rows: Workload, seed: int, n: int) -> Workload:
    draw = np.random.Generator(np.random.PCG64(seed))
    at = np.concatenate([draw.permutation(len(rows)) for _ in range(-(-n // len(rows)))])[:n]
    return Workload(rows.name, np.zeros(n), rows.prompt_tokens[at], rows.output_tokens[at])


def _between(level: int) -> float:
    """0, 1/2, 1/4, 3/4, 1/8, ...: each half way in the widest gap left by those before."""
    part, found = 0.5, 0.0
    while level:
        found += part * (level % 2)
        level, part = level // 2, part / 2
    return found


def _window(rows: Workload, seed: int, n: int) -> Workload:
    level, place = divmod(seed, SEEDS)
    begin = int((place + _between(level)) * len(rows) / SEEDS)
    at = (begin + np.arange(n)) % len(rows)
    gaps = np.diff(rows.arrival_s, append=rows.arrival_s[-1] + 1.0 / rows.rate_per_s)
    arrival = np.concatenate(([0.0], np.cumsum(gaps[at[:-1]])))
    return Workload(rows.name, arrival, rows.prompt_tokens[at], rows.output_tokens[at])
