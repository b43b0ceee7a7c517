"""Rounds against brute force; when a partition pays and when it never does; the gate's closed form and its facts."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from alignedsched.costs import AffineCosts, Costs, Load
from alignedsched.lengths import Histogram, length_class
from alignedsched.policies.gate import Class, Gain, Room, gain
from alignedsched.policies.rounds import (
    ANY,
    PROBE_EVERY,
    PROBE_STEPS,
    WAITS_A_TARGET,
    RoundSettings,
    next_turn,
    partition,
)

T0, ROW, TOKEN, LONGEST = 0.005, 1e-5, 5e-8, 1e-6
EAGER = RoundSettings(bubble=0.0, saving=0.0)


def surface(name: str, gate: float = 4.0, t0: float = T0) -> AffineCosts:
    return AffineCosts(t0, ROW, TOKEN, LONGEST, name, gate)


def price(costs: Costs, group: list[int]) -> float:
    return costs.step_seconds(Load(len(group), sum(group), max(group)))


def intervals(lengths: list[int]) -> Iterator[list[list[int]]]:
    """Every partition of a sorted list into intervals."""
    if not lengths:
        yield []
    for end in range(1, len(lengths) + 1):
        for rest in intervals(lengths[end:]):
            yield [lengths[:end], *rest]


def sets(lengths: list[int]) -> Iterator[list[list[int]]]:
    """Every partition of a list."""
    if not lengths:
        yield []
        return
    first, rest = lengths[0], lengths[1:]
    for groups in sets(rest):
        yield [[first], *groups]
        for at in range(len(groups)):
            yield [*groups[:at], [first, *groups[at]], *groups[at + 1 :]]


# One length in each class, so that every interval is open to the programme.
APART = st.lists(st.integers(4, 16), min_size=2, max_size=7, unique=True).map(
    lambda powers: sorted(2**p + 7 for p in powers)
)
COSTS = st.builds(
    surface, st.sampled_from(["padded", "gated"]), st.sampled_from([2.0, 3.0, 5.0]), st.sampled_from([1e-4, 1e-3])
)


@settings(max_examples=200, deadline=None)
@given(lengths=APART, costs=COSTS)
def test_the_partition_is_the_best_of_all_intervals(lengths: list[int], costs: AffineCosts) -> None:
    best = min(sum(price(costs, group) for group in groups) for groups in intervals(lengths))
    found = partition(costs, lengths, EAGER)
    assert (found.seconds if found else price(costs, lengths)) == pytest.approx(best)


@settings(max_examples=200, deadline=None)
@given(lengths=APART, costs=COSTS, target=st.floats(1e-3, 1.0))
def test_with_a_tpot_target_rounds_are_short_or_the_common_step_is_longer_than_it(
    lengths: list[int], costs: AffineCosts, target: float
) -> None:
    plain = next_turn(costs, lengths, None, 0, 0.0, EAGER)
    turn = next_turn(costs, lengths, None, 0, 0.0, evolve(EAGER, tpot_target_s=target))
    groups = partition(costs, lengths, EAGER)
    if groups is None or groups.together > target:
        assert turn == plain
    elif turn is not None:
        assert turn.wait == WAITS_A_TARGET * target
        assert EAGER.least * groups.seconds <= turn.wait / 2


@settings(max_examples=80, deadline=None)
@given(lengths=APART, t0=st.sampled_from([1e-4, 1e-3]))
def test_where_padding_is_paid_no_other_grouping_is_better(lengths: list[int], t0: float) -> None:
    costs = surface("padded", t0=t0)
    best = min(sum(price(costs, group) for group in groups) for groups in sets(lengths))
    found = partition(costs, lengths, EAGER)
    assert (found.seconds if found else price(costs, lengths)) == pytest.approx(best)


@settings(max_examples=100, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 10**5), min_size=1, max_size=60).map(sorted),
    name=st.sampled_from(["balanced", "unsplit"]),
)
def test_balanced_and_unsplit_never_pay_for_rounds(lengths: list[int], name: str) -> None:
    assert partition(surface(name), lengths, EAGER) is None


@settings(max_examples=100, deadline=None)
@given(lengths=st.lists(st.integers(1, 10**5), min_size=2, max_size=60).map(sorted), costs=COSTS)
def test_a_round_saves_what_it_must(lengths: list[int], costs: AffineCosts) -> None:
    found = partition(costs, lengths, RoundSettings())
    if found is not None:
        assert found.together == pytest.approx(price(costs, lengths))
        assert found.seconds <= 0.9 * found.together
        assert list(found.edges) == sorted(set(found.edges))


@settings(max_examples=100, deadline=None)
@given(lengths=st.lists(st.integers(1, 10**5), min_size=2, max_size=40).map(sorted), costs=COSTS)
def test_the_turns_of_a_round_serve_everybody_once_for_equally_many_steps(
    lengths: list[int], costs: AffineCosts
) -> None:
    turn = next_turn(costs, lengths, None, 0, 0.0, RoundSettings())
    if turn is None:
        return
    served, steps, step, now = [0] * len(lengths), turn.until - turn.first, 0, 0.0
    for _ in range(turn.groups):
        assert turn is not None
        assert turn.until - turn.first == steps
        served = [n + turn.holds(length) for n, length in zip(served, lengths, strict=True)]
        step, now = turn.until, turn.wake_at(step, now)
        turn = next_turn(costs, lengths, turn, step, now, RoundSettings())
    assert served == [1] * len(lengths)
    assert turn is not None
    assert turn.low == 1


def test_who_has_waited_too_long_is_next() -> None:
    costs, lengths = surface("padded"), [10] * 8 + [1000] * 8 + [60_000] * 2
    first = next_turn(costs, lengths, None, 0, 0.0, RoundSettings())
    assert first is not None
    assert first.holds(10)
    urgent = next_turn(costs, lengths, first, first.until, 1.0, RoundSettings(), urgent=60_000)
    assert urgent is not None
    assert urgent.holds(60_000)
    assert urgent.high == ANY


@settings(max_examples=200, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 10**5), min_size=2, max_size=40).map(sorted),
    costs=COSTS,
    turns=st.lists(st.tuples(st.integers(1, 90), st.booleans(), st.booleans()), max_size=120),
)
def test_of_fifty_steps_at_most_one_is_spent_on_probing(
    lengths: list[int], costs: AffineCosts, turns: list[tuple[int, bool, bool]]
) -> None:
    """However long turns last, and whether or not rounds end in between."""
    turn, step, probed = None, 0, 0
    for steps, curious, ends in turns:
        turn = None if ends else next_turn(costs, lengths, turn, step, 0.01 * step, RoundSettings(), curious=curious)
        step += steps
        if turn is not None and turn.groups == 1:
            probed += steps
        if turn is None or turn.groups > 1:
            assert PROBE_EVERY * probed <= step


def test_a_probe_is_run_by_all_but_the_shortest_between_two_rounds() -> None:
    costs, lengths = surface("padded"), [10] * 8 + [1000] * 8 + [60_000] * 2
    turn, step, kinds = None, 0, []
    for _ in range(400):
        turn = next_turn(costs, lengths, turn, step, 0.01 * step, RoundSettings(), curious=True)
        assert turn is not None
        kinds.append(turn.groups)
        if turn.groups == 1:
            assert [turn.holds(length) for length in (10, 1000, 60_000)] == [False, True, True]
        step = turn.until
    probes = [at for at, groups in enumerate(kinds) if groups == 1]
    assert probes
    rounds = [kinds[at + 1 : at + 1 + kinds[at + 1]] for at in probes if at + 4 < len(kinds)]
    assert all(kinds == [len(kinds)] * len(kinds) for kinds in rounds)
    assert step / 60 <= PROBE_STEPS * len(probes) <= step / PROBE_EVERY


# -- the gate


def told(costs: Costs, classes: list[tuple[int, int]], tokens: int = 400_000) -> Gain:
    return gain(costs, of(classes), Room(tokens, 256), RoundSettings())


def of(classes: list[tuple[int, int]], output: float = 300.0) -> list[Class]:
    return [Class(n, tokens // n, output) for n, tokens in classes]


CLASSES = st.lists(st.tuples(st.integers(100, 2000), st.integers(50, 60_000)), min_size=1, max_size=8).map(
    lambda rows: [(n, n * length) for n, length in sorted(rows, key=lambda row: row[1])]
)


@settings(max_examples=150, deadline=None)
@given(classes=CLASSES)
def test_on_a_balanced_surface_waves_are_never_faster_but_for_rounding(classes: list[tuple[int, int]]) -> None:
    """Residents are whole: of few of them one more or less would show. (There the gate is not even asked.)"""
    assert told(surface("balanced"), classes, tokens=6_000_000).time <= 1.02


@pytest.mark.parametrize(("name", "faster"), [("gated", 1.1), ("unsplit", 1.2), ("padded", 1.2)])
def test_a_long_tail_is_worked_off_faster_in_waves(name: str, faster: float) -> None:
    tail = [(400, 1000), (300, 8000), (200, 16_000), (90, 32_000), (10, 100_000)]
    found = told(surface(name, gate=27.0), [(n, n * length) for n, length in tail])
    assert found.time > faster
    assert found.wait > 2.0


def test_where_prefill_elsewhere_is_the_bottleneck_waves_are_not_faster() -> None:
    costs = AffineCosts(T0, 1e-3, TOKEN, LONGEST, "unsplit")
    tail = [(400, 400 * 1000), (300, 300 * 8000), (10, 10 * 100_000)]
    alone = gain(costs, of(tail), Room(400_000, 256), RoundSettings())
    behind = gain(costs, of(tail), Room(400_000, 256, 1.0, apart=True), RoundSettings())
    assert alone.time > 1.1
    assert behind.time == pytest.approx(1.0)


def test_room_kept_free_is_part_of_the_price_of_waves() -> None:
    """Where lengths are alike, waves win nothing, and members that there is no room for are all that is left of it."""
    costs, alike = surface("unsplit"), [(1000, 1000 * 1024)]
    times = [
        gain(costs, of(alike), Room(100_000, 256, spare=spare), RoundSettings()).time for spare in (0, 60, 120, 480)
    ]
    assert times == sorted(times, reverse=True)
    assert times[-1] < 0.9 < 0.99 < times[0]


@given(spare=st.integers(0, 2000))
def test_room_kept_free_for_rounds_is_the_price_of_either_order(spare: int) -> None:
    """Where both orders run in rounds, the price is the same for both, but for rounding."""
    costs, apart = surface("padded"), [(500, 500 * 100), (500, 500 * 40_000)]
    free, kept = (gain(costs, of(apart), Room(10**6, 256, spare=tokens), RoundSettings()) for tokens in (0, spare))
    assert kept.time == pytest.approx(free.time, rel=0.1)


def test_equal_lengths_gain_nothing() -> None:
    found = told(surface("unsplit"), [(1000, 1000 * 1024)])
    assert found.time == pytest.approx(1.0, abs=0.01)
    assert found.wait == pytest.approx(1.0, abs=0.01)


# -- length classes


@given(length=st.integers(1, 10**7), more=st.integers(0, 10**6))
def test_classes_rise_with_length_and_are_narrow(length: int, more: int) -> None:
    assert length_class(length) <= length_class(length + more)
    if length_class(length) == length_class(length + more):
        assert more <= length / 4


@given(lengths=st.lists(st.integers(1, 10**6), max_size=40), gone=st.integers(0, 40))
def test_a_histogram_counts_what_is_there(lengths: list[int], gone: int) -> None:
    histogram = Histogram()
    for length in lengths:
        histogram.add(length)
    for length in lengths[:gone]:
        histogram.add(length, -1)
    left = lengths[gone:]
    assert histogram.count == len(left) == sum(count for count, _ in histogram)
    assert histogram.tokens == sum(left) == sum(tokens for _, tokens in histogram)
    means = [tokens / count for count, tokens in histogram]
    assert means == sorted(means)
