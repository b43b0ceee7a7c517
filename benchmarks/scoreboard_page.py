"""The scoreboard's page: what must hold and what does not, losses first, heat maps, the bound, and the frontier.

Made from the results alone (`python -m benchmarks.scoreboard --page`); pictures go to ``img/`` beside the page.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from benchmarks.board_cells import BLOCKS, ONLINE_REQUESTS, ROOT, SEEDS, SURFACES, SYSTEMS, TRACE_NAMES, design
from benchmarks.board_plots import draw
from benchmarks.board_targets import MISS, OURS, UNSETTLED, VERDICTS, WIDE, Check, checks, name_of

PAGE = ROOT / "docs" / "scoreboard.md"
WORST = 25
LISTED = 12  # cells of a demand that are not settled
Board = Mapping[str, Any]

INTRO = """\
# Scoreboard

Every policy beside `fcfs` on the same requests, surface by surface, in simulated time. Made by

```sh
python -m benchmarks.scoreboard --jobs 2     # about two hours; `--minutes 35` runs the most telling cells
python -m benchmarks.scoreboard --page       # this page from benchmarks/results/scoreboard.json
```

**Read it with this in mind.** Everything here is a simulation over modelled costs (`docs/costs.md` says how close these
are, `docs/fidelity.md` how close whole servers are). Claims about GPUs should use `gated`, the surface that was
measured; `unsplit` and `padded` are limit cases. A ratio is over `fcfs` on the very same requests and arrivals: for
throughput more is better, for latencies less. Means are over {seeds} seeds or windows (or over more where that is said:
in cells that {seeds} left open); ± is half of a 95 % interval. A demand counts as met only where half-widths are within
1 % (throughput) and 3 % (p99) of it. Else the cell is "clear but wide" where the whole interval lies on the right side
of the limit, and "not settled" where it does not. Why what is not met is not:
[scoreboard-reasons.md](scoreboard-reasons.md).

