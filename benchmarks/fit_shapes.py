"""Fits the figures of the built-in workloads from the published traces, and says how closely they match.

    python benchmarks/fit_shapes.py            print fitted figures as Python, for alignedsched/workloads/fitted.py
    python benchmarks/fit_shapes.py --check    compare the built-in workloads with the traces (a Markdown table)

The traces are looked for in ``../shared/traces`` beside the repository, or where ``--traces`` says.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

import numpy as np
from attrs import evolve

from alignedsched.workloads import PERCENTILES, Description, Workload, describe, read_trace, spread_ticks, workload
from alignedsched.workloads.describe import fano, gap_cv
from alignedsched.workloads.synthesis import EDGES, HOUR_S, Arrivals, Marginal, draw_arrivals, rate_levels

TRACES = {
    "azure-conv": "azure_llm_2023_conv.csv.gz",
    "mooncake": "mooncake_conversation.jsonl.gz",
    "reasoning": "servegen_deepseek_r1_2h.csv.gz",
    "m-large": "servegen_m_large_1h.csv.gz",
}
DEFAULT = Path(__file__).resolve().parents[1].parent / "shared" / "traces"
KNOTS = 20
SEEDS = range(12)


def real(name: str, folder: Path) -> Workload:
    """A published trace; Mooncake's arrivals spread inside their 3-s ticks."""
    trace = Workload.from_rows(name, read_trace(folder / TRACES[name]))
    return spread_ticks(trace) if name == "mooncake" else trace


def fit_marginal(values: np.ndarray, knots: int = KNOTS) -> Marginal:
    """The ``knots`` quantile figures that approximate the quantile function best (dynamic programming, exact).

    Error of a stretch: squared error of the logarithm plus squared error over the mean, summed over probabilities.
    Candidates are denser towards the upper end, where the mass of tokens is.
    """
    ordered = np.sort(values).astype(float)
    at = np.unique(
        np.concatenate(
            (
                np.arange(0, 1, 0.0125),
                np.arange(0.95, 0.99, 0.005),
                np.arange(0.99, 0.999, 0.001),
                [0.001, 0.005, 0.999, 0.9995, 1.0],
            )
        ).round(6)
    )
    place = np.minimum((at * len(ordered)).astype(int), len(ordered) - 1)
    height = np.log(ordered[place])
    probes = (np.arange(4000) + 0.5) / 4000
    truth = ordered[(probes * len(ordered)).astype(int)]
    mean = ordered.mean()
    cost = np.full((len(at), len(at)), np.inf)
    for i in range(len(at)):
        for j in range(i + 1, len(at)):
            inside = slice(*np.searchsorted(probes, (at[i], at[j])))
            drawn = np.exp(np.interp(probes[inside], at[[i, j]], height[[i, j]]))
            cost[i, j] = np.sum(np.log(drawn / truth[inside]) ** 2 + ((drawn - truth[inside]) / mean) ** 2)
    best, back = cost[0].copy(), []
    for _ in range(knots - 2):
        through = best[:, None] + cost
        back.append(through.argmin(axis=0))
        best = through.min(axis=0)
    chosen = [len(at) - 1]
    for step in reversed(back):
        chosen.append(int(step[chosen[-1]]))
    chosen = [0, *reversed(chosen)]
    return Marginal(tuple(at[chosen].tolist()), tuple(int(ordered[place[c]]) for c in chosen))


def fit_grid(prompt: np.ndarray, output: np.ndarray) -> tuple[tuple[int, ...], ...]:
    """Chances in 1/10,000 of each output part by rank, for each prompt part by rank; ties are split at random."""
    rng = np.random.Generator(np.random.PCG64(0))

    def part(values: np.ndarray) -> np.ndarray:
        rank = np.argsort(np.lexsort((rng.random(len(values)), values)))
        return np.searchsorted(EDGES[1:-1], (rank + 0.5) / len(values), side="right")

    counts = np.zeros((len(EDGES) - 1, len(EDGES) - 1))
    np.add.at(counts, (part(prompt), part(output)), 1)
    chances = counts / counts.sum(axis=1, keepdims=True)
    return tuple(tuple(round(10_000 * float(chance)) for chance in row) for row in chances)


def weibull_shape(cv: float) -> float:
    """The Weibull shape whose coefficient of variation is ``cv`` (bisection; cv falls as the shape grows)."""
    low, high = 0.2, 5.0
    for _ in range(60):
        middle = (low + high) / 2
        found = math.sqrt(math.gamma(1 + 2 / middle) / math.gamma(1 + 1 / middle) ** 2 - 1)
        low, high = (middle, high) if found > cv else (low, middle)
    return (low + high) / 2


