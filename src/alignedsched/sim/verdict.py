"""What two simulated runs come to: a word, a sentence, and what to measure next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from ..cluster import Cluster
from ..workloads import Workload
from .step_fit import Fit
from .step_kinds import LEAST

PLAIN, DEFAULT = "fcfs", "cost_aligned"
SAME = 0.02  # ratios this near to 1 are no difference
Word = Literal["gains", "changes nothing", "loses", "mixed", "undecided"]


def ratios_of(runs: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """How many times better the default policy does than continuous batching; above 1 is better."""
    plain, aligned = runs

    def times(kind: str, part: str) -> float | None:
        before, after = plain["latency_s"][kind][part], aligned["latency_s"][kind][part]
        return before / after if before and after else None

    rate = plain["throughput_tok_s"]
    return {
        "throughput": aligned["throughput_tok_s"] / rate if rate else None,
        "e2e_mean": times("e2e", "mean"),
        "tpot_mean": times("tpot", "mean"),
        "ttft_p99": times("ttft", "p99"),
        "itl_p99": times("itl", "p99"),
    }


def word_of(ratios: dict[str, float | None]) -> Word:
    """By throughput and mean time to the end: what a whole and what a client get."""
    both = [ratio for ratio in (ratios["throughput"], ratios["e2e_mean"]) if ratio is not None]
    up, down = max(both, default=1.0) >= 1.0 + SAME, min(both, default=1.0) <= 1.0 - SAME
    return "mixed" if up and down else "gains" if up else "loses" if down else "changes nothing"


def verdict_of(runs: list[dict[str, Any]], others: list[dict[str, Any]]) -> dict[str, Any]:
    """The word, its sentence and the ratios; undecided if another surface that the log allows says another word."""
    ratios = ratios_of(runs)
    word, told = word_of(ratios), _told(ratios)
    sentence = {
        "gains": f"{DEFAULT} gains on your machine: {told}",
        "changes nothing": f"{DEFAULT} changes nothing on your machine: {told}",
        "loses": f"{DEFAULT} would lose on your machine, stay with {PLAIN}: {told}",
        "mixed": f"{DEFAULT} gains and loses on your machine: {told}",
    }[word]
    differ = [other for other in others if word_of(other) != word]
    if differ:
        surface = differ[0]["costs"]["surface"]
        sentence = (
            f"the log cannot tell whether it pays: as fitted, {DEFAULT} {word} ({told}); were the surface {surface}, "
            f"which the log does not exclude, it {word_of(differ[0])} ({_told(differ[0])})"
        )
        word = "undecided"
    least, plain = runs[0]["bound_s"], runs[0]["simulated_s"]
    sentence += f"; no scheduler could do this work in less than {_seconds(least)}, {PLAIN} takes {_seconds(plain)}"
    return {"word": word, "sentence": sentence, **ratios}


def _told(ratios: dict[str, Any]) -> str:
    """The ratios in words; those of waiting only where they are worse."""
    parts = [
        f"{_times(ratios[name])} {words}"
        for name, words in (("throughput", "the throughput"), ("e2e_mean", "as fast to the end on average"))
        if ratios[name] is not None
    ]
    for name, words in (("ttft_p99", "time to first token"), ("itl_p99", "gap between tokens")):
        ratio = ratios[name]
        if ratio is not None and ratio < 0.9:
            parts.append(f"but {_times(1 / ratio)} the 99th percentile of the {words}")
    return ", ".join(parts)


def _seconds(value: float) -> str:
    """Seconds, to three digits."""
    return f"{value:,.0f} s" if value >= 99.95 else f"{value:.3g} s"


def _times(ratio: float) -> str:
    return f"{ratio:.2f} times"


def measure_next(
    found: Fit, runs: list[dict[str, Any]], others: list[dict[str, Any]], workload: Workload, cluster: Cluster,
    load: float | None, word: Word,
) -> list[str]:  # fmt: skip
    """What would make the answer surer, the most important first."""
    advice = []
    low, high = found.stretch
    if word == "undecided":
        advice.append(
            f"log steps with unequal lengths at full batches (longest over mean was {low:.1f} to {high:.1f}): "
            "one request of several thousand tokens among many short ones tells the surfaces apart"
        )
    if found.chosen.error > 0.1:
        advice.append(
            f"half of the steps are more than {100 * found.chosen.error:.0f} % off every surface: log the device's own "
            "time of a step, and check that prefill tokens and members are those of the same step"
        )
    if found.with_prefill < LEAST:
        advice.append("log steps with prefill, too: what a prompt token costs was assumed to be what a member costs")
    if found.decode_only < LEAST:
        advice.append("log steps without prefill, too: they show decoding alone")
    longest = int((workload.prompt_tokens + workload.output_tokens).max())
    if longest > 1.2 * found.longest:
        advice.append(
            f"the trace's longest request has {longest:,} tokens, the log's longest {found.longest:,}: log longer ones"
        )
    if cluster.lanes[0].max_members > 1.2 * found.most_members:
        advice.append(
            f"batches of up to {cluster.lanes[0].max_members} may run, the log's largest has {found.most_members}: "
            "log larger ones"
        )
    if load is not None and load < 0.5:
        advice.append(
            f"the trace makes a load of {load:.2f}: with so little to do nothing can be gained; try --load 0.9 for "
            "a busy hour"
        )
    rejected = runs[0]["requests"]["rejected"]
    if rejected:
        advice.append(
            f"{rejected:,} requests are longer than the device's KV memory and were left out: give --kv-blocks"
        )
    if word in ("gains", "mixed"):
        advice.append("run it: give the fitted costs (--costs FILE) to the adapter, and compare in the same hour")
    return advice
