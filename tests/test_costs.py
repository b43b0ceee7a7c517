"""What holds of every cost surface, and of each: signs, closed forms, and agreement with naive sums."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from alignedsched.costs import (
    SURFACES,
    AffineCosts,
    Costs,
    Load,
    ModelCosts,
    Prefill,
    TableCosts,
    lane_balanced_seconds,
    lane_finishing_times,
    lane_seconds,
    load_costs,
)
from alignedsched.errors import CallerError, ConfigError
from alignedsched.hardware import Host, gpu_named
from alignedsched.models import model_named

NO_HOST = Host()
lengths = st.lists(st.integers(1, 60_000), min_size=1, max_size=80)
chunk = st.tuples(st.integers(0, 20_000), st.integers(1, 4096)).map(lambda pair: (pair[0], pair[0] + pair[1]))
chunks = st.lists(chunk, max_size=3).map(tuple)


def load_of(members: list[int], chunks: tuple[tuple[int, int], ...] = ()) -> Load:
    return Load(len(members), sum(members), max(members, default=0), chunks)


def model_costs(
    surface: str, gpu: str = "h200", model: str = "llama-3.1-8b", parallel: int = 1, **options: Any
) -> ModelCosts:
    return ModelCosts(gpu_named(gpu), model_named(model), parallel, surface, **options)


def affine(surface: str) -> AffineCosts:
    return AffineCosts(5e-3, 1e-5, 2e-8, 5e-7, surface=surface, gate=24, per_pair=1e-10)


def table() -> TableCosts:
    truth = model_costs("unsplit")
    points = []
    for n in (1, 8, 64):
        for mean in (64, 1024, 16_384):
            for stretch in (1, 3, 12):
                load = Load(n, n * mean, mean * stretch)
                points.append((n, load.total, load.longest, truth.step_seconds(load)))
    return TableCosts.from_points(points, Prefill(4e-3, 1e-5, 1e-10), "closed form")


CLOSED: list[Costs] = [
    *(affine(surface) for surface in SURFACES),
    *(model_costs(surface) for surface in SURFACES),
    model_costs("gated", "h100", "llama-3.1-70b", 4, overlap_host=False),
    model_costs("gated", "a100", "opt-13b", host=Host(base=20e-3)),
    model_costs("gated", "rtx4090"),
]
ALL: list[Costs] = [*CLOSED, table()]


def name(costs: Costs) -> str:
    return f"{type(costs).__name__}-{costs.surface}"


every = pytest.mark.parametrize("costs", ALL, ids=name)
closed = pytest.mark.parametrize("costs", CLOSED, ids=name)


@every
@given(members=lengths, steps=st.integers(1, 70))
def test_finishing_times_are_the_sums_of_steps(costs: Costs, members: list[int], steps: int) -> None:
    load = load_of(members)
    n = load.n
    each = [costs.step_seconds(Load(n, load.total + n * j, load.longest + j)) for j in range(steps)]
    np.testing.assert_allclose(costs.finishing_times(load, steps), np.cumsum(each), rtol=1e-12)


@every
@given(members=st.lists(st.integers(1, 60_000), max_size=80), chunks=chunks)
def test_balanced_never_costs_more(costs: Costs, members: list[int], chunks: tuple[tuple[int, int], ...]) -> None:
    load = load_of(members, chunks)
    assert 0 <= costs.balanced_seconds(load) <= costs.step_seconds(load)


@closed
@given(members=lengths, more=st.integers(0, 9_999), chunks=chunks)
def test_monotone_in_members_total_and_longest(costs: Costs, members: list[int], more: int, chunks: Any) -> None:
    load = load_of(members, chunks)
    now = costs.step_seconds(load)
    for larger in (
        Load(load.n + 1, load.total, load.longest, chunks),
        Load(load.n, load.total + more, load.longest, chunks),
        Load(load.n, load.total, load.longest + more, chunks),
        Load(load.n, load.total, load.longest, (*chunks, (more, more + 1))),
    ):
        assert costs.step_seconds(larger) >= now * (1 - 1e-12)


@every
def test_nothing_costs_nothing(costs: Costs) -> None:
    nothing = Load(0, 0, 0)
    assert costs.step_seconds(nothing) == costs.balanced_seconds(nothing) == 0.0
    assert costs.finishing_times(nothing, 3).tolist() == [0.0, 0.0, 0.0]


@every
@pytest.mark.parametrize(("load", "steps"), [(Load(1, 9, 9, ((0, 4),)), 2), (Load(1, 9, 9), 0)])
def test_finishing_times_refuse_what_they_cannot_foresee(costs: Costs, load: Load, steps: int) -> None:
    with pytest.raises(CallerError, match=r"chunks|steps must be at least 1"):
        costs.finishing_times(load, steps)


@given(first=lengths, second=lengths)
def test_balanced_affine_is_neutral_to_regrouping_and_pays_t0_per_batch(first: list[int], second: list[int]) -> None:
    costs = affine("balanced")
    together = sorted(first + second)
    cut = len(first)
    apart = costs.step_seconds(load_of(first)) + costs.step_seconds(load_of(second))
    aligned = costs.step_seconds(load_of(together[:cut])) + costs.step_seconds(load_of(together[cut:]))
    assert aligned == pytest.approx(apart, rel=1e-12)
    assert apart == pytest.approx(costs.step_seconds(load_of(together)) + costs.t0, rel=1e-12)


@pytest.mark.parametrize("costs", [affine("unsplit"), model_costs("unsplit", host=NO_HOST)], ids=name)
@given(first=lengths, second=lengths)
def test_unsplit_is_subadditive(costs: Costs, first: list[int], second: list[int]) -> None:
    apart = costs.step_seconds(load_of(first)) + costs.step_seconds(load_of(second))
    assert costs.step_seconds(load_of(first + second)) <= apart * (1 + 1e-12)


@given(members=st.lists(st.integers(1, 60_000), min_size=2, max_size=80), data=st.data())
def test_padded_attention_gains_by_an_interval_partition(members: list[int], data: st.DataObject) -> None:
    costs = AffineCosts(0.0, 1e-5, 2e-8, surface="padded")
    ordered = sorted(members)
    cut = data.draw(st.integers(1, len(ordered) - 1))
    short, long = ordered[:cut], ordered[cut:]
    gain = costs.step_seconds(load_of(ordered)) - sum(costs.step_seconds(load_of(part)) for part in (short, long))
    assert gain == pytest.approx(2e-8 * cut * (ordered[-1] - short[-1]), abs=1e-12)


def test_the_gated_surface_is_not_subadditive_at_its_gate() -> None:
    """Two batches below the gate can be cheaper than their union above it: the move `n just below the gate`."""
    costs = model_costs("gated", host=NO_HOST)
    below = int(costs.gate)
    long, short = Load(below, below * 500 + 60_000, 60_000), Load(1, 500, 500)
    union = Load(below + 1, long.total + 500, 60_000)
    assert costs.decode_attention_seconds(union.n, union.total, union.longest) > 1.5 * (
        costs.decode_attention_seconds(long.n, long.total, long.longest)
        + costs.decode_attention_seconds(short.n, short.total, short.longest)
    )


@given(members=lengths)
def test_gated_is_balanced_below_the_gate_and_unsplit_from_it_on(members: list[int]) -> None:
    load = load_of(members)
    for gated, balanced, unsplit in (
        tuple(affine(surface) for surface in ("gated", "balanced", "unsplit")),
        tuple(model_costs(surface) for surface in ("gated", "balanced", "unsplit")),
    ):
        gate = gated.gate
        same = balanced if load.n < gate else unsplit
        assert gated.step_seconds(load) == same.step_seconds(load)


def test_the_gate_and_the_tail_scale_with_heads_and_number_format() -> None:
    assert model_costs("gated").gate == pytest.approx(1.6 * 132 / 8)
    assert model_costs("gated", model="llama-3.1-70b", parallel=4).gate == pytest.approx(1.6 * 132 / 2)
    wide = model_costs("unsplit").decode_attention_seconds(1, 50_000, 50_000)
    # One KV head read by one SM alone: 512 bytes a token at 1/132 of 4.00 TB/s, 32 layers, and the launch.
    assert wide == pytest.approx(32 * (11.57e-6 + 50_000 * 512 * 132 / 4.00e12), rel=1e-9)


@given(members=lengths, chunk=chunk, parallel=st.sampled_from([1, 2, 4, 8]))
def test_mixed_steps_pay_the_weights_once(members: list[int], chunk: tuple[int, int], parallel: int) -> None:
    costs = model_costs("gated", parallel=parallel, host=NO_HOST)
    mixed = costs.step_seconds(load_of(members, (chunk,)))
    apart = costs.step_seconds(load_of(members)) + costs.step_seconds(Load(0, 0, 0, (chunk,)))
    assert mixed < apart
    rows = len(members) + chunk[1] - chunk[0]
    assert mixed == pytest.approx(
        costs.linear_seconds(rows, len(members) + 1)
        + costs.attention_seconds(load_of(members))
        + costs.prefill_attention_seconds(*chunk),
        rel=1e-12,
    )


@given(start=st.integers(0, 60_000), first=st.integers(1, 8192), second=st.integers(1, 8192))
def test_cutting_a_chunk_leaves_its_query_key_pairs(start: int, first: int, second: int) -> None:
    costs, middle, end = model_costs("gated"), start + first, start + first + second
    whole = costs.prefill_attention_seconds(start, end)
    cut = costs.prefill_attention_seconds(start, middle) + costs.prefill_attention_seconds(middle, end)
    # A second launch, and the first part's keys and values read once more: 8 KV heads, 512 bytes each, at 1.47 TB/s.
    assert cut - whole == pytest.approx(32 * (13.2e-6 + middle * 8 * 512 / 1.47e12), rel=1e-6)
    flops = 4 * 32 * 128 * (first + second) * (start + (first + second) / 2)
    moved = 2 * (first + second) * 32 * 128 * 2 + end * 8 * 512
    assert whole == pytest.approx(32 * (13.2e-6 + flops / 663e12 + moved / 1.47e12), rel=1e-9)


def test_a_chunk_is_counted_in_whole_tiles_where_tiles_are_known() -> None:
    """64 rows a tile: one more token starts a new one, and costs more than the 63 before it."""
    costs = model_costs("gated", "rtx4090")
    tiles = [costs.prefill_attention_seconds(16_384, 16_384 + size) for size in (1024, 1025, 1088)]
    assert tiles[1] - tiles[0] > 10 * (tiles[2] - tiles[1])


def test_chunks_share_one_launch_and_tiles_carry_decode_members() -> None:
    hopper, ada = model_costs("gated"), model_costs("gated", "rtx4090")
    two = hopper.prefill_attention_seconds(0, 512, chunks=2)
    assert two < 2 * hopper.prefill_attention_seconds(0, 512)
    members, part = [4000] * 32, ((0, 512),)
    assert ada.attention_seconds(load_of(members, part)) > 1.3 * (
        ada.attention_seconds(load_of(members)) + ada.attention_seconds(Load(0, 0, 0, part))
    )


@given(members=lengths)
def test_host_time_overlaps_or_adds(members: list[int]) -> None:
    load, host = load_of(members), Host(base=8e-3, per_gpu=1e-3, per_member=1e-5)
    alone = model_costs("gated", host=NO_HOST).step_seconds(load)
    hidden = model_costs("gated", host=host)
    assert hidden.host_seconds(load.n) == pytest.approx(9e-3 + 1e-5 * load.n)
    assert hidden.step_seconds(load) == pytest.approx(max(alone, hidden.host_seconds(load.n)))
    added = model_costs("gated", host=host, overlap_host=False)
    assert added.step_seconds(load) == pytest.approx(alone + hidden.host_seconds(load.n))


ranks = st.lists(st.lists(st.integers(1, 60_000), max_size=30), min_size=1, max_size=5)


@closed
@given(ranks=ranks, steps=st.integers(1, 20))
def test_a_lane_takes_what_its_slowest_rank_takes(costs: Costs, ranks: list[list[int]], steps: int) -> None:
    loads = [load_of(members) for members in ranks]
    slowest = max(costs.step_seconds(load) for load in loads)
    assert lane_seconds(costs, loads) == slowest
    assert lane_balanced_seconds(costs, loads) <= slowest
    grown = [[Load(x.n, x.total + x.n * j, x.longest + j) for x in loads] for j in range(steps)]
    expected = np.cumsum([lane_seconds(costs, step) for step in grown])
    np.testing.assert_allclose(lane_finishing_times(costs, loads, steps), expected, rtol=1e-9)


@given(members=lengths, start=st.integers(0, 9_999), third=st.integers(1, 999))
def test_an_even_lane_has_no_bubble_on_the_balanced_surface(members: list[int], start: int, third: int) -> None:
    costs, one = affine("balanced"), load_of(members, ((start, start + 3 * third),))
    assert lane_balanced_seconds(costs, [one, one, one]) == pytest.approx(costs.step_seconds(one), rel=1e-12)


def test_an_uneven_lane_costs_its_mean_rank_when_balanced() -> None:
    costs = affine("balanced")
    loads = [Load(4, 4000, 1500), Load(0, 0, 0), Load(2, 200, 100)]
    assert lane_balanced_seconds(costs, loads) == costs.step_seconds(Load(2, 1400, 700))


# Published fits and whole-server checks of the same form: relative tolerance 3 %, as host and rounding differ.
@pytest.mark.parametrize(
    ("model", "parallel", "expected"),
    [("llama-3.1-8b", 1, (4.9, 9.3, 14.0)), ("llama-3.1-70b", 4, (12.1, 16.1, 20.5))],
)
def test_reference_points_on_one_h200(model: str, parallel: int, expected: tuple[float, float, float]) -> None:
    costs = model_costs("balanced", model=model, parallel=parallel, host=NO_HOST)
    for n, milliseconds in zip((1, 64, 128), expected, strict=True):
        assert costs.step_seconds(Load(n, n * 2048, 2048)) * 1e3 == pytest.approx(milliseconds, rel=0.03)


# Measured: Llama-3.1-70B fp8 on vLLM, 1024 in / 1024 out, 4 at a time (ai-dynamo/aiconfigurator, silicon end to end).
@pytest.mark.parametrize(
    ("gpu", "parallel", "measured"),
    [("h100", 2, 17.4), ("h100", 4, 11.8), ("h200", 1, 21.5), ("h200", 2, 13.9), ("h200", 4, 9.9), ("h200", 8, 7.9)],
)
def test_whole_servers_within_15_percent(gpu: str, parallel: int, measured: float) -> None:
    costs = ModelCosts(gpu_named(gpu), model_named("llama-3.1-70b").with_dtypes("fp8"), parallel)
    assert costs.step_seconds(Load(4, 4 * 1536, 2048)) * 1e3 == pytest.approx(measured, rel=0.15)


def test_wrong_choices_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="surface must be one of balanced, gated, unsplit, padded, got 'flat'"):
        model_costs("flat")
    with pytest.raises(ConfigError, match="tensor_parallel=16 was not measured on h200; known: 1, 2, 4, 8"):
        model_costs("gated", parallel=16)
    with pytest.raises(ConfigError, match="a100 has no fit for weight_dtype 'fp8'"):
        ModelCosts(gpu_named("a100"), model_named("llama-3.1-8b").with_dtypes("fp8"))


def test_affine_costs_charge_prompt_tokens_beyond_their_rows() -> None:
    costs = AffineCosts(1.0, 0.5, 0.25, per_pair=0.125, per_prompt=0.25)
    assert costs.step_seconds(Load(2, 10, 6, ((0, 4),))) == 1.0 + 0.5 * 6 + 0.25 * 10 + 0.125 * 10 + 0.25 * 4
    assert evolve(costs, per_prompt=0.0).step_seconds(Load(2, 10, 6)) == costs.step_seconds(Load(2, 10, 6))


@pytest.mark.parametrize("name", ["t0", "per_row", "per_token", "longest_per_token", "gate", "per_pair"])
@pytest.mark.parametrize("value", [-1e-9, math.nan, math.inf, "1", None])
def test_no_part_of_affine_costs_is_below_zero(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"AffineCosts: {name} must be a finite number of at least 0, got"):
        AffineCosts(**{"t0": 1.0, "per_row": 1.0, "per_token": 1.0, name: value})  # type: ignore[arg-type]


def test_a_token_of_a_chunk_costs_nothing_at_least() -> None:
    assert AffineCosts(0.0, 2e-5, 0.0, per_prompt=-2e-5).step_seconds(Load(0, 0, 0, ((0, 100),))) == 0.0
    with pytest.raises(ConfigError, match=r"AffineCosts: per_prompt must be at least -per_row = -2e-05 .*got -3e-05"):
        AffineCosts(0.0, 2e-5, 0.0, per_prompt=-3e-5)
    with pytest.raises(ConfigError, match=r"AffineCosts: per_prompt must be a finite number, got -inf"):
        AffineCosts(0.0, 2e-5, 0.0, per_prompt=-math.inf)


@pytest.mark.parametrize(
    "costs", [affine("gated"), evolve(affine("padded"), per_prompt=-1e-6)], ids=["gated", "padded"]
)
def test_affine_costs_that_were_saved_are_loaded(tmp_path: Path, costs: AffineCosts) -> None:
    costs.save(tmp_path / "costs.json")
    assert load_costs(tmp_path / "costs.json") == costs


def test_load_costs_reads_tables_too(tmp_path: Path) -> None:
    points = [(n, n * mean, mean * n, n * mean * 1e-6) for n in (1, 2) for mean in (10, 20)]
    points += [(n, n * mean, mean, n * mean * 1e-6) for n in (1, 2) for mean in (10, 20)]
    table = TableCosts.from_points(points)
    table.save(tmp_path / "costs.json")
    assert isinstance(load_costs(tmp_path / "costs.json"), TableCosts)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "costs.json: format must be 'alignedsched-"),
        ({"version": 2}, "costs.json: version must be 1, got 2"),
        ({"t0": -1.0}, "costs.json: t0 must be a finite number of at least 0, got -1.0"),
        ({"gate": None}, "costs.json: gate must be a finite number"),
        ({"per_prompt": "much"}, "costs.json: per_prompt must be a finite number, got 'much'"),
        ({"per_prompt": -1.0}, "costs.json: per_prompt must be at least -per_row = -.*, got -1.0"),
        ({"per_pair": True}, "costs.json: per_pair must be a finite number of at least 0, got True"),
        ({"surface": "round"}, "costs.json: surface must be one of balanced, gated"),
    ],
)
def test_affine_costs_in_a_wrong_file_are_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    path = tmp_path / "costs.json"
    affine("gated").save(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ConfigError, match=message):
        load_costs(path)
