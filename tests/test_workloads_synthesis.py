from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from alignedsched.errors import ConfigError
from alignedsched.workloads import SHAPES, Arrivals, Marginal, Workload, describe, spread_ticks, workload
from alignedsched.workloads.describe import fano, gap_cv, rank_correlation, ranks
from alignedsched.workloads.synthesis import output_rank, rate_levels
from benchmarks.fit_shapes import TRACES, real

FOLDER = Path(__file__).resolve().parents[1].parent / "shared" / "traces"
every_shape = pytest.mark.parametrize("name", sorted(SHAPES))
fitted = pytest.mark.parametrize("name", sorted(TRACES))


def columns(w: Workload) -> tuple[list[float], list[int], list[int]]:
    return w.arrival_s.tolist(), w.prompt_tokens.tolist(), w.output_tokens.tolist()


@every_shape
def test_the_seed_decides_everything(name: str) -> None:
    assert columns(workload(name, seed=7, n=2000)) == columns(workload(name, seed=7, n=2000))
    assert workload(name, seed=7, n=50).arrival_s.tolist() != workload(name, seed=8, n=50).arrival_s.tolist()


# The first requests of each shape: users compare runs by name and seed, so a change of the drawing must show.
FIRST = [
    ("azure-conv", [0.0, 0.014966, 0.197266], [4097, 409, 1151], [81, 88, 402]),
    ("mooncake", [0.0, 0.030516, 0.358924], [36369, 3609, 14121], [453, 185, 408]),
    ("reasoning", [0.0, 0.04369, 0.735339], [1803, 202, 489], [613, 446, 427]),
    ("m-large", [0.0, 0.003415, 0.108317], [964, 592, 839], [59, 15, 40]),
    ("uniform", [0.0, 0.014573, 0.174794], [1024, 1024, 1024], [256, 256, 256]),
    ("bimodal", [0.0, 0.014573, 0.174794], [598, 458, 544], [269, 167, 251]),
    ("giant", [0.0, 0.014573, 0.174794], [946, 397, 697], [262, 106, 228]),
    ("long-tail-mix", [0.0, 0.014573, 0.174794], [8999, 219, 1136], [343, 59, 277]),
]


@pytest.mark.parametrize(("name", "arrival", "prompt", "output"), FIRST)
def test_a_seed_means_the_same_requests_for_ever(
    name: str, arrival: list[float], prompt: list[int], output: list[int]
) -> None:
    assert columns(workload(name, seed=0, n=3)) == (arrival, prompt, output)


@every_shape
def test_a_longer_workload_begins_with_the_shorter(name: str) -> None:
    longer = workload(name, seed=3, n=60_000)  # several hours
    for n in (0, 1, 40, 30_000):
        assert columns(workload(name, seed=3, n=n)) == columns(longer.take(n))


@every_shape
def test_an_hour_is_the_default(name: str) -> None:
    hour = workload(name, seed=1)
    assert hour.name == name
    assert hour.span_s == pytest.approx(3600, rel=0.06)
    assert hour.arrival_s[0] == 0.0
    assert int((hour.prompt_tokens + hour.output_tokens).max()) <= 131_072


@every_shape
def test_a_shape_names_its_source_and_its_figures_are_in_order(name: str) -> None:
    shape = SHAPES[name]
    assert shape.source
    for marginal in (shape.prompt, shape.output):
        assert len(marginal.at) == len(marginal.tokens) <= 20
        assert (marginal.at[0], marginal.at[-1]) == (0.0, 1.0)
        assert all(a < b for a, b in zip(marginal.at, marginal.at[1:], strict=False))
        assert list(marginal.tokens) == sorted(marginal.tokens)
    if shape.grid:  # each row a distribution, and together the outputs' own: the parts by rank
        parts, grid = np.diff(shape.edges), np.array(shape.grid)
        assert grid.sum(axis=1) == pytest.approx(10_000, abs=10)
        assert parts @ grid == pytest.approx(10_000 * parts, abs=10)


def test_uniform_is_uniform_and_giant_has_one_giant_in_each_group() -> None:
    assert set(columns(workload("uniform", seed=0, n=500))[1]) == {1024}
    giant = workload("giant", seed=5, n=256 * 20).prompt_tokens.reshape(20, 256) == 120_000
    assert giant.sum(axis=1).tolist() == [1] * 20
    assert giant[:, :32].any(axis=1).all()
    long = workload("bimodal", seed=5, n=100_000).prompt_tokens > 20_000
    assert long.mean() == pytest.approx(0.05, abs=0.003)


def test_unknown_names_and_wrong_arguments_are_config_errors() -> None:
    with pytest.raises(ConfigError, match="unknown workload 'azure'; known: azure-conv, mooncake, reasoning, m-large"):
        workload("azure", seed=0)
    for seed in (-1, 1.5, True, "x"):
        with pytest.raises(ConfigError, match="seed must be an integer of at least 0"):
            workload("uniform", seed=seed)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="n must be an integer of at least 0, got -3"):
        workload("uniform", seed=0, n=-3)


@given(st.floats(0, 1, exclude_max=True), st.lists(st.integers(1, 10**5), min_size=2, max_size=6).map(sorted))
def test_quantiles_hit_their_figures_and_stay_between(u: float, tokens: list[int]) -> None:
    at = tuple(np.linspace(0, 1, len(tokens)).tolist())
    marginal = Marginal(at, tuple(tokens))
    assert marginal.quantile(np.array(at)).tolist() == tokens
    (drawn,) = marginal.quantile(np.array([u])).tolist()
    below = int(np.searchsorted(at, u, side="right")) - 1
    assert tokens[below] <= drawn <= tokens[min(below + 1, len(tokens) - 1)]


