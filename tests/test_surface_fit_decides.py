"""What the default policy makes of a refitted surface: it serves as much as if it had been told the truth."""

from __future__ import annotations

import pytest
from attrs import evolve

from alignedsched.cluster import Cluster
from alignedsched.costs import Costs
from alignedsched.policies.believed import BelievedCosts, published_correction
from alignedsched.policies.surface_fit import SurfaceFit
from alignedsched.sim.build import build
from alignedsched.workloads import workload
from benchmarks.wrong_surface import Until, reached, steady

SURFACES = ("balanced", "gated", "unsplit", "padded")


@pytest.fixture(scope="module")
def servers() -> dict[str, tuple[Cluster, Costs]]:
    """The same server with each surface."""
    built = {
        surface: build("h100", "llama-3.1-8b", topology="colocated", lanes=1, surface=surface, staging=False)
        for surface in SURFACES
    }
    return {surface: (made.cluster, made.costs) for surface, made in built.items()}


@pytest.mark.parametrize(
    ("surface", "wrong"),
    [("gated", {"even": 4.0}), ("padded", {"even": 0.25}), ("balanced", {"even": 0.25})],
)
def test_a_policy_told_the_wrong_surface_does_as_much_work(
    servers: dict[str, tuple[Cluster, Costs]], surface: str, wrong: dict[str, float]
) -> None:
    """Over steps 200 to 2,200; ``python -m benchmarks.wrong_surface`` has more of these."""
    cluster, true = servers[surface]
    told = BelievedCosts(true, evolve(published_correction(true), **wrong))  # type: ignore[arg-type]
    traffic = workload("mooncake", seed=1, n=400).scaled(0.6)
    assert reached(traffic, cluster, true, told).work >= 0.97 * reached(traffic, cluster, true, true).work


def test_a_gate_that_moves_is_found_by_probing_and_not_without(
    servers: dict[str, tuple[Cluster, Costs]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Groups are run all along, in none of which the gate would show; with a gate that stays, probing costs nothing.

    Summed over runs: in a single one it may be seen by chance.
    """
    (cluster, gated), (_, balanced) = servers["gated"], servers["balanced"]

    def run() -> tuple[float, float]:
        moves = [reached(steady(seed), cluster, Until(700, gated, balanced), gated).whole for seed in range(3)]
        stays = [reached(steady(seed), cluster, gated, gated).whole for seed in range(3)]
        return sum(moves), sum(stays)

    moves, stays = run()
    monkeypatch.setattr(SurfaceFit, "curious", property(lambda fit: False))
    moves_unseen, stays_unseen = run()
    assert moves > 1.02 * moves_unseen
    assert stays > 0.985 * stays_unseen


def test_a_backlog_is_sorted_as_soon_as_another_surface_is_believed(servers: dict[str, tuple[Cluster, Costs]]) -> None:
    """Seconds later the longest request would have begun: without asking again at once the work was 0.81 here."""
    cluster, true = servers["unsplit"]
    told = BelievedCosts(true, evolve(published_correction(true), even=4.0))
    traffic = workload("mooncake", seed=1, n=300).offline()
    assert reached(traffic, cluster, true, told).work >= 0.97 * reached(traffic, cluster, true, true).work


@pytest.mark.parametrize(
    ("surface", "seed"),
    [
        (
            "unsplit",
            0,
        ),  # While a fit is on its way it may say for some steps that waves do not pay: stopped at once, 0.91.
        ("gated", 5),  # They would not begin by what is true, nor stop: asked again whether to begin, 0.90.
    ],
)
def test_waves_outlast_a_belief_that_is_refuted(
    servers: dict[str, tuple[Cluster, Costs]], surface: str, seed: int
) -> None:
    cluster, true = servers[surface]
    right = published_correction(true)
    told = BelievedCosts(true, evolve(right, longest=4.0 * right.longest))
    traffic = workload("mooncake", seed=seed, n=300).offline()
    assert reached(traffic, cluster, true, told).work >= 0.97 * reached(traffic, cluster, true, true).work