def fit_arrivals(times: np.ndarray) -> Arrivals:
    """Rate, gap shape, and the moving rate's cv and stretch, so that gap cv and the Fano factors at 10 s and 60 s fit.

    Start from the closed forms F(w) = g² + rate·w·c²·(1 - w/3B) (g: cv of the gaps at constant rate, c: cv of the
    rate, B: stretch) and 1 + cv² = (1 + g²)·E[1/r], then correct against what is really drawn.
    """
    rate = float((len(times) - 1) / (times[-1] - times[0]))
    want_cv, want_10, want_60 = gap_cv(times), fano(times, 10.0), fano(times, 60.0)
    g2, c2, stretch = 1.0, 0.05, 200.0
    for _ in range(40):
        c2 = float(max((want_10 - g2) / (rate * 10 * (1 - 10 / (3 * stretch))), 1e-4))
        share = (want_60 - g2) / (60 * rate * c2)
        stretch = float(np.clip(20 / max(1 - share, 1e-3), 60, 450))
        inverse = float(np.mean(1 / rate_levels(Arrivals(rate, 1.0, math.sqrt(c2), round(HOUR_S / stretch)))))
        g2 = float(max((1 + want_cv**2) / inverse - 1, 0.3))
    fitted = Arrivals(rate, weibull_shape(math.sqrt(g2)), math.sqrt(c2), round(HOUR_S / stretch))
    for _ in range(8):
        drawn = [draw_hour(fitted, seed) for seed in SEEDS]
        g2 *= (want_cv / float(np.mean([gap_cv(t) for t in drawn]))) ** 2
        c2 = max(c2 + (want_10 - float(np.mean([fano(t, 10.0) for t in drawn]))) / (rate * 10), 1e-4)
        fitted = evolve(fitted, gap_shape=weibull_shape(math.sqrt(g2)), rate_cv=math.sqrt(c2))
    return evolve(
        fitted, rate_per_s=round(rate, 3), gap_shape=round(fitted.gap_shape, 3), rate_cv=round(fitted.rate_cv, 3)
    )


def draw_hour(arrivals: Arrivals, seed: int) -> np.ndarray:
    """An hour's arrival times."""
    gaps, order = (np.random.Generator(np.random.PCG64(s)) for s in np.random.SeedSequence(seed).spawn(2))
    return draw_arrivals(arrivals, gaps, order, round(arrivals.rate_per_s * HOUR_S))


def print_fit(name: str, folder: Path) -> None:
    """One shape's figures as Python."""
    trace = real(name, folder)
    print(f"# {name}: {TRACES[name]}")
    for column, values in (("prompt", trace.prompt_tokens), ("output", trace.output_tokens)):
        marginal = fit_marginal(values)
        print(f"{column}=Marginal(\n    {marginal.at},\n    {marginal.tokens},\n),")
    arrivals = fit_arrivals(trace.arrival_s)
    print(f"arrivals=Arrivals({arrivals.rate_per_s}, {arrivals.gap_shape}, {arrivals.rate_cv}, {arrivals.levels}),")
    print("grid=(")
    for row in fit_grid(trace.prompt_tokens, trace.output_tokens):
        print(f"    {row},")
    print("),\n")


def line(label: str, d: Description) -> str:
    """One row of the comparison table."""
    prompt = "/".join(f"{p:.0f}" for p in d.prompt_percentiles)
    output = "/".join(f"{p:.0f}" for p in d.output_percentiles)
    return (
        f"| {label} | {d.rate_per_s:.2f} | {prompt} | {d.prompt_mean:.0f} | {output} | {d.output_mean:.0f} "
        f"| {d.rank_correlation:+.2f} | {d.gap_cv:.2f} | {d.fano_10s:.1f} | {d.fano_60s:.1f} |"
    )


def print_check(folder: Path) -> None:
    """The built-in workloads (seed 0, as many requests as the trace has) beside the traces."""
    percentiles = "/".join(str(p) for p in PERCENTILES)
    print(
        f"| workload | rate /s | prompt {percentiles} | mean | output {percentiles} | mean | rank corr. | gap cv "
        "| Fano 10 s | Fano 60 s |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for name in TRACES:
        trace = real(name, folder)
        print(line(f"{name}, trace", describe(trace)))
        print(line(f"{name}, built-in", describe(workload(name, seed=0, n=len(trace)))))


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--traces", type=Path, default=DEFAULT, help="folder of the traces (default: %(default)s)")
    parser.add_argument("--check", action="store_true", help="compare instead of fitting")
    parser.add_argument("names", nargs="*", help=f"of {', '.join(TRACES)} (default: all)")
    options = parser.parse_args()
    if not options.traces.is_dir():
        print(f"skipped: no folder of traces at {options.traces}")
        return 0
    if options.check:
        print_check(options.traces)
        return 0
    for name in options.names or TRACES:
        print_fit(name, options.traces)
    return 0


if __name__ == "__main__":
    sys.exit(main())
