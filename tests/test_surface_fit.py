"""The refitted surface: it finds what is true from a stream of steps, and leaves what is right alone."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator

import pytest
from attrs import evolve

from alignedsched.costs import AffineCosts, Costs, Load
from alignedsched.errors import CallerError
from alignedsched.policies.believed import BelievedCosts, Correction, published_correction
from alignedsched.policies.protocols import Stepped
from alignedsched.policies.surface_fit import FADE, SHAPES, SurfaceFit
from alignedsched.sim.build import build

T0, C, S, GATE = 6e-3, 4.4e-8, 16 * 4.4e-8, 40
SURFACES = ("balanced", "gated", "unsplit", "padded")


def affine(surface: str, c: float = 1.0, s: float = 1.0, t0: float = 1.0, gate: int = GATE) -> AffineCosts:
    return AffineCosts(t0 * T0, 1e-6, c * C, s * S, surface, gate)


def loads(seed: int, most: int = 256) -> Iterator[Load]:
    """Batches as continuous batching makes them: a random walk in members, long-tailed lengths."""
    draw = random.Random(seed)
    lengths: list[int] = []
    while True:
        want = draw.randint(1, most) if draw.random() < 0.1 else len(lengths)
        lengths = [length + 5 for length in lengths if draw.random() > 0.02][: max(1, want)]
        while len(lengths) < want:
            lengths.append(min(60_000, int(600 * draw.paretovariate(1.1))))
        if lengths:
            yield Load(len(lengths), sum(lengths), max(lengths))


def feed(fit: SurfaceFit, true: Costs, facts: int, seed: int = 1, noise: float = 0.02, drift: float = 0.0) -> None:
    draw = random.Random(seed + 99)
    for number, load in zip(range(facts), loads(seed), strict=False):
        seconds = true.step_seconds(load) * math.exp(draw.gauss(0, noise)) * (1 + drift * number / facts)
        if draw.random() < 0.02:
            seconds *= draw.choice([0.2, 3.0, 20.0])  # a hiccup, a clock that jumped
        fit.stepped(Stepped("lane", (load,), 1, seconds))


def error(believed: Costs, true: Costs, seed: int = 7) -> float:
    """The median relative error on steps it has not seen."""
    wrong = sorted(
        abs(believed.step_seconds(load) / true.step_seconds(load) - 1)
        for _, load in zip(range(300), loads(seed), strict=False)
    )
    return wrong[len(wrong) // 2]


@pytest.mark.parametrize("surface", SURFACES)
def test_a_right_surface_is_left_alone(surface: str) -> None:
    true = affine(surface)
    fit = SurfaceFit()
    assert fit.costs(true) is true
    feed(fit, true, 800, noise=0.02)
    assert fit.costs(true) is true


@pytest.mark.parametrize("surface", SURFACES)
def test_a_right_model_is_left_alone(surface: str) -> None:
    """Rooflines and host time are no affine surface; the fit keeps their form."""
    true = build("h100", "llama-3.1-8b", topology="colocated", lanes=1, surface=surface, staging=False).costs
    fit = SurfaceFit()
    fit.costs(true)
    feed(fit, true, 800)
    assert fit.costs(true) is true


@pytest.mark.parametrize("noise", [0.0, 0.05])
@pytest.mark.parametrize(("c", "s"), [(4.0, 1.0), (0.25, 1.0), (1.0, 4.0), (1.0, 0.25), (4.0, 0.25), (0.25, 4.0)])
@pytest.mark.parametrize("surface", SURFACES)
def test_wrong_factors_are_found_within_200_steps(surface: str, c: float, s: float, noise: float) -> None:
    true, told = affine(surface), affine(surface, c, s)
    fit = SurfaceFit()
    fit.costs(told)
    feed(fit, true, 200, noise=noise)
    assert error(fit.costs(told), true) < 0.02 + noise / 2
    feed(fit, true, 400, seed=5, noise=noise)
    assert error(fit.costs(told), true) < 0.015 + noise / 2


@pytest.mark.parametrize("told", SURFACES)
@pytest.mark.parametrize("truth", SURFACES)
def test_a_wrong_kind_of_surface_is_found(told: str, truth: str) -> None:
    true, published = affine(truth, t0=1.3), affine(told, gate=12 if told == "gated" else GATE)
    fit = SurfaceFit()
    fit.costs(published)
    feed(fit, true, 600, noise=0.03)
    believed = fit.costs(published)
    assert error(believed, true) < 0.03
    if truth in ("unsplit", "padded"):
        uneven = Load(200, 200 * 600, 40_000)
        assert believed.step_seconds(uneven) == pytest.approx(true.step_seconds(uneven), rel=0.15)


def test_a_gate_elsewhere_is_found() -> None:
    true, told = affine("gated", gate=100), affine("gated", gate=25)
    fit = SurfaceFit()
    fit.costs(told)
    feed(fit, true, 1500, noise=0.02)
    assert fit.correction.gate == pytest.approx(100, rel=0.35)
    assert error(fit.costs(told), true) < 0.02


def test_of_the_gates_that_explain_what_was_seen_the_highest_is_believed() -> None:
    """Whoever believes in it runs groups below it, and sees whether they are fast; a lower one would never be tried."""
    true, told = affine("gated", gate=20), affine("balanced")
    fit = SurfaceFit()
    fit.costs(told)
    for n in range(150, 50, -1):
        for load in (Load(n, n * 500, 600), Load(n, n * 500 + 60_000, 60_000)):
            fit.stepped(Stepped("lane", (load,), 1, true.step_seconds(load)))
    assert 50 <= fit.correction.gate <= 60


def test_a_model_with_other_factors_is_found() -> None:
    told = build("h100", "llama-3.1-8b", topology="colocated", lanes=1, surface="gated", staging=False).costs
    true = BelievedCosts(told, Correction(1.2, 4.0, 3.0 * published_correction(told).longest, 20.0))
    fit = SurfaceFit()
    fit.costs(told)
    feed(fit, true, 600)
    assert error(fit.costs(told), true) < 0.02


def test_drift_is_followed() -> None:
    true = affine("unsplit")
    fit = SurfaceFit()
    fit.costs(true)
    feed(fit, true, 3000, drift=0.5)
    slower = AffineCosts(1.5 * T0, 1.5e-6, 1.5 * C, 1.5 * S, "unsplit")
    assert error(fit.costs(true), slower) < 0.05


def test_nonsense_never_makes_costs_negative_or_unbounded() -> None:
    draw = random.Random(4)
    told = affine("gated")
    fit = SurfaceFit()
    fit.costs(told)
    for _, load in zip(range(500), loads(3), strict=False):
        fit.stepped(Stepped("lane", (load,), 1, 10.0 ** draw.uniform(-9, 3)))
        seconds = fit.costs(told).step_seconds(load)
        assert 0 < seconds < 1e6
    assert len(fit.facts) <= SHAPES
    assert fit.correction.base > 0
    assert fit.correction.even > 0


def test_what_says_nothing_is_passed_over() -> None:
    fit, told = SurfaceFit(), affine("balanced")
    fit.stepped(Stepped("lane", (Load(3, 30, 20),), 1, 1.0))  # nobody has said yet what was published
    fit.costs(told)
    fit.stepped(Stepped("lane", (Load(0, 0, 0, ((0, 9),)),), 1, 1.0))
    fit.stepped(Stepped("lane", (Load(0, 0, 0),), 1, 1.0))
    fit.stepped(Stepped("lane", (Load(3, 30, 20),), 1, 0.0))
    assert fit.seen == 0
    fit.stepped(Stepped("lane", (Load(1, 10, 10), Load(3, 30, 20)), 5, 5.0))
    (fact,) = fit.facts.values()
    assert (fact.parts.n, fact.parts.longest, fact.seconds) == (3, 22, 1.0)


@pytest.mark.parametrize(("c", "s"), [(4.0, 1.0), (0.25, 1.0), (1.0, 4.0), (1.0, 0.25)])
@pytest.mark.parametrize("surface", ["unsplit", "padded"])
def test_steps_with_prefill_alone_tell_enough(surface: str, c: float, s: float) -> None:
    """Where a backlog is begun there is hardly a step without; and the price of chunks may be wrong as well."""
    true, told = evolve(affine(surface), per_pair=4e-9), evolve(affine(surface, c, s), per_pair=2e-9)
    fit = SurfaceFit()
    fit.costs(told)
    draw = random.Random(3)
    for _, load in zip(range(200), loads(2), strict=False):
        start = draw.randrange(0, 4096, 512)
        mixed = evolve(load, chunks=((start, start + 512),))
        fit.stepped(Stepped("lane", (mixed,), 1, true.step_seconds(mixed) * math.exp(draw.gauss(0, 0.02))))
    assert error(fit.costs(told), true) < 0.1
    assert fit.correction.prefill == pytest.approx(2.0, rel=0.2)


def test_a_surprise_after_a_long_calm_is_looked_at_soon() -> None:
    true, slower = affine("unsplit"), affine("unsplit", c=2.0, s=2.0, t0=2.0)
    fit = SurfaceFit()
    fit.costs(true)
    feed(fit, true, 3000, noise=0.0)
    feed(fit, slower, 60, seed=5, noise=0.0)
    assert error(fit.costs(true), slower) < 0.1


def test_a_first_step_that_takes_for_ever_is_not_believed() -> None:
    """Kernels are compiled when they are first needed."""
    true = affine("gated")
    fit = SurfaceFit()
    fit.costs(true)
    for number, load in zip(range(40), loads(3), strict=False):
        fit.stepped(Stepped("lane", (load,), 1, true.step_seconds(load) * (500.0 if number == 0 else 1.0)))
    assert error(fit.costs(true), true) < 0.01


def test_it_is_curious_where_nothing_was_seen_of_what_imbalance_costs() -> None:
    told, true = affine("gated", gate=64), affine("balanced")
    fit = SurfaceFit()
    fit.costs(told)
    apart, together = Load(40, 40 * 500, 900), Load(80, 80 * 500, 60_000)
    for _ in range(10):
        fit.stepped(Stepped("lane", (apart,), 1, told.step_seconds(apart)))
    assert fit.curious
    fit.stepped(Stepped("lane", (together,), 1, told.step_seconds(together)))
    assert not fit.curious, "it has just been seen"
    for _ in range(FADE):
        fit.stepped(Stepped("lane", (apart,), 1, told.step_seconds(apart)))
    assert fit.curious, "that was long ago"
    for _ in range(3):
        fit.stepped(Stepped("lane", (together,), 1, true.step_seconds(together)))
    assert fit.costs(told).step_seconds(together) == pytest.approx(true.step_seconds(together), rel=0.05)


def test_a_snapshot_goes_on_as_the_original() -> None:
    true, told = affine("unsplit"), affine("unsplit", 4.0, 0.25)
    fit, other = SurfaceFit(), SurfaceFit()
    fit.costs(told)
    feed(fit, true, 150)
    other.load(json.loads(json.dumps(fit.state())))
    other.costs(told)
    for each in (fit, other):
        feed(each, true, 150, seed=8)
    assert json.dumps(other.state()) == json.dumps(fit.state())
    assert other.correction == fit.correction
    load = Load(100, 50_000, 9000)
    assert other.costs(told).step_seconds(load) == fit.costs(told).step_seconds(load)


@pytest.mark.parametrize("state", [None, {}, {"correction": {}, "facts": {}, "counts": []}, [1]])
def test_a_foreign_state_is_refused(state: object) -> None:
    fit = SurfaceFit()
    with pytest.raises(CallerError, match="SurfaceFit"):
        fit.load(state)  # type: ignore[arg-type]
    assert fit.seen == 0


@pytest.mark.parametrize("surface", SURFACES)
def test_the_published_surface_is_read_off_by_asking(surface: str) -> None:
    told = published_correction(affine(surface))
    assert told.surface == surface
    if surface == "gated":
        assert told.gate == GATE
    if surface in ("gated", "unsplit"):
        assert told.longest == pytest.approx(S, rel=0.01)


@pytest.mark.parametrize("surface", SURFACES)
def test_believed_costs_without_correction_are_the_published_ones(surface: str) -> None:
    true = affine(surface)
    believed = BelievedCosts(true, published_correction(true))
    for _, load in zip(range(50), loads(2), strict=False):
        assert believed.step_seconds(load) == pytest.approx(true.step_seconds(load), rel=0.01)
        assert believed.balanced_seconds(load) == pytest.approx(true.balanced_seconds(load), rel=1e-9)
    load = Load(5, 5000, 3000)
    assert believed.finishing_times(load, 7) == pytest.approx(true.finishing_times(load, 7), rel=0.01)
    assert believed.step_seconds(Load(0, 0, 0)) == 0.0
    chunked = Load(0, 0, 0, ((0, 512),))
    assert believed.step_seconds(chunked) == pytest.approx(true.step_seconds(chunked))


@pytest.mark.parametrize(
    ("other", "unlike"),
    [
        (Correction(longest=1e-6, gate=20.0), False),
        (Correction(1.1, 0.9, 1.1e-6, 21.0, False, 1.1), False),
        (Correction(1.3, longest=1e-6, gate=20.0), True),
        (Correction(even=0.7, longest=1e-6, gate=20.0), True),
        (Correction(longest=2e-6, gate=20.0), True),
        (Correction(longest=1e-6, gate=30.0), True),
        (Correction(longest=1e-6, gate=20.0, prefill=1.3), True),
        (Correction(longest=1e-6, gate=1.0), True),
        (Correction(), True),
        (Correction(padded=True), True),
    ],
)
def test_a_belief_is_unlike_another_where_a_factor_or_the_kind_is(other: Correction, unlike: bool) -> None:
    belief = Correction(longest=1e-6, gate=20.0)
    assert belief.unlike(other) == other.unlike(belief) == unlike


def test_only_a_belief_that_explains_what_is_seen_is_one_to_decide_anew_by() -> None:
    """What is tried after a few strange steps is not, nor is the way back from it."""
    true, draw = affine("unsplit"), random.Random(0)
    fit = SurfaceFit()
    fit.costs(true)
    feed(fit, true, 300, noise=0.0)
    tried = 0
    for number, load in zip(range(200), loads(4), strict=False):
        strange = draw.choice([0.3, 3.0]) if number % 40 < 6 else 1.0
        fit.stepped(Stepped("lane", (load,), 1, true.step_seconds(load) * strange))
        tried += fit.correction.unlike(fit.settled)
    assert tried
    assert not fit.beliefs
    feed(fit, affine("unsplit", c=4.0), 100, noise=0.0)
    assert fit.beliefs
