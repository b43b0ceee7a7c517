"""The GPU benchmark's findings against their targets, and as text."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median
from typing import Any

Rows = list[dict[str, Any]]
OURS = "balanced"
LIBRARIES = ("library", "flashinfer")
ATTENTION, SCATTERED, PREFETCH, STEP, HOST = 0.85, 0.90, 0.05, 1.15, 100e-6
PAGE_BYTES = 8 << 20  # the executor's page on GPUs, all layers of Llama-3.1-8B


def targets(sections: dict[str, Any]) -> list[dict[str, Any]]:
    """Each target with what was found; ``holds`` None: nothing was."""
    found = []
    for name, wanted, value, holds in (
        *_attention(_rows(sections, "attention")),
        *_copies(_rows(sections, "copies")),
        *_steps(_rows(sections, "steps")),
    ):
        found.append({"target": name, "wanted": wanted, "found": value, "holds": holds})
    return found


def _rows(sections: dict[str, Any], name: str) -> Rows:
    rows: Rows = sections.get(name, {}).get("rows", [])
    return rows


def copy_bandwidth(rows: Rows) -> float | None:
    """Of one section: the median of what it saw at its begin and its end."""
    seen = [row["copy_bytes_per_s"] for row in rows if row["what"] == "state"]
    return median(seen) if seen else None


def _attention(rows: Rows) -> Iterator[tuple[str, str, float | None, bool | None]]:
    bandwidth = copy_bandwidth(rows)
    timed = [row for row in rows if row["what"] == "attention"]
    by: dict[tuple[str, str], float] = {(row["batch"], row["kernel"]): row["seconds"] for row in timed}
    big = [row for row in timed if row["big"] and row["kernel"] == OURS]
    shares = [row["bytes_per_s"] / bandwidth for row in big] if bandwidth else []
    least = min(shares, default=None)
    yield (f"decode attention, worst batch of 256 MB and more, of the copy bandwidth ({len(shares)} batches)",
           f">= {ATTENTION:.0%}", least, None if least is None else least >= ATTENTION)  # fmt: skip
    for library in LIBRARIES:
        ratios = [by[batch, library] / seconds for (batch, kernel), seconds in by.items()
                  if kernel == OURS and (batch, library) in by]  # fmt: skip
        worst = min(ratios, default=None)
        layout = next((f" ({row['reads']})" for row in timed if row["kernel"] == library), "")
        yield (
            f"decode attention, times as fast as {library}{layout}, worst batch",
            ">= 1.0",
            worst,
            (None if worst is None else worst >= 1.0),
        )


def _copies(rows: Rows) -> Iterator[tuple[str, str, float | None, bool | None]]:
    for way in ("host->device", "device->host"):
        whole = [r["bytes_per_s"] for r in rows if r["what"] == "copy" and r["way"] == way and r["how"] == "one copy"]
        pieces = [r["bytes_per_s"] for r in rows if r["what"] == "copy" and r["way"] == way and r["how"] == "copies"
                  and r["piece_bytes"] == PAGE_BYTES]  # fmt: skip
        share = pieces[0] / whole[0] if whole and pieces else None
        yield (
            f"scattered pages {way}, of one large copy",
            f">= {SCATTERED:.0%}",
            share,
            (None if share is None else share >= SCATTERED),
        )


def _steps(rows: Rows) -> Iterator[tuple[str, str, float | None, bool | None]]:
    prefetches = [row for row in rows if row["what"] == "prefetch" and row["default"] and row["way"] == "host->device"]
    slower = max((row["slower"] for row in prefetches), default=None)
    yield (
        "decode slowed by a prefetch beside it, chunks as they are",
        f"<= {PREFETCH:.0%}",
        slower,
        (None if slower is None else slower <= PREFETCH),
    )
    for members in (1, 64, 256):
        ratio = next((r["ratio"] for r in rows if r["what"] == "step" and r["members"] == members), None)
        yield (
            f"decode step of Llama-3.1-8B's shape, batch {members}, of its floor",
            f"<= {STEP}",
            ratio,
            (None if ratio is None else ratio <= STEP),
        )
    host = {row["members"]: row["seconds"] for row in rows if row["what"] == "host"}
    most = host.get(256)
    yield "host work of a step at 256 members, seconds", f"<= {HOST:g}", most, None if most is None else most <= HOST


def table(result: dict[str, Any]) -> str:
    """Everything as text."""
    sections = result["sections"]
    about = result["machine"]
    where = f"{about.get('gpu', about.get('processor'))}, torch {about.get('torch')}, triton {about.get('triton', '-')}"
    lines = [f"{result['what']}: {where}, CUDA {about.get('cuda', '-')}"]
    for name, part in sections.items():
        failed = [row for row in part["rows"] if row["what"] in ("failed", "left out")]
        lines.append(f"{name}: {part['status'][:200]}, {part['seconds']} s, {len(failed)} parts failed or left out")
        lines += [f"    {row['what']}: {row['part']}: {row.get('error', row.get('why'))}"[:160]
                  for row in failed[:5]]  # fmt: skip
    lines += ["", *_attention_table(_rows(sections, "attention")), "", *_chunk_table(_rows(sections, "steps"))]
    lines += ["", *_surface_table(_rows(sections, "surface"))]
    lines += ["", *_gain_table(_rows(sections, "gain")), "", f"{'target':<90}{'wanted':>10}{'found':>12}  holds"]
    for target in result["targets"]:
        found = "-" if target["found"] is None else f"{target['found']:.4g}"
        holds = {True: "yes", False: "NO", None: "not measured"}[target["holds"]]
        lines.append(f"{target['target']:<90}{target['wanted']:>10}{found:>12}  {holds}")
    return "\n".join(lines)


def _attention_table(rows: Rows) -> list[str]:
    bandwidth = copy_bandwidth(rows)
    lines = [f"{'batch':<34}{'kernel':<26}{'reads':<16}{'us':>10}{'of copy':>9}"]
    for row in rows:
        if row["what"] in ("attention", "variant") and bandwidth:
            lines.append(f"{row['batch']:<34}{row['kernel']:<26}{row['reads']:<16}{row['seconds'] * 1e6:>10.1f}"
                         f"{row['bytes_per_s'] / bandwidth:>9.1%}")  # fmt: skip
    return lines


def _chunk_table(rows: Rows) -> list[str]:
    lines = [f"{'copy beside decoding':<22}{'members':>8}{'chunk, MiB':>12}{'steps slower':>14}{'copy slower':>13}"]
    for row in rows:
        if row["what"] == "prefetch":
            copy = row["copy_beside_s"] / row["copy_alone_s"] - 1
            lines.append(f"{row['way']:<22}{row['members']:>8}{row['chunk_bytes'] / 2**20:>12.3g}{row['slower']:>14.1%}"
                         f"{copy:>13.1%}")  # fmt: skip
    return lines


def _surface_table(rows: Rows) -> list[str]:
    lines = [f"{'kernel':<12}{'KV heads':>9}{'surface':>10}{'gate':>6}{'s/fair':>8}{'error':>8}{'worst bubble':>14}"]
    for row in rows:
        if row["what"] != "surface":
            continue
        bubbles = [r["bubble"] for r in rows if r["what"] == "composition" and r["kernel"] == row["kernel"]
                   and r["kv_heads"] == row["kv_heads"] and r["bubble"] is not None]  # fmt: skip
        fair = row["s_against_fair_share"]
        lines.append(f"{row['kernel']:<12}{row['kv_heads']:>9}{row['surface']:>10}{row['gate'] or '-':>6}"
                     f"{'-' if fair is None else f'{fair:.2f}':>8}{row['error_p50']:>8.1%}"
                     f"{max(bubbles, default=0.0):>14.1%}")  # fmt: skip
    return lines


def _gain_table(rows: Rows) -> list[str]:
    lines = [f"{'kernel':<12}{'workload':<14}{'surface':>10}  tokens a second against fcfs"]
    for row in rows:
        if row["what"] == "gain":
            ways = ", ".join(f"{way} {value:.3f}" for way, value in row["against_fcfs"].items() if way != "fcfs")
            lines.append(f"{row['kernel']:<12}{row['workload']:<14}{row['surface']:>10}  {ways}")
    return lines
