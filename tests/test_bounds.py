"""The bound against every schedule there is (tiny cases) and against random feasible schedules (larger ones)."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Iterator

import numpy as np
import pytest
from attrs import frozen
from hypothesis import given, settings
from hypothesis import strategies as st

from alignedsched.cluster import Cluster, Device, KVLayout, Lane, Role
from alignedsched.costs import SURFACES, AffineCosts, Costs, Load, ModelCosts, lane_seconds
from alignedsched.errors import CallerError, ConfigError
from alignedsched.hardware import gpu_named, model_named
from alignedsched.metrics import Lanes, bound, rate_for_load, work_seconds
from alignedsched.metrics.work import Envelope, terms_of

MODEL_COSTS = [
    ModelCosts(gpu_named("h100"), model_named("llama-3.1-8b"), surface=surface, overlap_host=overlap)
    for surface in SURFACES
    for overlap in (True, False)
]


@frozen
class Case:
    """Some requests (arrival, prompt, output) on lanes, each a tuple of equal ranks: (prefills, decodes, ranks)."""

    requests: tuple[tuple[float, int, int], ...]
    lanes: tuple[tuple[bool, bool, int], ...]
    max_members: int
    max_tokens: int
    blocks: int
    block_size: int

    @property
    def limits(self) -> Lanes:
        count = {
            role: sum(ranks for p, d, ranks in self.lanes if (p, d) == kind)
            for role, kind in (("prefill", (True, False)), ("decode", (False, True)), ("both", (True, True)))
        }
        return Lanes(
            **count, max_members=self.max_members, max_tokens=self.max_tokens, prefill_blocks=10**6,
            decode_blocks=self.blocks, block_size=self.block_size,
        )  # fmt: skip

    def bound_s(self, costs: Costs) -> float:
        arrival, prompt, output = zip(*self.requests, strict=True)
        return bound(np.array(arrival), np.array(prompt), np.array(output), costs, self.limits).bound_s

    @property
    def start(self) -> float:
        return min(arrival for arrival, _, _ in self.requests)

    def fits(self, contexts: list[int], rows: int) -> bool:
        blocks = sum(-(-context // self.block_size) for context in contexts)
        return len(contexts) <= self.max_members and rows <= self.max_tokens and blocks <= self.blocks


Step = tuple[float, tuple[tuple[int, int], ...]]  # when it ends, and (request, its progress then)


def rank_steps(case: Case, kind: tuple[bool, bool], done: tuple[int, ...], free: list[int]) -> Iterator[
    tuple[Load, tuple[tuple[int, int], ...]]
]:  # fmt: skip
    """Every non-empty step of one rank. A request's progress counts prompt tokens, then decode steps."""
    choices = []
    for request in free:
        _, prompt, output = case.requests[request]
        at = done[request]
        options = [at]
        if at < prompt and kind[0]:
            options += range(at + 1, prompt + 1)
        elif prompt <= at < prompt + output - 1 and kind[1]:
            options.append(at + 1)
        choices.append(options)
    for chosen in itertools.product(*choices):
        moved = [(r, done[r], to) for r, to in zip(free, chosen, strict=True) if to != done[r]]
        contexts = [to for r, at, to in moved if at >= case.requests[r][1]]
        chunks = tuple((at, to) for r, at, to in moved if at < case.requests[r][1])
        rows = len(contexts) + sum(end - start for start, end in chunks)
        if moved and case.fits(contexts, rows):
            load = Load(len(contexts), sum(contexts), max(contexts, default=0), chunks)
            yield load, tuple((r, to) for r, _, to in moved)


def best_time(case: Case, costs: Costs) -> float:
    """The least makespan over all schedules of single-rank lanes (KV moves for free). Dijkstra over states.

    Any schedule can be shifted left until each step starts at an arrival or at another step's end, so these suffice.
    """
    ends = tuple(prompt + output - 1 for _, prompt, output in case.requests)
    idle: tuple[Step | None, ...] = (None,) * len(case.lanes)
    heap = [(case.start, 0, (0,) * len(ends), idle)]
    seen, counter = set(), itertools.count(1)
    while heap:
        now, _, done, busy = heapq.heappop(heap)
        if (now, done, busy) in seen:
            continue
        seen.add((now, done, busy))
        progress = list(done)
        for step in busy:
            if step and step[0] <= now:
                for request, to in step[1]:
                    progress[request] = to
        done = tuple(progress)
        if done == ends:
            return now - case.start
        busy = tuple(step if step and step[0] > now else None for step in busy)
        for after in starts(case, costs, now, done, busy):
            times = [step[0] for step in after if step] + [a for a, _, _ in case.requests if a > now]
            if times:
                heapq.heappush(heap, (min(times), next(counter), done, after))
    raise AssertionError("no schedule finishes")


