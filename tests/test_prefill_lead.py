"""How far prefill goes ahead of decode with a target for the time per token, and what is said of who waits for it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from alignedsched.cluster import Role
from alignedsched.policies.cost_aligned import cost_aligned
from alignedsched.policies.prefill_lead import SHARE, PrefillLead
from alignedsched.policies.wave_admission import WaveAdmission
from alignedsched.views import LaneView, from_columns

ahead_of = st.lists(st.integers(1, 3000), max_size=40)


def view_of(ahead: list[int], role: Role = Role.PREFILL, queued: int = 1, blocks: int = 30_000) -> LaneView:
    """A device with these requests prefilled and not taken."""
    return from_columns(
        pooled=[f"a{at}" for at in range(len(ahead))], pooled_lengths=ahead, queued=[f"q{at}" for at in range(queued)],
        queued_prompts=[500] * queued, free_blocks=blocks * 2 // 3, capacity_blocks=blocks, role=role,
    )  # fmt: skip


def admission(target: float | None) -> WaveAdmission:
    made = cost_aligned(tpot_target_s=target).admission
    assert isinstance(made, WaveAdmission)
    return made


@given(ahead=ahead_of)
def test_there_is_no_bound_without_a_target_and_none_where_lanes_decode(ahead: list[int]) -> None:
    assert PrefillLead().blocks(view_of(ahead)) is None
    assert PrefillLead(bounded=True).blocks(view_of(ahead, Role.BOTH)) is None


@given(ahead=ahead_of, more=st.integers(1, 3000))
def test_the_more_is_ahead_the_less_may_begin(ahead: list[int], more: int) -> None:
    lead = PrefillLead(bounded=True)
    before, after = lead.blocks(view_of(ahead)), lead.blocks(view_of([*ahead, more]))
    assert before is not None
    assert after is not None
    assert after < before or before == after == 0


def test_one_is_always_begun_and_few_are_enough() -> None:
    view, lead = view_of([]), PrefillLead(bounded=True)
    nothing_ahead = lead.blocks(view)
    assert nothing_ahead is not None
    assert nothing_ahead >= view.layout.blocks(view.cluster.max_positions)
    seats = next(lane.max_members for lane in view.cluster.lanes if view.cluster.role(lane).decodes)
    assert lead.blocks(view_of([10] * int(SHARE * seats))) == 0


@given(ahead=st.lists(st.integers(1, 300), min_size=1, max_size=12))
def test_what_begins_is_within_the_bound(ahead: list[int]) -> None:
    view = view_of(ahead, queued=80, blocks=3000)
    bound = PrefillLead(bounded=True).blocks(view)
    begun, unbounded = (
        sum(view.layout.blocks(take.tokens + 1) for take in admission(target).admit(view)) for target in (0.05, None)
    )
    assert bound is not None
    assert bound - view.layout.blocks(501) < begun <= bound < unbounded


def test_who_waits_for_it_is_told_so() -> None:
    view = view_of([3000] * 32)
    (first,) = view.queue
    reason = admission(0.05).held_back(view, first, 0)
    assert reason is not None
    assert reason.text.startswith("prefill stays just ahead of decode")
    assert reason.figure == 32
    assert admission(None).held_back(view, first, 0) is None
