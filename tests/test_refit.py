"""Of a maximum only the larger part is seen: what the fit makes of a part that facts do no more than bound."""

from __future__ import annotations

import pytest
from attrs import evolve

from alignedsched.costs import AffineCosts, Load
from alignedsched.policies.protocols import Stepped
from alignedsched.policies.surface_fit import SurfaceFit

TRUE = AffineCosts(6e-3, 1e-6, 4.4e-8, 16 * 4.4e-8, "unsplit")
LONGEST = (9000, 12_000, 17_000, 23_000, 31_000, 40_000)


def believed(told: AffineCosts, share: float) -> SurfaceFit:
    """After steps in which all members together are at most ``share`` of what would bind."""
    fit = SurfaceFit()
    fit.costs(told)
    for round_ in range(20):
        for longest in LONGEST:
            total = int(share * 16 * longest * (1 - 0.02 * round_))
            load = Load(40 + round_, total, longest)
            fit.stepped(Stepped("lane", (load,), 1, TRUE.step_seconds(load)))
    return fit


def test_attention_that_is_only_bounded_is_believed_to_cost_less_than_the_bound() -> None:
    """Four times too much is told; the steps say that it is at most 1 / 0.7 of what is true."""
    fit = believed(evolve(TRUE, per_token=4 * TRUE.per_token), 0.7)
    bound = 0.25 / 0.7
    assert fit.correction.even == pytest.approx(bound**1.5, rel=0.1)
    assert fit.correction.longest == pytest.approx(TRUE.longest_per_token, rel=0.02)


def test_the_longest_members_time_that_is_only_bounded_is_believed_to_be_less_than_the_bound() -> None:
    """All members together take twice what the longest does, and eight times as much is told of that."""
    fit = believed(evolve(TRUE, longest_per_token=8 * TRUE.longest_per_token), 2.0)
    assert fit.correction.longest < 1.6 * TRUE.longest_per_token  # the bound is twice as much
    assert fit.correction.even == pytest.approx(1.0, rel=0.02)


@pytest.mark.parametrize("share", [0.3, 0.7, 2.0])
def test_a_right_surface_is_not_moved_for_want_of_evidence(share: float) -> None:
    fit = believed(TRUE, share)
    assert fit.costs(TRUE) is TRUE


def test_a_small_correction_is_left_where_the_facts_put_it() -> None:
    """A bound close to what was published is no reason to doubt that."""
    fit = believed(evolve(TRUE, per_token=1.1 * TRUE.per_token), 0.98)
    assert fit.correction.even == pytest.approx(1 / 1.1, rel=0.05)