def starts(
    case: Case, costs: Costs, now: float, done: tuple[int, ...], busy: tuple[Step | None, ...], lane: int = 0
) -> Iterator[tuple[Step | None, ...]]:
    """Every way to start steps (or none) on the idle lanes from ``lane`` on."""
    if lane == len(busy):
        yield busy
        return
    yield from starts(case, costs, now, done, busy, lane + 1)
    if busy[lane] is None:
        taken = {request for step in busy if step for request, _ in step[1]}
        free = [r for r, (arrival, _, _) in enumerate(case.requests) if r not in taken and arrival <= now]
        for load, moved in rank_steps(case, case.lanes[lane][:2], done, free):
            step = (now + costs.step_seconds(load), moved)
            yield from starts(case, costs, now, done, (*busy[:lane], step, *busy[lane + 1 :]), lane + 1)


BOTH, PREFILL, DECODE = (True, True, 1), (True, False, 1), (False, True, 1)
AFFINE = st.builds(
    AffineCosts,
    t0=st.sampled_from([0.0, 0.5, 3.0]),
    per_row=st.sampled_from([0.0, 0.25, 1.0]),
    per_token=st.sampled_from([0.0, 0.125, 1.0]),
    longest_per_token=st.sampled_from([0.0, 0.5, 2.0]),
    surface=st.sampled_from(SURFACES),
    gate=st.sampled_from([1.0, 2.0]),
    per_pair=st.sampled_from([0.0, 0.125]),
    per_prompt=st.sampled_from([0.0, 0.25]),
)
TINY = st.tuples(st.sampled_from([0.0, 0.0, 1.5, 4.0, 20.0]), st.integers(1, 2), st.integers(1, 3))


