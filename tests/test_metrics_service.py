"""The longest prompts apart, and requests that met their objectives."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignedsched.errors import ConfigError
from alignedsched.metrics import LatencyCollector, Objectives, goodput, longest_prompts, met
from alignedsched.registry import policy
from alignedsched.sim.build import build
from alignedsched.sim.run import RunResult, run
from alignedsched.workloads import Workload


def served(prompts: list[int], outputs: list[int]) -> RunResult:
    built = build("h100", "llama-3.1-8b", topology="colocated", lanes=1, surface="gated", staging=True)
    return run(
        Workload("made up", np.zeros(len(prompts)), prompts, outputs), built.cluster, built.costs, policy("fcfs")
    )


def test_the_collector_keeps_prompts_beside_tokens() -> None:
    columns = served([300, 20, 7000], [2, 40, 9]).latency.finished_columns()
    assert sorted(zip(columns["prompt"].tolist(), columns["tokens"].tolist(), strict=True)) == [
        (20, 40),
        (300, 2),
        (7000, 9),
    ]


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=60), st.sampled_from([0.02, 0.1, 0.5]))
def test_the_longest_prompts_are_a_share_and_longer_than_the_rest(prompts: list[int], share: float) -> None:
    result = served(prompts, [2] * len(prompts))
    chosen, all_prompts = longest_prompts(result.latency, share), result.latency.finished_columns()["prompt"]
    assert chosen.sum() == max(1, round(share * len(prompts)))
    assert all_prompts[chosen].min() >= all_prompts[~chosen].max(initial=0)


def test_objectives_are_met_by_those_who_kept_both() -> None:
    latency = served([2000] * 40, [1, 50] * 20).latency
    figures, columns = latency.figures(), latency.finished_columns()
    ttft, tpot = float(np.median(figures["ttft"])), float(np.median(figures["tpot"]))
    expected = [
        first - arrival <= ttft and (tokens == 1 or (last - first) / (tokens - 1) <= tpot)
        for arrival, first, last, tokens in zip(
            *(columns[name] for name in ("arrival", "first", "last", "tokens")), strict=True
        )
    ]
    kept = met(latency, Objectives(ttft, tpot))
    assert kept.tolist() == expected
    assert 0 < kept.sum() < 40
    assert goodput(latency, Objectives(ttft, tpot), 5.0) == pytest.approx(kept.sum() / 5.0)
    assert goodput(latency, Objectives(1e9, 1e9), 0.0) == 0.0


def test_nothing_finished_means_nothing_met() -> None:
    nobody = LatencyCollector()
    assert not longest_prompts(nobody).size
    assert not met(nobody, Objectives(1.0, 1.0)).size


@pytest.mark.parametrize("value", ["1", True, None, 0, 0.0, -1.0, float("nan"), float("inf"), 10**400])
def test_objectives_are_finite_seconds(value: object) -> None:
    with pytest.raises(ConfigError, match="Objectives: tpot_s must be finite seconds above 0, got "):
        Objectives(1.0, value)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="Objectives: ttft_s must be finite seconds above 0, got "):
        Objectives(value, 1.0)  # type: ignore[arg-type]
    assert Objectives(1, np.float64(0.5)) == Objectives(1.0, 0.5)
