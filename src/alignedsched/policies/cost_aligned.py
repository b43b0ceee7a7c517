"""``cost_aligned``: continuous batching that aligns exactly when the cost surface pays for it; the default.

Two moves, each asked of the surface in closed form, and each absent where it would not pay:

* *rounds*: what lies in the device decodes in groups of similar length, one after the other, where a round of group
  steps is shorter than as many common steps (``rounds``);
* *sorted waves*: a backlog that does not fit is admitted by ascending length instead of by arrival (``sorted_waves``),
  where the gate finds that faster (``backlog_order``, ``gate``); and the few who run and are far too long for the wave
  sit out while it goes by, where there is room (``setting_aside``).

With neither, every decision is that of ``fcfs``, step for step. Lanes of several ranks run together, their ranks kept
even: by who goes where (``rank_balance``, ``rank_residency``), and by members that go over from rank to rank where
the steps to come are shorter by more than that costs (``rank_moves``, ``rank_migration``).
"""

from __future__ import annotations

from attrs import evolve

from ..load import Costs
from .aligned_batching import CostAligned
from .backlog_order import BacklogOrder, GateSettings
from .fcfs import ContinuousBatching
from .mean_output import Expected, MeanOutput
from .options import a_kind, flag, number
from .order import order as order_named
from .predict import History
from .predict import predictor as predictor_named
from .prefill_lead import PrefillLead
from .protocols import Policy, Watch
from .rank_balance import RankOrder
from .rank_migration import Migration
from .rank_residency import RankResidency
from .rounds import WAIT_S, RoundSettings
from .sjf import OrderedBatching
from .surface_fit import SurfaceFit
from .wave_admission import WaveAdmission

NAME = "cost_aligned"


def cost_aligned(
    *,
    wait_s: float | None = WAIT_S,
    token_budget: int | None = None,
    by_priority: bool = False,
    tpot_target_s: float | None = None,
    order: str = "arrival",
    predictor: str = "history",
    patience_s: float = 60.0,
    costs: Costs | None = None,
    refit: bool = True,
    rounds: RoundSettings | None = None,
    gate: GateSettings | None = None,
) -> Policy:
    """The policy, whole. No option has to be set: the defaults hold on every surface.

    ``wait_s`` bounds how long rounds keep a request waiting that has begun (seconds). ``tpot_target_s`` (seconds a
    token): nobody is kept waiting for longer than a few times that, but where common steps miss the target and rounds
    make everybody's tokens come faster; and where prefill is apart, it stays just ahead of decode: who would wait for
    its second token waits for its first instead.
    ``order`` says who goes first where requests do not go in waves: by "arrival" ("priority" first with
    ``by_priority``), by what is expected to be "remaining" as ``predictor`` ("history", "oracle" in studies) has it, or
    by "value"; nobody is overtaken by who comes more than ``patience_s`` later. ``token_budget`` is that of ``fcfs``.
    ``costs`` is the surface to decide by where the executor publishes none; with ``refit`` it is corrected by what
    steps are reported to take. ``rounds`` and ``gate`` are settings of the moves; ``wait_s`` and ``tpot_target_s`` go
    before those of ``rounds`` where they are not the defaults. Raises ConfigError naming the option that is out of
    range.
    """
    number(0.0)(NAME, "patience_s", patience_s)
    flag()(NAME, "refit", refit)
    a_kind(RoundSettings, none=True)(NAME, "rounds", rounds)
    a_kind(GateSettings, none=True)(NAME, "gate", gate)
    a_kind(Costs, none=True)(NAME, "costs", costs)
    history, outputs, fit = History(), MeanOutput(), SurfaceFit() if refit else None
    known = history if predictor == "history" else predictor_named(predictor)
    turns = order_named(order, known, patience_s=patience_s)
    settings = rounds or RoundSettings()
    if wait_s != WAIT_S:
        settings = evolve(settings, wait_s=wait_s)
    if tpot_target_s is not None:
        settings = evolve(settings, tpot_target_s=tpot_target_s)
    plain = ContinuousBatching() if order == "arrival" else OrderedBatching(order=turns)
    lead = PrefillLead(bounded=settings.tpot_target_s is not None)
    backlog = BacklogOrder(settings, gate or GateSettings(), Expected(history, outputs), lead)
    batching = CostAligned(settings, backlog, costs, fit, plain, Migration(known))
    placed = RankOrder(token_budget, by_priority)
    admission = WaveAdmission(token_budget, by_priority, batching=batching, placed=placed, order=turns, lead=lead)
    watches: list[Watch] = [
        history,
        outputs,
        placed,
        *([] if known is history else [known]),
        *([] if fit is None else [fit]),
    ]
    return Policy(NAME, admission, batching, RankResidency(batching), watches=tuple(watches))
