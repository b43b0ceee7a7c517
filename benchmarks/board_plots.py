"""Pictures of the scoreboard: heat maps of ratios, share of the bound, and mean against tail of every policy."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from alignedsched.errors import ConfigError
from benchmarks.board_cells import SURFACES, TRACE_NAMES

Board = Mapping[str, Any]
FIGURES = (("throughput", "throughput", 1), ("e2e_mean", "mean E2E", -1), ("e2e_p99", "p99 E2E", -1))
LOADS = ("0.3", "0.6", "0.9", "1.3", "1.3 even", "offline")
DPI = 100
MOST = math.log2(4.0)  # colours end at a factor of four
SAME = math.log2(1.005)


def draw(board: Board, folder: Path, policy: str) -> dict[str, str]:
    """Draw what there is data for. Returns file names by title. Raises ConfigError without matplotlib."""
    try:
        import matplotlib as mpl

        mpl.use("Agg")
        from matplotlib import pyplot as plt
    except ImportError as error:
        raise ConfigError("the scoreboard's pictures need matplotlib: pip install 'alignedsched[plot]'") from error
    folder.mkdir(parents=True, exist_ok=True)
    rest = ("colocated", "disaggregated", "unstaged")
    pictures: tuple[tuple[str, str, Callable[[], Any]], ...] = (
        (f"{policy} over fcfs, pool", "heat_pool", lambda: _heat(plt, board, policy, ("pool",))),
        (f"{policy} over fcfs, other topologies", "heat_rest", lambda: _heat(plt, board, policy, rest)),
        ("Share of the fluid bound, offline", "bound_share", lambda: _shares(plt, board, policy)),
        ("Mean against tail, every policy", "frontier", lambda: _frontier(plt, board)),
        ("For comparison: density_first over fcfs, pool", "heat_density_first",
         lambda: None if policy == "density_first" else _heat(plt, board, "density_first", ("pool",))),
    )  # fmt: skip
    made: dict[str, str] = {}
    for title, name, make in pictures:
        figure = make()
        if figure is not None:
            made[title] = f"scoreboard_{name}.png"
            _save(figure, folder / made[title])
            plt.close(figure)
    return made


def _save(figure: Any, path: Path) -> None:
    """As a picture of few colours: these are committed, and flat."""
    from PIL import Image

    memory = io.BytesIO()
    figure.savefig(memory, dpi=DPI, format="png")
    with Image.open(memory) as picture:
        picture.convert("RGB").quantize(64).save(path, optimize=True)


def _colour(ratio: float, sign: int) -> float:
    """From -1 (worse by a factor of four or more) to 1; the root makes a loss of some per cent plain to see."""
    log = sign * math.log2(ratio)
    return math.copysign(min(1.0, math.sqrt(abs(log) / MOST)), log) if abs(log) > SAME else 0.0


def _heat(plt: Any, board: Board, policy: str, topologies: tuple[str, ...]) -> Any:
    """A row per system, topology, trace and load, a column per surface; blue is better than fcfs, red is worse."""
    cells = [c for c in board["cells"] if c["topology"] in topologies and c["policies"].get(policy, {}).get("ratios")]
    if not cells:
        return None
    surfaces = [surface for surface in SURFACES if any(cell["surface"] == surface for cell in cells)]

    def key(cell: Mapping[str, Any]) -> tuple[str, int, int, int]:
        at = topologies.index(cell["topology"]), TRACE_NAMES.index(cell["trace"]), LOADS.index(cell["load"])
        return (cell["system"], *at)

    rows = sorted({key(cell) for cell in cells})
    figure, axes = plt.subplots(
        1, len(FIGURES), sharey=True, layout="constrained", figsize=(2.4 + 2.0 * len(FIGURES), 1.3 + 0.19 * len(rows))
    )
    for axis, (name, title, sign) in zip(axes, FIGURES, strict=True):
        grid = [[math.nan] * len(surfaces) for _ in rows]
        for cell in cells:
            ratio = cell["policies"][policy]["ratios"].get(name)
            if ratio is not None and ratio[0] > 0:
                at = rows.index(key(cell)), surfaces.index(cell["surface"])
                grid[at[0]][at[1]] = shade = _colour(ratio[0], sign)
                axis.text(
                    at[1],
                    at[0],
                    f"{ratio[0]:.3g}" if ratio[0] >= 10 else f"{ratio[0]:.2f}",
                    ha="center",
                    va="center",
                    fontsize=6,
                    color="white" if abs(shade) > 0.75 else "black",
                )
        axis.imshow(grid, cmap="RdBu", vmin=-1, vmax=1, aspect="auto")
        axis.set_title(title, fontsize=9)
        axis.set_xticks(range(len(surfaces)), surfaces, fontsize=7, rotation=40, ha="right")
    labels = [
        f"{s} {topologies[t] + ' ' if len(topologies) > 1 else ''}{TRACE_NAMES[w]} {LOADS[ld]}" for s, t, w, ld in rows
    ]
    axes[0].set_yticks(range(len(rows)), labels, fontsize=6.5)
    figure.suptitle(f"{policy} / fcfs: blue is better, red is worse; the colour ends at a factor of 4", fontsize=9)
    return figure


def _shares(plt: Any, board: Board, policy: str) -> Any:
    cells = [c for c in board["cells"] if "bound_share" in c["policies"]["fcfs"]]
    if not cells:
        return None
    names = [name for name in ("fcfs", "density_first", policy) if any(name in c["policies"] for c in cells)]
    names = list(dict.fromkeys(names))
    figure, axis = plt.subplots(layout="constrained", figsize=(7.5, 0.9 + 0.2 * len(cells)))
    colours = {"fcfs": "tab:gray", "density_first": "tab:orange", policy: "tab:green"}
    for name, marker in zip(names, "|xo", strict=False):
        points = [(c["policies"][name]["bound_share"], at) for at, c in enumerate(cells) if name in c["policies"]
                  and "bound_share" in c["policies"][name]]  # fmt: skip
        axis.plot(*zip(*points, strict=True), marker, label=name, color=colours.get(name), markersize=6, alpha=0.85)
    axis.set_yticks(range(len(cells)), [f"{c['system']} {c['surface']} {c['topology']} {c['trace']}" for c in cells],
                    fontsize=6.5)  # fmt: skip
    axis.set_xlim(0, 1)
    axis.set_ylim(len(cells) - 0.5, -0.5)
    axis.axvline(0.5, color="lightgray", linewidth=0.8, zorder=0)
    axis.grid(axis="y", color="whitesmoke")
    axis.tick_params(axis="x", labelsize=7)
    axis.set_xlabel("throughput / fluid bound (1: nothing can be faster)", fontsize=8)
    axis.legend(fontsize=7, loc="lower left")
    return figure


def _frontier(plt: Any, board: Board) -> Any:
    """Cells with more than the core policies: mean E2E against p99 E2E, both over fcfs (lower left is better)."""
    cells = [c for c in board["cells"] if len(c["policies"]) > 3 and c["surface"] != "lockstep"][:20]
    if not cells:
        return None
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

    columns = min(4, len(cells))
    lines = -(-len(cells) // columns)
    figure, axes = plt.subplots(
        lines, columns, squeeze=False, layout="constrained", figsize=(2.5 * columns, 2.3 * lines)
    )
    names = sorted({name for cell in cells for name in cell["policies"]})
    colour = {name: f"C{at}" for at, name in enumerate(names)}
    for axis in axes.flat[len(cells) :]:
        axis.axis("off")
    for axis, cell in zip(axes.flat, cells, strict=False):
        for name, policy in cell["policies"].items():
            ratios = policy.get("ratios", {})
            if "e2e_mean" in ratios and "e2e_p99" in ratios:
                axis.plot(
                    ratios["e2e_mean"][0], ratios["e2e_p99"][0], "o", color=colour[name], label=name, markersize=5
                )
        axis.axhline(1, color="lightgray", linewidth=0.8, zorder=0)
        axis.axvline(1, color="lightgray", linewidth=0.8, zorder=0)
        for scale in (axis.set_xscale, axis.set_yscale):
            scale("log")
        for side in (axis.xaxis, axis.yaxis):
            side.set_major_locator(MaxNLocator(4))
            side.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            side.set_minor_locator(NullLocator())
        axis.margins(0.15)
        axis.tick_params(labelsize=6)
        where = "" if cell["topology"] == "pool" else f" {cell['topology']}"
        axis.set_title(f"{cell['surface']}{where} {cell['trace']} {cell['load']}", fontsize=7)
    handles = [plt.Line2D([], [], marker="o", linestyle="", color=colour[name], label=name) for name in names]
    figure.legend(handles=handles, fontsize=7, loc="outside lower center", ncol=min(5, len(names)))
    figure.suptitle("mean E2E (across) and p99 E2E (up), over fcfs: lower left is better", fontsize=9)
    return figure