@settings(max_examples=20)
@given(st.permutations(range(4)))
def test_the_grid_decides_which_part_of_the_outputs_a_prompt_meets(order: list[int]) -> None:
    grid = tuple(tuple(10_000 if j == order[i] else 0 for j in range(4)) for i in range(4))
    rng = np.random.Generator(np.random.PCG64(1))
    prompt, u = rng.random(1000), rng.random(1000)
    shape = evolve(SHAPES["uniform"], grid=grid, edges=(0.0, 0.25, 0.5, 0.75, 1.0))
    rank = output_rank(shape, prompt, u)
    assert ((rank * 4).astype(int) == np.array(order)[(prompt * 4).astype(int)]).all()
    assert rank == pytest.approx((np.array(order)[(prompt * 4).astype(int)] + u) / 4)


@given(st.floats(0.01, 1.5), st.integers(2, 60))
def test_rate_levels_have_the_mean_and_the_variation_asked_for(cv: float, count: int) -> None:
    levels = rate_levels(Arrivals(1.0, 1.0, cv, count))
    assert levels.mean() == pytest.approx(1.0)
    reachable = math.sqrt(count - 1)  # all of an hour's rate in one level
    if cv < 0.5 * reachable:
        assert levels.std() == pytest.approx(cv, rel=1e-6)


def test_steady_arrivals_are_poisson() -> None:
    arrivals = workload("uniform", seed=2, n=200_000).arrival_s
    assert gap_cv(arrivals) == pytest.approx(1.0, abs=0.01)
    assert fano(arrivals, 10.0) == pytest.approx(1.0, abs=0.06)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=30))
def test_rank_correlation_is_scipys(pairs: list[tuple[int, int]]) -> None:
    stats = pytest.importorskip("scipy.stats")
    a, b = (np.array(column) for column in zip(*pairs, strict=True))
    assert ranks(a).tolist() == (stats.rankdata(a) - 1).tolist()
    if len(set(a.tolist())) > 1 and len(set(b.tolist())) > 1:
        assert rank_correlation(a, b) == pytest.approx(float(stats.spearmanr(a, b).statistic), abs=1e-9)


@given(st.lists(st.integers(0, 20), min_size=2, max_size=40).map(sorted))
def test_fano_counts_whole_windows(seconds: list[int]) -> None:
    arrivals = np.array(seconds, dtype=float)
    windows = (seconds[-1] - seconds[0]) // 3
    counts = [sum(3 * k <= s - seconds[0] < 3 * (k + 1) for s in seconds) for k in range(windows)]
    if windows < 2:
        assert math.isnan(fano(arrivals, 3.0))
    else:
        assert fano(arrivals, 3.0) == pytest.approx(float(np.var(counts) / np.mean(counts)))


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30).map(sorted), st.integers(0, 3))
def test_spread_ticks_keeps_each_request_in_its_tick(ticks: list[int], seed: int) -> None:
    given_times = np.array(ticks, dtype=float) * 3
    spread = spread_ticks(Workload("w", given_times, [1] * len(ticks), [1] * len(ticks)), seed=seed).arrival_s
    stamps = [*sorted(set(ticks)), math.inf]
    for before, after in zip(ticks, spread.tolist(), strict=True):
        assert 3 * before <= after <= 3 * stamps[stamps.index(before) + 1]


@pytest.mark.skipif(not FOLDER.is_dir(), reason="no published traces at ../shared/traces beside the repository")
@fitted
def test_a_fitted_shape_looks_like_its_trace(name: str) -> None:
    trace = describe(real(name, FOLDER))
    drawn = describe(workload(name, seed=11, n=200_000))
    assert drawn.rate_per_s == pytest.approx(trace.rate_per_s, rel=0.02)
    assert drawn.prompt_mean == pytest.approx(trace.prompt_mean, rel=0.05)
    assert drawn.output_mean == pytest.approx(trace.output_mean, rel=0.05)
    # Percentiles: within 10 %, and two tokens where they are small.
    assert drawn.prompt_percentiles == pytest.approx(trace.prompt_percentiles, rel=0.10, abs=2)
    assert drawn.output_percentiles == pytest.approx(trace.output_percentiles, rel=0.10, abs=2)
    assert drawn.prompt_max == pytest.approx(trace.prompt_max, rel=0.05)
    assert drawn.rank_correlation == pytest.approx(trace.rank_correlation, abs=0.03)
    assert drawn.output_by_prompt == pytest.approx(trace.output_by_prompt, rel=0.25)
    assert drawn.gap_cv == pytest.approx(trace.gap_cv, rel=0.07)
    assert drawn.fano_10s == pytest.approx(trace.fano_10s, rel=0.20)


@pytest.mark.skipif(not FOLDER.is_dir(), reason="no published traces at ../shared/traces beside the repository")
@fitted
def test_a_fitted_hour_is_as_bursty_as_its_trace_on_average(name: str) -> None:
    trace = describe(real(name, FOLDER))
    hours = [describe(workload(name, seed=seed)) for seed in range(6)]
    assert np.mean([h.fano_10s for h in hours]) == pytest.approx(trace.fano_10s, rel=0.20)
    assert np.mean([h.gap_cv for h in hours]) == pytest.approx(trace.gap_cv, rel=0.07)
