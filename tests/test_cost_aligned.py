"""The default policy: equal to ``fcfs`` where nothing is to be gained, better where something is; never a livelock."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from attrs import evolve
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alignedsched.cluster import Cluster
from alignedsched.costs import AffineCosts, Costs
from alignedsched.errors import CallerError, ConfigError
from alignedsched.events import Event
from alignedsched.plan import Plan
from alignedsched.policies.aligned_batching import CostAligned
from alignedsched.policies.aligned_memory import Backlog, LaneMemory, Memory
from alignedsched.policies.backlog_order import GateSettings
from alignedsched.policies.cost_aligned import cost_aligned
from alignedsched.policies.fcfs import fcfs
from alignedsched.policies.protocols import Policy
from alignedsched.policies.rounds import RoundSettings, Turn
from alignedsched.policies.sorted_waves import Wave
from alignedsched.registry import policy as policy_named
from alignedsched.sim.build import build
from alignedsched.sim.run import RunResult, run
from alignedsched.views import from_columns
from alignedsched.workloads import Workload, workload
from benchmarks.sitting import GATED, SURFACES, random_workload, small_cluster


def plans(workload: Workload, cluster: Cluster, costs: Costs, policy: Policy) -> tuple[list[str], RunResult]:
    """Every plan of a run as text, with its time."""
    seen: list[str] = []

    def observe(now: float, events: tuple[Event, ...], plan: Plan) -> None:
        seen.append(f"{now!r} {plan!r}")

    return seen, run(workload, cluster, costs, policy, observe=observe)


def orders(workload: Workload, cluster: Cluster, costs: Costs, policy: Policy) -> list[str]:
    """Every order and copy of a run. A policy that looks for rounds in vain is asked more often, and who has ended is
    let go at such a moment already.
    """
    seen: list[str] = []

    def observe(now: float, events: tuple[Event, ...], plan: Plan) -> None:
        if plan.steps or plan.copies:
            seen.append(f"{now!r} {plan.steps!r} {plan.copies!r} {plan.aborts!r}")

    run(workload, cluster, costs, policy, observe=observe)
    return seen


# -- equal to fcfs


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    seed=st.integers(0, 10**6), blocks=st.integers(80, 400), rate=st.sampled_from([2.0, 30.0, 1e6]), apart=st.booleans()
)
def test_on_a_balanced_surface_every_plan_is_that_of_fcfs(seed: int, blocks: int, rate: float, apart: bool) -> None:
    cluster, load = small_cluster(blocks, apart=apart), random_workload(seed, 60, 900, rate)
    mine, _ = plans(load, cluster, SURFACES["balanced"], cost_aligned())
    assert mine == plans(load, cluster, SURFACES["balanced"], fcfs())[0]


@pytest.mark.parametrize("surface", ["gated", "unsplit", "padded"])
@pytest.mark.parametrize("apart", [False, True])
def test_where_lengths_are_alike_and_all_fits_every_order_is_that_of_fcfs(surface: str, apart: bool) -> None:
    drawn = workload("uniform", seed=1, n=80).scaled(0.05)
    load = Workload("alike", drawn.arrival_s, drawn.prompt_tokens, drawn.output_tokens // 8)
    cluster = small_cluster(8000, apart=apart, tokens=2048)
    mine = orders(load, cluster, SURFACES[surface], cost_aligned())
    assert mine == orders(load, cluster, SURFACES[surface], fcfs())


@pytest.mark.parametrize("topology", ["colocated", "disaggregated"])
@pytest.mark.parametrize("name", ["azure-conv", "long-tail-mix"])
def test_a_modelled_server_with_a_balanced_kernel_is_served_as_by_fcfs(name: str, topology: str) -> None:
    built = build("h100", "llama-3.1-8b", topology=topology, lanes=1, surface="balanced", staging=True, any_length=True)
    load = workload(name, seed=0, n=150).offline()
    mine, _ = plans(load, built.cluster, built.costs, cost_aligned())
    assert mine == plans(load, built.cluster, built.costs, fcfs())[0]


def test_without_published_costs_every_plan_is_that_of_fcfs() -> None:
    load, cluster = random_workload(3, 80, 900, 30.0), small_cluster(200)
    costs: Any = {"l": SURFACES["padded"]}
    assert plans(load, cluster, costs, cost_aligned())[0] == plans(load, cluster, costs, fcfs())[0]


# -- better where something is to be gained


def ratios(name: str, surface: str, topology: str, n: int) -> tuple[float, float, float]:
    """Throughput, mean and p99 of the time to completion, relative to fcfs; all there at time 0."""
    built = build("h100", "llama-3.1-8b", topology=topology, lanes=1, surface=surface, staging=True, any_length=True)
    load = workload(name, seed=0, n=n).offline()
    mine, plain = (
        run(load, built.cluster, built.costs, policy_named(policy)).figures for policy in ("cost_aligned", "fcfs")
    )
    assert mine["requests"]["finished"] == n
    assert mine["preemptions"] <= plain["preemptions"]
    latency = [mine["latency_s"]["e2e"][key] / plain["latency_s"]["e2e"][key] for key in ("mean", "p99")]
    return mine["throughput_tok_s"] / plain["throughput_tok_s"], latency[0], latency[1]


@pytest.mark.parametrize(
    ("name", "surface", "faster", "mean"),
    [
        ("giant", "gated", 1.3, 0.4),
        ("long-tail-mix", "gated", 1.3, 0.7),
        ("mooncake", "unsplit", 1.1, 0.5),
        ("bimodal", "padded", 3.0, 0.2),
        ("giant", "padded", 3.5, 0.2),
    ],
)
def test_long_tails_on_uneven_surfaces_are_served_faster(name: str, surface: str, faster: float, mean: float) -> None:
    throughput, e2e, p99 = ratios(name, surface, "colocated", 500)
    assert throughput >= faster
    assert e2e <= mean
    assert p99 <= 1.0


def test_rounds_begin_though_nobody_waits_joins_or_leaves() -> None:
    prompts = np.array([20] * 56 + [2000] * 8)
    load = Workload("once", np.zeros(64), prompts, np.full(64, 300))
    cluster = small_cluster(4000, seats=64, tokens=100_000)
    mine, plain = (run(load, cluster, SURFACES["padded"], policy).figures for policy in (cost_aligned(), fcfs()))
    assert mine["simulated_s"] < 0.3 * plain["simulated_s"]


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("seed", [4, 7, 10])
def test_rounds_begin_though_a_device_is_full_of_what_was_let_in_by_arrival(seed: int, apart: bool) -> None:
    """Nobody found the blocks that a turn of 64 steps takes, so all ran together, hardly faster than under fcfs."""
    rng, costs = np.random.default_rng(seed), AffineCosts(5e-4, 1e-6, 5e-7, surface="padded", per_pair=5e-12)
    prompts = rng.lognormal(5.5, 0.6, 80) * np.where(rng.random(80) < 0.1, 10.0, 1.0)
    load = Workload("long-tailed", np.zeros(80), prompts.astype(np.int64).clip(16, 6000), rng.integers(16, 161, 80))
    never = GateSettings(faster=1e9, hardly=1e9, unsure=1e9)  # no waves: rounds alone have to do it
    mine, plain = (
        run(load, small_cluster(1024, apart=apart), costs, policy).figures
        for policy in (cost_aligned(gate=never), fcfs())
    )
    assert mine["requests"]["finished"] == 80
    assert mine["throughput_tok_s"] > 1.8 * plain["throughput_tok_s"]


def test_what_a_wave_hands_over_to_another_lane_is_not_overtaken_by_later_parts_of_it() -> None:
    """By arrival, a short request of a late number would wait in the pool until the whole wave is through."""
    built = build("h100", "llama-3.1-8b", topology="disaggregated", lanes=1, surface="unsplit", staging=False)
    load = workload("mooncake", seed=0, n=600).offline()
    mine, plain = (run(load, built.cluster, built.costs, policy) for policy in (cost_aligned(), fcfs()))
    assert mine.figures["throughput_tok_s"] > 1.1 * plain.figures["throughput_tok_s"]
    assert mine.latency.finished_columns()["pool_wait"].max() < 60.0


def test_where_decoding_sets_the_pace_waves_come_whatever_prefill_is_said_to_cost() -> None:
    built = build("h200:4", "llama-3.1-70b", topology="disaggregated", lanes=1, surface="unsplit", staging=False)
    instant: dict[str, Costs] = {
        "lane-p0": AffineCosts(1e-3, 0.0, 0.0),
        "lane-d0": built.costs,
    }
    load = workload("mooncake", seed=1, n=1200).offline()
    mine, plain = (
        run(load, built.cluster, instant, policy, published=built.costs).figures for policy in (cost_aligned(), fcfs())
    )
    assert mine["throughput_tok_s"] > 1.1 * plain["throughput_tok_s"]


@pytest.mark.parametrize("surface", ["gated", "unsplit"])
def test_even_lengths_lose_nothing(surface: str) -> None:
    throughput, mean, p99 = ratios("azure-conv", surface, "colocated", 400)
    assert throughput >= 0.99
    assert mean <= 1.02
    assert p99 <= 1.05


# -- its memory, its options


TURN = Turn(1, 300, 17, 33, 17, 2.5, 0.01, 3, 213)
MEMORIES = (
    Memory(),
    Memory(
        {"queue": Backlog(Wave(["a", "b"], 1), 3.0, 2.0, 5), "pool": Backlog(Wave([], 0), None, 2.0, 0, True)},
        {
            "l": LaneMemory(TURN, 4.0),
            "m": LaneMemory(None, None, True),
            "k": LaneMemory(None, 3.0, cramped=True),
            "n": LaneMemory(evolve(TURN, sets_aside=True)),
        },
    ),
)


@pytest.mark.parametrize("memory", MEMORIES)
def test_memory_survives_json(memory: Memory) -> None:
    assert Memory.from_plain(json.loads(json.dumps(memory.plain()))) == memory


@pytest.mark.parametrize(
    "state",
    [
        None,
        [],
        {"backlogs": {}},
        {"backlogs": [], "lanes": {}},
        {"backlogs": {"queue": [None]}, "lanes": {}},
        {"backlogs": {"queue": [["a"], None]}, "lanes": {}},
        {"backlogs": {"queue": [[None, None], None]}, "lanes": {}},
        {"backlogs": {"queue": [[None, None, 0.5, False], None]}, "lanes": {}},
        {"backlogs": {"queue": [[None, None, 0, 0], None]}, "lanes": {}},
        {"backlogs": {"queue": [[[["a"], 2], None, 0, False], None]}, "lanes": {}},
        {"backlogs": {"queue": [[[[7], 0], None, 0, False], None]}, "lanes": {}},
        {"backlogs": {}, "lanes": {"l": [[None, False], "late"]}},
        {"backlogs": {}, "lanes": {"l": [[None, 1], None]}},
        {"backlogs": {}, "lanes": {"l": [None, None]}},
        {"backlogs": {}, "lanes": {"l": [[[1, 2, 3, 4, 5, 0, 6, 1.0, 1.0, None, False], False], None]}},
        {"backlogs": {}, "lanes": {"l": [[[1, 2, 3], False], None]}},
        {"backlogs": {}, "lanes": {"l": [[[1, 2, 3, 4, 5.5, 1, 6, 1.0, 1.0, None, False], False], None]}},
        {"backlogs": {}, "lanes": {"l": [[[1, 2, 3, 4, 5, 1, 6, 1.0, 1.0, None, 0], False], None]}},
        {"backlogs": {}, "lanes": {"l": [[[1, 2, 3, 4, 5, 1, 6, 1.0, 1.0, "ever", True], False], None]}},
    ],
)
def test_what_is_no_state_is_refused_and_changes_nothing(state: Any) -> None:
    batching = cost_aligned().batching
    before = batching.state()
    with pytest.raises(CallerError):
        batching.load(state)
    assert batching.state() == before


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda: cost_aligned(wait_s=-1.0), "RoundSettings.wait_s"),
        (lambda: RoundSettings(saving=2.0), "RoundSettings.saving"),
        (lambda: RoundSettings(least=0), "RoundSettings.least"),
        (lambda: GateSettings(faster=0.5), "GateSettings.faster"),
        (lambda: cost_aligned(token_budget=0), "token_budget"),
        (lambda: cost_aligned(tpot_target_s=-1.0), "RoundSettings.tpot_target_s"),
        (lambda: cost_aligned(order="longest"), "order must be one of arrival, remaining, value"),
        (lambda: cost_aligned(predictor="crystal"), "predictor"),
        (lambda: cost_aligned(order="remaining", patience_s=-1.0), "patience_s"),
        (lambda: cost_aligned(patience_s=-1.0), "cost_aligned.patience_s"),
        (lambda: cost_aligned(refit="no"), "cost_aligned.refit must be True or False"),  # type: ignore[arg-type]
        (lambda: cost_aligned(rounds=3), "cost_aligned.rounds must be a RoundSettings or None"),  # type: ignore[arg-type]
        (lambda: cost_aligned(gate={}), "cost_aligned.gate must be a GateSettings or None"),  # type: ignore[arg-type]
        (lambda: cost_aligned(costs=3), "cost_aligned.costs must be a Costs or None"),  # type: ignore[arg-type]
        (lambda: RoundSettings(round_s=0.0), "RoundSettings.round_s must be a number from 0.001"),
        (lambda: fcfs(place="bogus"), "fcfs.place must be one of seats, least, round_robin"),
    ],
)
def test_options_out_of_range_are_named(make: Callable[[], object], names: str) -> None:
    with pytest.raises(ConfigError, match=names):
        make()


def test_bounds_of_the_settings_count_unless_others_are_given() -> None:
    own = RoundSettings(wait_s=5.0, tpot_target_s=0.05)
    made = {
        (5.0, 0.05): cost_aligned(rounds=own),
        (None, 0.05): cost_aligned(rounds=own, wait_s=None),
        (5.0, 0.1): cost_aligned(rounds=own, tpot_target_s=0.1),
        (30.0, None): cost_aligned(),
    }
    for bounds, policy in made.items():
        assert isinstance(policy.batching, CostAligned)
        assert (policy.batching.rounds.wait_s, policy.batching.rounds.tpot_target_s) == bounds


def test_on_a_gated_surface_the_few_long_run_apart_from_the_many_short() -> None:
    lengths = [100] * 20 + [9000] * 3
    view = from_columns(
        running=[f"r{i}" for i in range(23)],
        running_lengths=lengths,
        queued=["q"],
        queued_prompts=[50],
        free_blocks=500,
        capacity_blocks=3000,
        costs=GATED,
        step=5,
    )
    batching = cost_aligned().batching
    assert isinstance(batching, CostAligned)
    composition = batching.compose(view)
    assert sorted(composition.parks) == ["r20", "r21", "r22"]
    assert composition.wake_at is not None
    assert composition.wake_at > view.now