@st.composite
def tiny_cases(draw: st.DrawFn, lanes: tuple[tuple[bool, bool, int], ...]) -> Case:
    requests = draw(st.lists(TINY, min_size=1, max_size=3 if len(lanes) == 1 else 2))
    block_size = draw(st.integers(1, 2))
    needed = max(-(-(prompt + output - 1) // block_size) for _, prompt, output in requests)
    return Case(
        tuple(requests),
        lanes,
        max_members=draw(st.integers(1, 3)),
        max_tokens=draw(st.integers(1, 5)),
        blocks=draw(st.integers(needed, needed + 4)),
        block_size=block_size,
    )


@settings(max_examples=150, deadline=None)
@given(data=st.data(), costs=AFFINE, lanes=st.sampled_from([(BOTH,), (BOTH,), (BOTH, BOTH), (PREFILL, DECODE)]))
def test_no_schedule_of_a_tiny_case_beats_the_bound(
    data: st.DataObject, costs: AffineCosts, lanes: tuple[tuple[bool, bool, int], ...]
) -> None:
    case = data.draw(tiny_cases(lanes))
    assert case.bound_s(costs) <= best_time(case, costs)


UNIT = AffineCosts(t0=1.0, per_row=0.5, per_token=0.25, per_pair=0.125)


@pytest.mark.parametrize(
    ("requests", "lanes", "limits"),
    [
        pytest.param(((3.0, 2, 3),), (BOTH,), (2, 4, 9), id="one request alone"),
        pytest.param(((0.0, 2, 3),) * 2, (BOTH,), (2, 4, 9), id="equal requests that fit together"),
        pytest.param(((0.0, 1, 2), (50.0, 2, 3)), (BOTH,), (2, 4, 9), id="a late arrival"),
        pytest.param(((0.0, 2, 2),) * 2, (PREFILL, DECODE), (2, 2, 9), id="prefill binds, a decode follows"),
        pytest.param(((0.0, 2, 1),) * 2, (BOTH, BOTH), (2, 2, 9), id="two lanes, prefill only"),
        pytest.param(((0.0, 1, 3),) * 2, (PREFILL, DECODE), (1, 4, 9), id="members bind the decode side"),
    ],
)
def test_the_bound_is_reached_in_these_cases(
    requests: tuple[tuple[float, int, int], ...],
    lanes: tuple[tuple[bool, bool, int], ...],
    limits: tuple[int, int, int],
) -> None:
    case = Case(requests, lanes, *limits, block_size=1)
    best = best_time(case, UNIT)
    assert case.bound_s(UNIT) <= best
    assert case.bound_s(UNIT) == pytest.approx(best, rel=1e-6)


def test_blocks_bind_the_decode_side() -> None:
    # Two requests of 3, then 4 blocks, on 4 blocks: 2 * (3 + 4) / 4 rounds up to 4 steps, one by one.
    roomy = Case(((0.0, 2, 3),) * 2, (PREFILL, DECODE), 2, 4, 8, 1)
    tight = Case(((0.0, 2, 3),) * 2, (PREFILL, DECODE), 2, 4, 4, 1)
    assert tight.bound_s(UNIT) > roomy.bound_s(UNIT)
    assert tight.bound_s(UNIT) == pytest.approx(best_time(tight, UNIT), rel=1e-6)


def random_time(case: Case, costs: Costs, rng: random.Random) -> float:
    """The makespan of a random feasible schedule; a lane's ranks step together and share nothing."""
    ends = [prompt + output - 1 for _, prompt, output in case.requests]
    done, now, taken = [0] * len(ends), case.start, set[int]()
    running: list[tuple[float, int, list[tuple[int, int]]]] = []
    while done != ends:
        busy = {lane for _, lane, _ in running}
        for index, (prefills, decodes, ranks) in enumerate(case.lanes):
            if index in busy:
                continue
            loads, moves = [], []
            for _ in range(ranks):
                free = [r for r, (arrival, _, _) in enumerate(case.requests) if r not in taken and arrival <= now]
                rng.shuffle(free)
                load, moved = random_step(case, (prefills, decodes), done, free, rng)
                loads.append(load)
                moves += moved
                taken.update(request for request, _ in moved)
            if moves:
                heapq.heappush(running, (now + lane_seconds(costs, loads), index, moves))
        later = [arrival for arrival, _, _ in case.requests if arrival > now]
        now = min([*later, *(end for end, _, _ in running[:1])])
        while running and running[0][0] <= now:
            for request, to in heapq.heappop(running)[2]:
                done[request] = to
                taken.discard(request)
    return now - case.start


def random_step(
    case: Case, kind: tuple[bool, bool], done: list[int], free: list[int], rng: random.Random
) -> tuple[Load, list[tuple[int, int]]]:
    contexts: list[int] = []
    chunks: list[tuple[int, int]] = []
    moved: list[tuple[int, int]] = []
    rows, greedy = 0, rng.random()
    for request in free:
        _, prompt, output = case.requests[request]
        at = done[request]
        if rng.random() > greedy and moved:
            continue
        if at < prompt and kind[0] and rows < case.max_tokens:
            most = min(prompt - at, case.max_tokens - rows)
            to = at + (most if rng.random() < greedy else rng.randint(1, most))
            chunks.append((at, to))
            rows += to - at
            moved.append((request, to))
        elif prompt <= at < prompt + output - 1 and kind[1] and case.fits([*contexts, at + 1], rows + 1):
            contexts.append(at + 1)
            rows += 1
            moved.append((request, at + 1))
    return Load(len(contexts), sum(contexts), max(contexts, default=0), tuple(chunks)), moved


LANES = st.lists(
    st.sampled_from([(True, True, 1), (True, True, 2), (True, False, 1), (False, True, 1), (False, True, 2)]),
    min_size=1,
    max_size=3,
).filter(lambda lanes: any(p for p, _, _ in lanes) and any(d for _, d, _ in lanes))


@settings(max_examples=120, deadline=None)
@given(
    lanes=LANES,
    model=st.sampled_from(MODEL_COSTS) | AFFINE,
    scale=st.sampled_from([1, 50]),
    count=st.integers(1, 12),
    seed=st.integers(0, 2**32),
)
def test_no_random_schedule_beats_the_bound(
    lanes: list[tuple[bool, bool, int]], model: Costs, scale: int, count: int, seed: int
) -> None:
    rng = random.Random(seed)
    spread = rng.choice([0.0, 0.05, 5.0])
    requests = tuple((rng.random() * spread, rng.randint(1, 10 * scale), rng.randint(1, 12)) for _ in range(count))
    size = rng.choice([1, 16])
    needed = max(-(-(prompt + output - 1) // size) for _, prompt, output in requests)
    case = Case(
        requests, tuple(lanes), rng.randint(1, 8), rng.randint(1, 12 * scale), needed + rng.randint(0, 3 * needed), size
    )
    least = case.bound_s(model)
    for _ in range(3):
        assert least <= random_time(case, model, rng)


@pytest.mark.parametrize("costs", [c for c in MODEL_COSTS if c.overlap_host], ids=lambda costs: costs.surface)
def test_one_request_alone_reaches_the_bound_on_the_modelled_surfaces(costs: ModelCosts) -> None:
    lanes = Lanes(both=1, prefill_blocks=10**4, decode_blocks=10**4)
    steps = [Load(0, 0, 0, ((0, 3000),)), *(Load(1, 3000 + j, 3000 + j) for j in range(1, 200))]
    alone = sum(costs.step_seconds(load) for load in steps)
    assert bound([7.0], [3000], [200], costs, lanes).bound_s == pytest.approx(alone, rel=1e-6)


def test_a_full_even_batch_is_within_a_tenth_of_the_bound() -> None:
    # The cheapest schedule of 256 equal requests: the bound must not be far below what is plainly possible.
    costs = MODEL_COSTS[0]
    lanes = Lanes(prefill=1, decode=1, prefill_blocks=10**5, decode_blocks=10**5)
    decode = float(costs.finishing_times(Load(256, 256 * 1001, 1001), 499)[-1])
    least = bound(np.zeros(256), np.full(256, 1000), np.full(256, 500), costs, lanes)
    assert 0.9 * decode < least.bound_s


@pytest.mark.parametrize("costs", MODEL_COSTS[:2])
def test_the_terms_of_a_model_sum_to_at_most_its_steps(costs: ModelCosts) -> None:
    terms, one = terms_of(costs, 600), np.ones(1)
    for n, total, chunks in [(1, 1, ()), (64, 9000, ()), (256, 90000, ((0, 300),)), (0, 0, ((0, 17), (0, 400)))]:
        tokens = sum(end for _, end in chunks)
        rows, sampled = float(n + tokens), float(n + len(chunks))
        gpu = terms.rows.least(rows * one, one) + terms.sampled.least(sampled * one, one)
        if n:
            gpu += terms.decode_attention(n * one, total * one, one)
        if chunks:
            pairs = sum(end * (end + terms.half_pair) / 2 for _, end in chunks)
            gpu += terms.prefill_attention(tokens * one, pairs * one, one)
        least = float(terms.with_host(gpu, sampled * one, one)[0])
        exact = costs.balanced_seconds(Load(n, total, total, chunks))
        assert 0.9 * exact < least <= exact * (1 + 1e-9)


@given(values=st.lists(st.floats(0.01, 100.0), min_size=1, max_size=12), steps=st.integers(1, 6), data=st.data())
def test_the_envelope_bounds_every_way_to_cut_rows_into_steps(
    values: list[float], steps: int, data: st.DataObject
) -> None:
    envelope = Envelope.below(np.array(np.maximum.accumulate(values)))
    cut = data.draw(st.lists(st.integers(1, len(values)), min_size=steps, max_size=steps + 5))
    spent = sum(float(np.maximum.accumulate(values)[rows - 1]) for rows in cut)
    least = envelope.least(np.array([float(sum(cut))]), np.array([float(steps)]))
    assert least[0] <= spent * (1 + 1e-9)


def test_more_steps_than_the_fewest_are_taken_where_rows_are_cheapest_alone() -> None:
    envelope = Envelope.below(np.array([1.0, 5.0, 12.0]))
    assert envelope.least(np.array([3.0]), np.array([1.0])).tolist() == [3.0]  # three of one row
    falling = Envelope.below(np.array([1.0, 1.5, 2.0]))
    assert falling.least(np.array([3.0, 3.0]), np.array([1.0, 2.0])).tolist() == [2.0, 2.5]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32), load=st.floats(0.1, 3.0))
def test_scaled_arrivals_have_the_load_asked_for(seed: int, load: float) -> None:
    rng = np.random.default_rng(seed)
    arrival = rng.uniform(5, 100, 50)
    prompt, output = rng.integers(1, 500, 50), rng.integers(1, 50, 50)
    lanes = Lanes(both=2, prefill_blocks=10**4, decode_blocks=10**4)
    factor = rate_for_load(arrival, prompt, output, UNIT, lanes, load)
    scaled = arrival / factor
    assert work_seconds(prompt, output, UNIT, lanes) == pytest.approx(load * np.ptp(scaled))
    least = bound(scaled, prompt, output, UNIT, lanes)
    assert least.work_s == pytest.approx(work_seconds(prompt, output, UNIT, lanes))
    assert least.bound_s >= max(least.work_s, least.request_s) * (1 - 1e-6)


def test_the_order_of_requests_and_the_clocks_origin_do_not_matter() -> None:
    rng = np.random.default_rng(1)
    arrival, prompt, output = rng.uniform(0, 9, 40), rng.integers(1, 99, 40), rng.integers(1, 9, 40)
    lanes = Lanes(prefill=1, decode=2, prefill_blocks=99, decode_blocks=99)
    least = bound(arrival, prompt, output, UNIT, lanes)
    mixed = rng.permutation(40)
    shifted = bound(arrival[mixed] + 1000, prompt[mixed], output[mixed], UNIT, lanes)
    assert shifted.bound_s == pytest.approx(least.bound_s)


def test_lanes_of_a_cluster_count_ranks_and_take_the_widest_limits() -> None:
    devices = (Device("p", Role.PREFILL, 50), *(Device(f"d{i}", Role.DECODE, 70 + i) for i in range(2)))
    lanes = (Lane("P", ("p",), max_tokens=2048), Lane("D", ("d0", "d1"), max_members=64))
    taken = Lanes.of(Cluster(devices, lanes, layout=KVLayout(block_size=32)))
    assert taken == Lanes(prefill=1, decode=2, max_members=256, max_tokens=8192, prefill_blocks=50, decode_blocks=71,
                          block_size=32)  # fmt: skip


LANE = Lanes(both=1, prefill_blocks=10, decode_blocks=10)


@pytest.mark.parametrize(
    ("arrival", "prompt", "output", "message"),
    [
        ([0.0], [0], [1], r"prompt\[0\] must be at least 1"),
        ([0.0], [1.5], [1], "prompt must be one row of whole numbers"),
        ([0.0, 1.0], [1], [1], "equally long"),
        ([float("nan")], [1], [1], r"arrival\[0\] must be finite"),
        ([0.0, 0.0], [1, 161], [1, 1], "request 1 needs 11 blocks, no prefill device has more than 10"),
        ([0.0], [160], [2], "no decode device"),
    ],
)
def test_bad_work_is_refused_by_name(arrival: list[float], prompt: list[int], output: list[int], message: str) -> None:
    with pytest.raises(CallerError, match=message):
        bound(arrival, prompt, output, UNIT, LANE)


def test_bad_lanes_loads_and_costs_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"Lanes\.both"):
        Lanes(both=-1, prefill_blocks=1, decode_blocks=1)
    with pytest.raises(ConfigError, match="must decode"):
        Lanes(prefill=1, prefill_blocks=1, decode_blocks=1)
    with pytest.raises(CallerError, match="load must be a positive number"):
        rate_for_load([0.0, 1.0], [1, 1], [1, 1], UNIT, LANE, 0.0)
    with pytest.raises(CallerError, match="span some time"):
        rate_for_load([1.0, 1.0], [1, 1], [1, 1], UNIT, LANE, 0.5)
    with pytest.raises(ConfigError, match="a bound is known for ModelCosts, AffineCosts and TableCosts, got object"):
        bound([0.0], [1], [1], object(), LANE)  # type: ignore[arg-type]
    assert bound([], [], [], UNIT, LANE).bound_s == work_seconds([], [], UNIT, LANE) == 0.0
