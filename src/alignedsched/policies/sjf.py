"""``sjf``: continuous batching in order of what is expected to remain, shortest first; a baseline.

Shortest remaining processing time first is optimal for mean response time on one server with known sizes and
preemption (Schrage, Operations Research 16, 1968). Here nobody who runs is preempted for being long; the order
decides who is prefilled, and who joins, next. Outputs are predicted from history (learned shortest-first schedulers
for LLMs rank by a prediction too: Fu et al., arXiv 2408.15792) or told by an oracle, for studies. Ageing as in
``order``: with ``patience_s`` 0 everything goes as in ``fcfs``.
"""

from __future__ import annotations

from collections.abc import Iterable

from attrs import field, frozen

from ..request import RequestId
from ..views import LaneView
from .fcfs import ContinuousBatching
from .order import ByArrival, ByRemaining, Order, OrderedAdmission
from .predict import predictor as predictor_named
from .protocols import Policy
from .residency import DirectResidency


@frozen
class OrderedBatching(ContinuousBatching):
    """Everything that fits decodes, in an order of its own. O(n log n) in the pool's requests, each call."""

    order: Order = field(factory=ByArrival)

    def _in_turn(self, view: LaneView) -> Iterable[RequestId]:
        entries = map(view.entry, view.pool.by_order())
        keys = sorted((self.order.key(entry), entry.order, entry.id) for entry in entries)
        return (request for _, _, request in keys)


def sjf(
    *,
    predictor: str = "history",
    patience_s: float = 60.0,
    token_s: float = 0.1,
    swap: bool = False,
    token_budget: int | None = None,
) -> Policy:
    """Shortest expected remaining first, as a whole policy.

    ``predictor``: "history" or "oracle" (the simulator tells it the outputs), or "none" (limits alone). ``patience_s``
    and ``token_s`` as in ``ByRemaining``, the rest as in ``fcfs``.
    """
    known = predictor_named(predictor)
    order = ByRemaining(known, patience_s, token_s)
    return Policy(
        "sjf",
        OrderedAdmission(token_budget=token_budget, order=order),
        OrderedBatching(swap=swap, order=order),
        DirectResidency(to_host="short" if swap else "never"),
        watches=(known,),
    )


def sjf_oracle(
    *, patience_s: float = 60.0, token_s: float = 0.1, swap: bool = False, token_budget: int | None = None
) -> Policy:
    """``sjf`` that is told all outputs: what a perfect prediction would give."""
    return sjf(predictor="oracle", patience_s=patience_s, token_s=token_s, swap=swap, token_budget=token_budget)