A cell is model/surface/topology/trace/load ([conditions](#conditions)). `cost_aligned:remaining` is `cost_aligned` with
`order="remaining"`, `cost_aligned:tpot` with a `tpot_target_s` of 50 ms; `round_robin` is placement on a lane's ranks
in turn.
"""

CELLS = """\
# Scoreboard: every cell

Means over seeds of what [the scoreboard](scoreboard.md) shows as ratios. Seconds, as mean / p50 / p99 (of each seed,
then averaged); `gap` is the longest between two tokens of a request, `goodput` requests a second that kept their
objectives, `GB` what was copied between memories. Half-widths are in `benchmarks/results/scoreboard.json`.
"""

CONDITIONS = """\
## Conditions

| | |
| --- | --- |
| models | {systems} |
| surfaces | `balanced`, `gated`, `unsplit`, `padded` (`docs/costs.md`); `lockstep`: a lane of 8 balanced ranks that meet every step |
| `pool` | one decoding lane; prefill takes no time and the host holds any amount of KV, so that decode alone decides |
| `colocated` | the lane prefills and decodes |
| `disaggregated`, `unstaged` | as many prefill GPUs as decoding ones; with and without staging memory on them |
| traces | rows: {real}; drawn here from shapes: {drawn} (`docs/workloads.md`). `azure` and `mooncake` are recordings (Mooncake's 3 s ticks spread); `r1` and `m-large` were drawn from statistics that ServeGen published |
| offline | all requests at once; of real traces {offline:,} of the rows in random order, by seed: the interval says what order does, not what another day's trace would |
| load | share of what `fcfs` sustains offline in the same cell with the same requests: nine tenths of them over the time until that many have ended. "even": of what it sustains at zero imbalance cost |
| online | {online:,} requests; of real traces five windows; under lockstep twice as many, windows overlap |
| objectives | {promised} (chosen, not measured); a request counts in goodput when it keeps both |
| b | throughput of `fcfs` at zero imbalance cost / `fcfs`, offline and at loads that are the same there |
| bound | `benchmarks/fluid.py`: no schedule is faster, however clairvoyant |

Of all combinations these are run, in this order: {blocks}. What a policy is: [policies](policies.md); `sjf_oracle` alone
knows output lengths.

Above capacity latencies grow with the length of the run, and offline a p99 is the makespan of the last stragglers.
Under `pool`, time to first token is what a policy's admission makes of it, nothing else; read E2E there.
"""  # noqa: E501


def write_page(board: Board, page: Path) -> None:
    """Write the page and its pictures."""
    page.parent.mkdir(parents=True, exist_ok=True)
    pictures = draw(board, page.parent / "img", ours(board))
    page.write_text(text_of(board, pictures), encoding="utf-8")
    page.with_name(f"{page.stem}-cells.md").write_text(cells_text(board), encoding="utf-8")


def ours(board: Board) -> str:
    """The policy the page is about: the default one, where it ran."""
    ran = {name for cell in board["cells"] for name in cell["policies"]}
    return OURS if OURS in ran else "density_first"


def text_of(board: Board, pictures: Mapping[str, str]) -> str:
    """The page in Markdown."""
    about, about_policy = board["about"], ours(board)
    parts = [INTRO.format(seeds=about["seeds"])]
    if not board["cells"]:
        return "\n".join([*parts, "No cell has been run yet.\n"])
    found = list(checks(board))
    parts += [_coverage(board), _demands(found, about_policy), _worst(board, about_policy)]
    parts += [f"## {title}\n\n![{title}](img/{file})\n" for title, file in pictures.items()]
    parts += [_tables(board), _offline(board, about_policy), _everybody(board), _conditions(board)]
    return "\n".join(part for part in parts if part)


def cells_text(board: Board) -> str:
    """Every figure of every cell, as measured: the page beside the page."""
    heads = "tok/s | TTFT | TPOT | TPOT decoding | E2E | pool wait | E2E, longest 2 % | gap | goodput | preempted | GB"
    spreads = ("ttft", "tpot", "tpot_decoding", "e2e", "pool_wait", "e2e_long")
    lines = [CELLS]
    for cell in board["cells"]:
        lines += [f"**{name_of(cell)}**\n", f"| policy | {heads} |", "| --- " * 12 + "|"]
        for name, policy in cell["policies"].items():
            own = policy.get("figures")
            if own is None:
                lines.append(f"| `{name}` | failed |" + " |" * 10)
                continue
            shown = [
                " / ".join(_number(own.get(f"{spread}_{key}")) for key in ("mean", "p50", "p99")) for spread in spreads
            ]
            rest = [_number(own.get(key)) for key in ("gap_max", "goodput", "preemptions", "copied_gb")]
            lines.append(f"| `{name}` | {_number(own['throughput'])} | {' | '.join(shown + rest)} |")
        lines.append("")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _coverage(board: Board) -> str:
    cells = board["cells"]
    whole = sum(all(p["seeds"] >= board["about"]["seeds"] for p in cell["policies"].values()) for cell in cells)
    planned = len(design())
    ran = sorted({name for cell in cells for name in cell["policies"]})
    failed = [(cell, name) for cell in cells for name, p in cell["policies"].items() if p.get("errors")]
    lines = [f"{len(cells)} of {planned} planned cells were run, {whole} of them with every seed "
             "([all figures of all cells](scoreboard-cells.md)). Policies: "
             + ", ".join(f"`{name}`" for name in ran) + "."]  # fmt: skip
    lines += [
        f"* **failed:** `{name}` in {name_of(cell)}: {'; '.join(cell['policies'][name]['errors'])}"
        for cell, name in failed
    ]
    return "\n".join(lines) + "\n"


def _demands(found: list[Check], about_policy: str) -> str:
    lines = ["## What must hold, and what does not\n"]
    if not found:
        return lines[0] + f"\n`{OURS}` was not run, so nothing can be said of it; the tables are of `{about_policy}`.\n"
    lines += ["| demand | " + " | ".join(VERDICTS).lower() + " |", "| --- " * (1 + len(VERDICTS)) + "|"]
    groups = [(title, list(group)) for title, group in groupby(found_by_demand(found), key=lambda check: check.demand)]
    for title, group in groups:
        *fine, missed_count = [sum(check.verdict == verdict for check in group) for verdict in VERDICTS]
        shown = f"**{missed_count}**" if missed_count else "0"
        lines.append(f"| {title} | " + " | ".join(map(str, fine)) + f" | {shown} |")
    lines.append("")
    for title, group in groups:
        lists = [_listed([c for c in group if c.verdict == verdict], verdict) for verdict in (MISS, UNSETTLED, WIDE)]
        if any(lists):
            lines += [f"**{title}**\n", *(line for listed in lists for line in listed), ""]
    return "\n".join(lines)


def found_by_demand(found: list[Check]) -> list[Check]:
    """Checks grouped by demand, in order of their first appearance."""
    order = {title: at for at, title in reversed(list(enumerate(check.demand for check in found)))}
    return sorted(found, key=lambda check: order[check.demand])


def _listed(group: list[Check], verdict: str) -> list[str]:
    most = len(group) if verdict == MISS else LISTED  # whatever is not met is shown with its figures
    lines = [f"* {verdict}: {check.cell}: {check.text}" for check in group[:most]]
    return lines + ([f"* {verdict}, further: " + "; ".join(c.cell for c in group[most:])] if group[most:] else [])


def _ratio(policy: Mapping[str, Any], name: str) -> float | None:
    ratio = policy.get("ratios", {}).get(name)
    return None if ratio is None else float(ratio[0])


def _worst(board: Board, about_policy: str) -> str:
    """Cells by how much is lost in the worst of throughput, mean and p99, the worst first."""
    losses = []
    for cell in board["cells"]:
        ran = cell["policies"].get(about_policy)
        if ran is None or not ran["seeds"]:
            continue
        values = {name: _ratio(ran, name) for name in ("throughput", "e2e_mean", "e2e_p99")}
        if any(value is None for value in values.values()):
            continue
        loss = max(1 / max(values["throughput"] or 0, 1e-9), values["e2e_mean"] or 0, values["e2e_p99"] or 0)
        losses.append((loss, name_of(cell), ran))
    losses.sort(key=lambda entry: (-entry[0], entry[1]))
    lines = [f"## `{about_policy}`: where it does worst\n",
             "Ratios to `fcfs`, the worst cell first, wins or not (offline, p99 is the last stragglers).\n",
             "| cell | throughput | mean E2E | p99 E2E | longest 2 %, mean | TPOT p99 | longest gap s | preempted |",
             "| --- | --- | --- | --- | --- | --- | --- | --- |"]  # fmt: skip
    for _, name, ran in losses[:WORST]:
        shown = " | ".join(_shown(ran, figure) for figure in ("throughput", "e2e_mean", "e2e_p99", "e2e_long_mean",
                                                               "tpot_p99"))  # fmt: skip
        figures = ran["figures"]
        lines.append(f"| {name} | {shown} | {figures['gap_max']:.3g} | {figures['preemptions']:.0f} |")
    return "\n".join(lines) + "\n"


def _shown(policy: Mapping[str, Any], name: str) -> str:
    """A ratio with its half-width; a loss of more than 1 % in bold."""
    ratio = policy.get("ratios", {}).get(name)
    if ratio is None:
        return ""
    mean, half = ratio
    worse = mean < 0.99 if name in ("throughput", "goodput") else mean > 1.01
    text = f"{mean:.2f}" + (f" ± {half:.2f}" if half is not None and half >= 0.005 else "")
    return f"**{text}**" if worse else text


def _tables(board: Board) -> str:
    """A table per system and topology: a line per trace, load and policy, a column per surface."""

    def key(cell: Mapping[str, Any]) -> tuple[str, str]:
        return cell["system"], cell["topology"]

    order = {trace: at for at, trace in enumerate(TRACE_NAMES)}
    lines = ["## Throughput / mean E2E / p99 E2E, ratios to `fcfs`\n",
             "Losses of more than 1 % in throughput or 5 % in a latency are bold.\n"]  # fmt: skip
    cells = sorted(board["cells"], key=lambda c: (*key(c), order.get(c["trace"], 99), c["load"]))
    for (system, topology), group in groupby(cells, key=key):
        rows: dict[tuple[str, str, str], dict[str, str]] = {}
        for cell in group:
            for name in ("density_first", OURS):
                if name in cell["policies"]:
                    rows.setdefault((cell["trace"], cell["load"], name), {})[cell["surface"]] = _triple(
                        cell["policies"][name]
                    )
        surfaces = [surface for surface in SURFACES if any(surface in row for row in rows.values())]
        lines += [f"**{system}, {topology}**\n", "| trace | load | policy | " + " | ".join(surfaces) + " |",
                  "| --- " * (3 + len(surfaces)) + "|"]  # fmt: skip
        for (trace, load, name), row in rows.items():
            lines.append(f"| {trace} | {load} | `{name}` | " + " | ".join(row.get(s, "") for s in surfaces) + " |")
        lines.append("")
    return "\n".join(lines)


def _triple(policy: Mapping[str, Any]) -> str:
    if not policy["seeds"]:
        return "failed"
    shown = []
    for name in ("throughput", "e2e_mean", "e2e_p99"):
        value = _ratio(policy, name)
        if value is None:
            shown.append("?")
            continue
        worse = value < 0.99 if name == "throughput" else value > 1.05
        text = f"{value:.2f}" if value < 10 else f"{value:.0f}"
        shown.append(f"**{text}**" if worse else text)
    return " / ".join(shown) + (f" ({policy['seeds']} seeds)" if policy["seeds"] != SEEDS else "")


def _offline(board: Board, about_policy: str) -> str:
    """The two yardsticks of every offline cell."""
    lines = ["## Offline: what could be had\n",
             "Tokens a second, and their share of the fluid bound; b as below.\n",
             f"| cell | b | bound tok/s | by | `fcfs` tok/s | share | `density_first` | `{about_policy}` | share |",
             "| --- " * 9 + "|"]  # fmt: skip
    for cell in board["cells"]:
        if cell["load"] != "offline" or "bound_tok_s" not in cell:
            continue
        plain, other = cell["policies"]["fcfs"], cell["policies"].get("density_first", {})
        mine = cell["policies"].get(about_policy, {})
        b = f"{cell['b']:.2f}" if "b" in cell else ""
        lines.append(
            f"| {name_of(cell)} | {b} | {cell['bound_tok_s']:.0f} | {', '.join(cell['bound_by'])} | "
            f"{plain['figures']['throughput']:.0f} | {_share(plain)} | {_share(other)} | "
            f"{mine.get('figures', {}).get('throughput', 0):.0f} | {_share(mine)} |"
        )
    return "\n".join(lines) + "\n" if len(lines) > 4 else ""


def _share(policy: Mapping[str, Any]) -> str:
    return f"{policy['bound_share']:.0%}" if "bound_share" in policy else ""


def _everybody(board: Board) -> str:
    """Cells with more than the core policies: all figures of all of them."""
    figures = ("throughput", "ttft_mean", "e2e_mean", "e2e_p99", "e2e_long_mean", "tpot_p99", "tpot_decoding_p99",
               "goodput")  # fmt: skip
    lines = ["## Every policy\n", "Ratios to `fcfs`, then its own longest gap (s), preemptions, copies (GB).\n"]
    count = 0
    for cell in board["cells"]:
        if len(cell["policies"]) <= 3:
            continue
        count += 1
        lines += [f"**{name_of(cell)}**\n", "| policy | " + " | ".join(figures) + " | gap | preemptions | copies |",
                  "| --- " * (4 + len(figures)) + "|"]  # fmt: skip
        for name, policy in cell["policies"].items():
            if policy["seeds"]:
                own, shown = policy["figures"], " | ".join(_shown(policy, figure) for figure in figures)
                rest = f"{own['gap_max']:.3g} | {own['preemptions']:.0f} | {own['copied_gb']:.0f}"
                lines.append(f"| `{name}` | {shown} | {rest} |")
        lines.append("")
    return "\n".join(lines) if count else ""


def _conditions(board: Board) -> str:
    real = board["about"]["real_traces"]
    ran = {cell["trace"] for cell in board["cells"]}
    promised = "; ".join(
        f"{name}: TTFT ≤ {system.promised.ttft_s:g} s, TPOT ≤ {1000 * system.promised.tpot_s:g} ms"
        for name, system in SYSTEMS.items()
    )
    systems = "; ".join(
        f"{name}: {system.model} on {system.hardware}, lengths cut to {system.clamp:,}"
        for name, system in SYSTEMS.items()
    )
    return CONDITIONS.format(
        systems=systems, real=_names(real), drawn=_names(sorted(ran - set(real))), promised=promised,
        blocks="; ".join(block.why for block in BLOCKS), online=ONLINE_REQUESTS, offline=10_000,
    )  # fmt: skip


def _names(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "none"


def listed_checks(board: Board) -> Iterator[str]:
    """Every check as one line, for a terminal."""
    for check in found_by_demand(list(checks(board))):
        yield f"{check.verdict:12} {check.demand}: {check.cell}: {check.text}"
