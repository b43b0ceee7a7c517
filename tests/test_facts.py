"""What is known about alignment beforehand, shown by the simulator: where it gains, gains nothing, or loses.

The facts are those of docs/design.md, section "Alignment is the optimum of a cost surface". A deep pool is made by
prefill lanes whose steps cost next to nothing, so that only decoding decides.
"""

from __future__ import annotations

from typing import Any

import pytest

from alignedsched.costs import AffineCosts, Costs
from alignedsched.registry import policy
from alignedsched.sim.build import build
from alignedsched.sim.run import run
from alignedsched.workloads import Workload, workload

WIDE: dict[str, Any] = {"batch_share": 0.7, "mix_share": 0.9}  # larger batches than the published 40 % of the blocks


def deep_pool(
    name: str, surface: str, policy_name: str, *, staging: bool = True, n: int = 600, model: str = "llama-3.1-8b",
    hardware: str = "h100", **options: Any,
) -> dict[str, Any]:  # fmt: skip
    """Figures of an offline run in which every request is prefilled almost at once."""
    built = build(hardware, model, topology="disaggregated", lanes=1, surface=surface, staging=staging)
    costs: dict[str, Costs] = {"lane-p0": AffineCosts(1e-3, 0.0, 1e-7), "lane-d0": built.costs}
    return run(workload(name, seed=0, n=n).offline(), built.cluster, costs, policy(policy_name, **options)).figures


def throughput(figures: dict[str, Any]) -> float:
    assert figures["requests"]["finished"] == figures["requests"]["arrived"]
    return float(figures["throughput_tok_s"])


@pytest.mark.parametrize("staging", [True, False], ids=["staged", "direct"])
@pytest.mark.parametrize("name", ["mooncake", "bimodal"])
def test_alignment_wins_a_lot_under_padded(name: str, staging: bool) -> None:
    aligned = deep_pool(name, "padded", "density_first", staging=staging)
    plain = deep_pool(name, "padded", "fcfs", staging=staging)
    assert throughput(aligned) > 1.3 * throughput(plain)
    assert aligned["latency_s"]["e2e"]["mean"] < 0.8 * plain["latency_s"]["e2e"]["mean"]


@pytest.mark.parametrize("staging", [True, False], ids=["staged", "direct"])
@pytest.mark.parametrize(
    ("name", "model", "hardware"),
    [("mooncake", "llama-3.1-8b", "h100"), ("bimodal", "llama-3.1-70b", "h200:4")],
)
def test_alignment_wins_under_unsplit_with_large_batches(name: str, model: str, hardware: str, staging: bool) -> None:
    n = 800 if name == "mooncake" else 1200
    cell: dict[str, Any] = {"model": model, "hardware": hardware, "staging": staging, "n": n}
    aligned = deep_pool(name, "unsplit", "density_first", **cell, **WIDE)
    plain = deep_pool(name, "unsplit", "fcfs", **cell)
    assert throughput(aligned) > throughput(plain)
    assert aligned["latency_s"]["e2e"]["mean"] < 0.85 * plain["latency_s"]["e2e"]["mean"]


def test_alignment_with_the_published_batch_size_loses_throughput_under_unsplit() -> None:
    """40 % of the blocks a batch pays the weights too often; what it wins by alignment does not make up for it."""
    aligned = deep_pool("mooncake", "unsplit", "density_first")
    plain = deep_pool("mooncake", "unsplit", "fcfs")
    assert throughput(aligned) < throughput(plain)


def test_alignment_gains_nothing_under_balanced() -> None:
    aligned = deep_pool("mooncake", "balanced", "density_first", **WIDE)
    plain = deep_pool("mooncake", "balanced", "fcfs")
    assert throughput(aligned) < 1.01 * throughput(plain)


@pytest.mark.parametrize("surface", ["balanced", "gated", "unsplit", "padded"])
def test_where_everything_fits_density_first_is_fcfs(surface: str) -> None:
    light = workload("azure-conv", seed=0, n=150)
    built = build("h200", "llama-3.1-8b", topology="colocated", lanes=1, surface=surface, staging=False)
    thin = Workload("thin", light.arrival_s * 3.0, light.prompt_tokens, light.output_tokens)
    figures = [run(thin, built.cluster, built.costs, policy(name)).figures for name in ("fcfs", "density_first")]
    assert figures[0]["simulated_s"] == figures[1]["simulated_s"]
    assert figures[0]["latency_s"]["e2e"] == figures[1]["latency_s"]["e2e"]


@pytest.mark.parametrize("surface", ["gated", "unsplit", "padded"])
def test_zero_imbalance_cost_bounds_what_alignment_can_win(surface: str) -> None:
    """`fcfs` at zero imbalance cost is at least as fast as on any surface: the gap is all there is to win."""
    balanced = deep_pool("mooncake", "balanced", "fcfs", n=400)
    uneven = deep_pool("mooncake", surface, "fcfs", n=400)
    assert throughput(balanced) >= 0.999 * throughput(uneven)
    assert uneven["bubbles"]["iteration"] > balanced["bubbles"]["iteration"]
