"""Every cell of policies, surfaces and topologies on 1,000 synthesised requests: all end, figures keep the promise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest

from alignedsched.costs import AffineCosts, Costs
from alignedsched.load import SURFACES
from alignedsched.registry import policy
from alignedsched.report.schema import validate
from alignedsched.sim.build import build
from alignedsched.sim.compare import compare
from alignedsched.sim.run import run
from alignedsched.sim.settings import TOPOLOGIES, CompareSettings
from alignedsched.workloads import workload
from benchmarks import real_traces

POLICIES = ("fcfs", "density_first")


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("surface", SURFACES)
@pytest.mark.parametrize("name", ["azure-conv", "mooncake"])
def test_compare_runs_every_cell_to_the_end(name: str, surface: str, topology: str) -> None:
    settings = CompareSettings(workload=name, requests=1000, surface=surface, topology=topology, policies=POLICIES)
    result = compare(settings)
    validate(result)
    assert [run["policy"] for run in result["runs"]] == list(POLICIES)
    for got in result["runs"]:
        assert got["requests"] == {"arrived": 1000, "finished": 1000, "cancelled": 0, "rejected": 0, "failed": 0}
        assert got["output_tokens"] == result["workload"]["output_tokens"]
        assert 0 < got["bound_ratio"] <= 1


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("policy", POLICIES)
def test_check_holds_after_every_call(policy: str, topology: str) -> None:
    sample = workload("mooncake", seed=1, n=120).offline()
    figures = real_traces.cell(sample, "gated", topology, policy, 1)
    assert figures["requests"]["finished"] == 120


def test_several_lanes_share_the_work() -> None:
    """Two lanes take about half the time of one, in both topologies and under both policies."""
    times: dict[tuple[str, int], list[float]] = {}
    for topology in TOPOLOGIES:
        for lanes in (1, 2):
            settings = CompareSettings(
                workload="azure-conv", requests=800, offline=True, topology=topology, lanes=lanes, policies=POLICIES
            )
            times[topology, lanes] = [run["simulated_s"] for run in compare(settings)["runs"]]
    for topology in TOPOLOGIES:
        for one, two in zip(times[topology, 1], times[topology, 2], strict=True):
            assert two < 0.7 * one


def test_lanes_are_evenly_loaded_while_everything_fits() -> None:
    """One request at a time, every lane takes its share: a lightly loaded pair of lanes serves as fcfs does."""
    settings = CompareSettings(
        workload="azure-conv", requests=600, load=0.4, topology="disaggregated", lanes=2, policies=POLICIES
    )
    plain, aligned = (run["latency_s"] for run in compare(settings)["runs"])
    assert aligned["e2e"]["mean"] < 1.02 * plain["e2e"]["mean"]
    assert aligned["itl"]["p99"] < 1.05 * plain["itl"]["p99"]


def test_a_comparison_repeats_itself_exactly() -> None:
    settings = CompareSettings(workload="reasoning", requests=300, policies=POLICIES, topology="disaggregated", seed=3)

    def figures() -> list[dict[str, Any]]:
        runs: list[dict[str, Any]] = compare(settings)["runs"]
        return [{key: value for key, value in run.items() if key != "wall_s"} for run in runs]

    assert figures() == figures()


def test_requests_beyond_the_models_positions_are_refused_unless_told_otherwise() -> None:
    asked = CompareSettings(workload="mooncake", requests=200, model="opt-13b", hardware="a100", policies=("fcfs",))
    refused = compare(asked)["runs"][0]["requests"]
    assert refused["rejected"] > 0
    assert refused["finished"] + refused["rejected"] == 200
    told = compare(attrs.evolve(asked, any_length=True))["runs"][0]["requests"]
    assert told["finished"] > refused["finished"]


def test_real_traces_are_skipped_with_a_word_where_they_are_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert real_traces.main(["--traces", str(tmp_path), "--out", str(tmp_path / "out.json")]) == 0
    assert "skipped" in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_a_lane_of_several_ranks_steps_with_its_slowest(topology: str) -> None:
    """Two ranks in lockstep hold twice what one does and wait for the slower: between one lane and two lanes."""
    times = []
    for lanes, ranks in ((1, 1), (1, 2), (2, 1)):
        settings = CompareSettings(
            workload="azure-conv", requests=800, offline=True, topology=topology, lanes=lanes, ranks=ranks,
            surface="balanced", policies=("fcfs",),
        )  # fmt: skip
        result = compare(settings)
        validate(result)
        assert result["ranks"] == ranks
        assert result["runs"][0]["requests"]["finished"] == 800
        times.append(result["runs"][0]["simulated_s"])
    one, lockstep, two = times
    assert 0.98 * two <= lockstep < 0.7 * one


def test_a_policy_sees_the_costs_that_are_published_for_it() -> None:
    built = build("h100", "llama-3.1-8b", topology="colocated", lanes=1, surface="gated", staging=True)
    asked, told = workload("uniform", n=3), AffineCosts(1.0, 0.0, 0.0)
    by_lane: dict[str, Costs] = dict.fromkeys(built.cluster.lane, built.costs)
    cases: list[tuple[Costs | dict[str, Costs], Costs | None, Costs | None]]
    cases = [(built.costs, None, built.costs), (by_lane, None, None), (by_lane, told, told), (built.costs, told, told)]
    for costs, published, shown in cases:
        result = run(asked, built.cluster, costs, policy("fcfs"), published=published)
        assert result.scheduler.view("lane-d0").costs is shown
