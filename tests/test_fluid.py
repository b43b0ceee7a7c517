"""The fluid bound against every schedule there is (tiny cases), random ones, and every simulated run."""

from __future__ import annotations

import random
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignedsched.costs import SURFACES, AffineCosts, Costs, Load, ModelCosts
from alignedsched.errors import ConfigError
from alignedsched.hardware import gpu_named, model_named
from alignedsched.metrics import Lanes, bound
from alignedsched.registry import policy
from alignedsched.sim.build import build
from alignedsched.sim.run import run
from alignedsched.workloads import workload
from benchmarks.fluid import Fluid, fluid_bound
from tests.test_bounds import (
    AFFINE,
    BOTH,
    DECODE,
    LANES,
    MODEL_COSTS,
    PREFILL,
    Case,
    best_time,
    random_time,
    tiny_cases,
)

pytest.importorskip("scipy", reason="the fluid bound needs scipy")


def fluid_of(case: Case, costs: Costs, classes: int = 60) -> Fluid:
    arrival, prompt, output = zip(*case.requests, strict=True)
    return fluid_bound(arrival, prompt, output, costs, case.limits, classes)


@settings(max_examples=120, deadline=None)
@given(
    data=st.data(),
    costs=AFFINE,
    lanes=st.sampled_from([(BOTH,), (BOTH,), (BOTH, BOTH), (PREFILL, DECODE), (PREFILL, BOTH)]),
    classes=st.sampled_from([2, 60]),
)
def test_no_schedule_of_a_tiny_case_beats_the_programme(
    data: st.DataObject, costs: AffineCosts, lanes: tuple[tuple[bool, bool, int], ...], classes: int
) -> None:
    case = data.draw(tiny_cases(lanes))
    assert fluid_of(case, costs, classes).bound_s <= best_time(case, costs)


