"""Residual life: what the running history says, against the empirical residual life of what it was told."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignedsched.errors import CallerError, ConfigError
from alignedsched.policies.predict import (
    BINS,
    CLASSES_AT_MOST,
    COLD_TOKENS,
    EDGES,
    HALF_LIFE,
    PREDICTORS,
    History,
    Lives,
    NoPrediction,
    Oracle,
    predictor,
)
from alignedsched.request import Request

ENDS = st.lists(st.integers(1, 40_000), min_size=1, max_size=60)


def end(history: History, output: int, prompt: int = 100, kind: str | None = None, finished: bool = True) -> None:
    history.ended(Request("r", prompt, kind=kind), output, finished)


def told(outputs: list[int]) -> History:
    history = History()
    for output in outputs:
        end(history, output)
    return history


DISTRIBUTIONS: dict[str, Callable[[random.Random], int]] = {
    "short": lambda r: r.randint(1, 12),
    "even": lambda r: r.randint(1, 600),
    "exponential": lambda r: 1 + int(r.expovariate(1 / 300)),
    "heavy-tailed": lambda r: min(100_000, int(50 * r.paretovariate(1.3))),
    "two kinds": lambda r: int(r.lognormvariate(4, 0.4)) + 1 if r.random() < 0.9 else int(r.lognormvariate(8, 0.6)),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("quantile", [None, 0.5, 0.9])
def test_it_tells_the_residual_life_of_what_it_saw(name: str, quantile: float | None) -> None:
    """Within a tenth (or a bin's width) of the empirical one, wherever enough lived so long."""
    draw = random.Random(5)
    outputs = sorted(DISTRIBUTIONS[name](draw) for _ in range(2000))
    shuffled = outputs[:]
    draw.shuffle(shuffled)
    history = told(shuffled)
    asked = 0
    for produced in (0, 1, 5, 20, 100, 400, 1500, 5000):
        rest = [output - produced for output in outputs if output > produced]
        if len(rest) < 300:
            continue
        asked += 1
        true = sum(rest) / len(rest) if quantile is None else rest[math.ceil(quantile * len(rest)) - 1]
        answer = history.remaining("x", 100, produced, quantile=quantile)
        assert answer == pytest.approx(true, rel=0.15, abs=2.0), f"after {produced}"
    assert asked >= 2


@given(ENDS, st.integers(0, 50_000))
def test_answers_are_sane_and_quantiles_rise(outputs: list[int], produced: int) -> None:
    history = told(outputs)
    mean = history.remaining("x", 100, produced)
    assert mean is not None
    assert 1 <= mean <= max(COLD_TOKENS, produced, *outputs)
    quantiles = [history.remaining("x", 100, produced, quantile=q / 20) or 0.0 for q in range(1, 20)]
    assert quantiles == sorted(quantiles)
    assert quantiles[0] >= 1


@given(ENDS)
def test_survival_falls_from_one_to_nothing(outputs: list[int]) -> None:
    lives = Lives()
    for number, output in enumerate(outputs):
        lives.add(output, number % 3 > 0)
    alive = lives._tables()
    assert alive[0] == 1.0
    assert alive == sorted(alive, reverse=True)
    assert alive[-1] == 0.0
    assert lives.residual(EDGES[-1] + 5, None) == (0.0, 0.0)


@given(ENDS, ENDS)
def test_a_snapshot_goes_on_as_the_original(before: list[int], after: list[int]) -> None:
    history, other = told(before), History()
    other.load(json.loads(json.dumps(history.state())))
    for output in after:
        end(history, output)
        end(other, output)
    assert other.state() == history.state()
    assert [other.remaining("x", 100, k) for k in (0, 10, 500)] == [
        history.remaining("x", 100, k) for k in (0, 10, 500)
    ]


def test_cold_it_expects_the_default_and_then_as_much_again() -> None:
    assert History().remaining("x", 100, 0) == COLD_TOKENS
    assert History().remaining("x", 100, 5000, quantile=0.9) == 5000
    short = told([10] * 500)
    assert short.remaining("x", 100, 0) == pytest.approx(10, abs=2)
    assert short.remaining("x", 100, 5000) == 5000, "beyond everything seen it knows nothing"


def test_a_class_of_its_own_is_learnt_and_others_borrow_from_all() -> None:
    history = History()
    for _ in range(400):
        end(history, 20, prompt=100)
        end(history, 2000, prompt=3000)
        end(history, 500, prompt=100, kind="adapter")
    assert history.remaining("x", 120, 0) == pytest.approx(20, rel=0.6)
    assert history.remaining("x", 2500, 0) == pytest.approx(2000, rel=0.1)
    assert history.remaining("x", 100, 0, "adapter") == pytest.approx(500, rel=0.1)
    assert history.remaining("x", 50_000, 0) == pytest.approx(840, rel=0.1), "an unseen class: the mean of all"


def test_old_ends_fade() -> None:
    history = told([1000] * HALF_LIFE + [10] * (4 * HALF_LIFE))
    answer = history.remaining("x", 100, 0)
    assert answer is not None
    assert answer < 10 + 0.05 * 1000 + 5
    assert len(json.dumps(history.state())) < 1000


def test_weights_never_run_away() -> None:
    lives = Lives()
    lives.weight = 2.0**199
    for _ in range(2 * HALF_LIFE):
        lives.add(50, True)
    assert lives.weight < 2.0**199
    assert lives.residual(0, None)[0] == pytest.approx(50, abs=3)


def test_censored_ends_lengthen_the_answer() -> None:
    """Half are cut off by a limit at 50 tokens: those that were not say what comes after."""
    draw = random.Random(3)
    history, blind = History(), History()
    outputs = [draw.randint(1, 199) for _ in range(3000)]
    for output in outputs:
        limit = 50 if draw.random() < 0.5 else None
        made = output if limit is None else min(output, limit)
        history.ended(Request("r", 100, limit), made, True)
        blind.ended(Request("r", 100), made, True)
    assert history.remaining("x", 100, 0) == pytest.approx(100, rel=0.1)
    assert (blind.remaining("x", 100, 0) or 0) < 80
    history.ended(Request("r", 100), 0, False)  # cancelled before it made anything
    assert history.remaining("x", 100, 0) == pytest.approx(100, rel=0.1)


def test_if_all_are_censored_the_longest_ends_it() -> None:
    history = History()
    for _ in range(200):
        end(history, 64, finished=False)
    assert history.remaining("x", 100, 0) == pytest.approx(64, rel=0.2)


def test_classes_are_bounded() -> None:
    history = History()
    for number in range(2 * CLASSES_AT_MOST):
        end(history, 30, kind=f"k{number}")
    state = history.state()
    assert isinstance(state, dict)
    assert isinstance(classes := state["classes"], dict)
    assert len(classes) == CLASSES_AT_MOST
    assert history.remaining("x", 100, 0, "k999") == pytest.approx(30, rel=0.3)


@pytest.mark.parametrize("quantile", [0.0, 1.0, -1.0, math.nan])
def test_a_bad_quantile_is_named(quantile: float) -> None:
    with pytest.raises(CallerError, match="quantile must be between 0 and 1"):
        History().remaining("x", 1, 0, quantile=quantile)


@pytest.mark.parametrize(
    "state", [None, {}, {"all": {}, "classes": {}}, {"all": {"finished": {"9999": 1}, "censored": {}, "weight": 1}}]
)
def test_a_foreign_state_is_refused_and_nothing_changes(state: object) -> None:
    history = told([5, 6])
    kept = history.state()
    with pytest.raises(CallerError, match="History"):
        history.load(state)  # type: ignore[arg-type]
    assert history.state() == kept


def test_the_oracle_knows_and_nobody_else_has_to() -> None:
    oracle = Oracle()
    oracle.expect("a", 30)
    assert oracle.remaining("a", 1, 10) == 20
    assert oracle.remaining("a", 1, 30) == 1
    assert oracle.remaining("b", 1, 0) is None
    assert NoPrediction().remaining("a", 1, 0) is None
    other = Oracle()
    other.load(json.loads(json.dumps(oracle.state())))
    oracle.ended(Request("a", 1), 30, True)
    assert oracle.remaining("a", 1, 0) is None
    assert other.remaining("a", 1, 0) == 30
    with pytest.raises(CallerError, match="Oracle"):
        other.load({"a": 0})


def test_predictors_by_name() -> None:
    assert [type(predictor(name)) for name in PREDICTORS] == [NoPrediction, History, Oracle]
    with pytest.raises(ConfigError, match="one of none, history, oracle"):
        predictor("crystal ball")


def tables(lives: Lives) -> tuple[list[float], list[float], list[float]]:
    """Survival, expected tokens ahead, and ends at risk, bin by bin as they are defined."""
    alive, risk, ahead = [1.0] * (BINS + 1), [0.0] * (BINS + 1), [0.0] * (BINS + 1)
    for b in range(BINS - 1, -1, -1):
        risk[b] = risk[b + 1] + lives.finished[b] + lives.censored[b]
    for b in range(BINS):
        left = risk[b] - lives.finished[b] if risk[b + 1] > 0 else 0.0
        alive[b + 1] = alive[b] * (left / risk[b]) if risk[b] > 0 else alive[b]
    for b in range(BINS - 2, -1, -1):
        width = EDGES[b + 1] - EDGES[b]
        ahead[b] = ahead[b + 1] + width * alive[b] - (alive[b] - alive[b + 1]) * (width - 1) / 2
    return alive, ahead, [r / lives.weight for r in risk]


@given(ends=st.lists(st.tuples(st.integers(1, 1 << 22) | st.integers(1, 300), st.booleans()), min_size=1, max_size=40))
def test_what_is_left_out_behind_the_longest_life_changes_no_bit(ends: list[tuple[int, bool]]) -> None:
    lives = Lives()
    for produced, finished in ends:
        lives.add(produced, finished)
    alive = lives._tables()
    assert (alive, lives._ahead, lives._risk) == tables(lives)