@settings(max_examples=60, deadline=None)
@given(
    lanes=LANES,
    costs=st.sampled_from(MODEL_COSTS) | AFFINE,
    scale=st.sampled_from([1, 50, 500]),
    count=st.integers(1, 12),
    classes=st.sampled_from([3, 20]),
    seed=st.integers(0, 2**32),
)
def test_no_random_schedule_beats_the_programme(
    lanes: list[tuple[bool, bool, int]], costs: Costs, scale: int, count: int, classes: int, seed: int
) -> None:
    rng = random.Random(seed)
    requests = tuple((0.0, rng.randint(1, 10 * scale), rng.randint(1, 12)) for _ in range(count))
    size = rng.choice([1, 16])
    needed = max(-(-(prompt + output - 1) // size) for _, prompt, output in requests)
    case = Case(
        requests, tuple(lanes), rng.randint(1, 8), rng.randint(1, 12 * scale), needed + rng.randint(0, 3 * needed), size
    )
    assert fluid_of(case, costs, classes).bound_s <= random_time(case, costs, rng)


@pytest.mark.parametrize("topology", ["colocated", "disaggregated"])
@pytest.mark.parametrize("surface", SURFACES)
def test_no_simulated_run_beats_the_bound(surface: str, topology: str) -> None:
    built = build("h100", "llama-3.1-8b", topology=topology, lanes=1, surface=surface, staging=True)
    for name in ("long-tail-mix", "giant"):
        asked = workload(name, seed=3, n=60).offline().clamped(131_072)[0]
        least = fluid_bound(asked.arrival_s, asked.prompt_tokens, asked.output_tokens, built.costs,
                            Lanes.of(built.cluster), 30)  # fmt: skip
        for plan in ("fcfs", "density_first"):
            took = run(asked, built.cluster, built.costs, policy(plan)).figures
            assert least.bound_s <= took["simulated_s"]
            assert least.other_s == pytest.approx(took["bound_s"])


UNIT = {"t0": 1.0, "per_row": 0.0, "per_token": 0.0, "longest_per_token": 1.0}
ONE_LANE = Lanes(prefill=1, decode=1, max_members=2, prefill_blocks=99, decode_blocks=99, block_size=1)


def test_unlike_lengths_pay_for_the_longest_only_when_they_must() -> None:
    """Two short and two long ones, two at a time, where only the longest costs: like with like is the optimum."""
    costs = AffineCosts(surface="unsplit", **UNIT)
    case = Case(((0.0, 2, 3), (0.0, 2, 3), (0.0, 9, 3), (0.0, 9, 3)), (PREFILL, DECODE), 2, 99, 99, 1)
    like_with_like = sum(1.0 + longest for longest in (3, 4, 10, 11))
    assert fluid_of(case, costs).programme_s == pytest.approx(like_with_like, rel=1e-5)
    assert case.bound_s(costs) < like_with_like  # sums and the longest alone do not see it


@pytest.mark.parametrize(("gate", "decoded"), [(3.0, 4.0), (2.0, 8.0), (1.0, 28.0)])
def test_below_the_gate_lengths_cost_nothing(gate: float, decoded: float) -> None:
    """The four requests above, eight tokens: by twos at 1 s, one by one at 1 s, or by twos with their tails."""
    costs = AffineCosts(surface="gated", gate=gate, **UNIT)
    lanes = ONE_LANE
    least = fluid_bound(np.zeros(4), [2, 2, 9, 9], [3, 3, 3, 3], costs, lanes)
    tails = 4.0 + (3 + 4 + 10 + 11)
    assert least.programme_s == pytest.approx(min(decoded, tails) if gate > 1 else tails, rel=1e-5)


def test_padding_is_paid_by_every_member() -> None:
    costs = AffineCosts(t0=0.0, per_row=0.0, per_token=1.0, surface="padded")
    least = fluid_bound(np.zeros(3), [2, 2, 9], [2, 2, 2], costs, ONE_LANE)
    assert least.programme_s == pytest.approx(3 + 3 + 10, rel=1e-5)  # no step has to mix


def test_it_is_never_below_the_sums_on_a_balanced_surface() -> None:
    """Rounding lengths down costs nothing there: the sums of tokens and blocks are exact."""
    costs = MODEL_COSTS[SURFACES.index("balanced") * 2]
    asked = workload("mooncake", seed=0, n=300)
    lanes = Lanes(prefill=9, decode=1, prefill_blocks=10**6, decode_blocks=25_000)
    least = fluid_bound(asked.arrival_s * 0, asked.prompt_tokens, asked.output_tokens, costs, lanes)
    work = bound(asked.arrival_s * 0, asked.prompt_tokens, asked.output_tokens, costs, lanes).work_s
    assert least.classes >= 60
    assert least.programme_s >= 0.995 * work


def test_more_classes_bring_it_closer_from_below() -> None:
    costs = next(costs for costs in MODEL_COSTS if costs.surface == "padded")
    asked = workload("long-tail-mix", seed=0, n=300).clamped(131_072)[0]
    lanes = Lanes(prefill=9, decode=1, prefill_blocks=10**6, decode_blocks=25_000)
    bounds = [
        fluid_bound(asked.arrival_s * 0, asked.prompt_tokens, asked.output_tokens, costs, lanes, classes).programme_s
        for classes in (4, 12, 60)
    ]
    assert bounds == sorted(bounds)


def test_one_full_batch_of_equal_requests_nearly_reaches_it() -> None:
    for costs in (costs for costs in MODEL_COSTS if costs.overlap_host):
        lanes = Lanes(prefill=1, decode=1, prefill_blocks=10**5, decode_blocks=10**5)
        decode = float(costs.finishing_times(Load(256, 256 * 1001, 1001), 499)[-1])
        least = fluid_bound(np.zeros(256), np.full(256, 1000), np.full(256, 500), costs, lanes)
        assert 0.9 * decode < least.programme_s <= decode


def test_what_it_cannot_bound_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    tiled = ModelCosts(gpu_named("rtx4090"), model_named("llama-3.1-8b"))
    with pytest.raises(ConfigError, match="rtx4090 runs prefill and decode rows in one attention kernel"):
        fluid_bound([0.0], [1], [2], tiled, Lanes(both=1, prefill_blocks=10, decode_blocks=10))
    only_first = fluid_bound([0.0], [5], [1], MODEL_COSTS[0], ONE_LANE)
    assert only_first.bound_s == only_first.other_s > 0
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(ConfigError, match="needs scipy"):
        fluid_bound([0.0], [5], [3], MODEL_COSTS[0], ONE_LANE)
