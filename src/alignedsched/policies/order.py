"""Order among requests, apart from who runs together: whose turn it is when not all can run.

Every order is a key that does not change while a request waits, smaller first: the request's arrival plus a *head
start* that others get on it, in seconds. Waiting lowers all keys alike relative to later arrivals, so ageing needs no
clock, and nobody waits for ever: a request is overtaken only by those that come at most ``patience_s`` seconds after
it. (The head start as a function of size is that of "least attained slack" rules; by Smith's rule, Naval Research
Logistics Quarterly 3, 1956, what is short or worth much goes first.)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from attrs import field, frozen

from ..errors import ConfigError
from ..outside import is_number, show
from ..request import Request
from ..views import Entry
from .admission import ArrivalOrder
from .options import number, one_of
from .predict import NoPrediction, Predictor

ORDERS = ("arrival", "remaining", "value")


class Order(Protocol):
    """A key for every request that waits; smaller first, equal ones by arrival number."""

    def rank(self, request: Request) -> float:
        """The key of a request that queues for prefill."""
        ...

    def key(self, entry: Entry) -> float:
        """The key of a prefilled one."""
        ...


@frozen
class ByArrival:
    """First come, first served."""

    def rank(self, request: Request) -> float:
        return 0.0

    def key(self, entry: Entry) -> float:
        return float(entry.order)


@frozen
class ByRemaining:
    """Shortest expected remaining first: each expected token gives others ``token_s`` seconds of head start.

    At most ``patience_s``, also where the predictor has no idea. O(1) beside the prediction.
    """

    predictor: Predictor
    patience_s: float = field(default=60.0, validator=number(0.0))
    token_s: float = field(default=0.1, validator=number(0.0))

    def rank(self, request: Request) -> float:
        left = self.predictor.remaining(request.id, request.prompt_tokens, 0, request.kind)
        return request.arrival + self._head_start(left, request.output_limit)

    def key(self, entry: Entry) -> float:
        prompt = entry.context_length - entry.produced
        left = self.predictor.remaining(entry.id, prompt, entry.produced, entry.kind)
        return entry.arrival + self._head_start(left, entry.tokens_left)

    def _head_start(self, left: float | None, limit: int | None) -> float:
        if left is None or (limit is not None and limit < left):
            left = limit
        return self.patience_s if left is None else min(self.patience_s, self.token_s * left)


def _worths(instance: object, attribute: object, value: object) -> None:
    if not isinstance(value, Mapping) or not all(is_number(worth, 1e-9) for worth in value.values()):
        raise ConfigError(f"ByValue.tenants must map tenants to numbers above 0, got {show(value)}")


@frozen
class ByValue:
    """What is worth most for the work it takes first, and deadlines in time.

    A request's worth is ``priority_base ** priority`` times its tenant's weight (1 where not named). With
    ``per="request"`` a finished request is worth that whatever its length, so others get a head start of ``token_s``
    seconds for each expected token divided by the worth; with ``per="token"`` (token goodput) every token is, so
    length does not matter and the head start is ``patience_s`` divided by worth + 1. Never more than ``patience_s``. A
    request with a deadline goes no later than its latest start: the deadline less ``tpot_s`` for each expected token.
    Where that is over it goes by its arrival, for nobody overtakes whoever came before it for being late.
    """

    predictor: Predictor
    patience_s: float = field(default=60.0, validator=number(0.0))
    token_s: float = field(default=0.1, validator=number(0.0))
    tpot_s: float = field(default=0.05, validator=number(0.0))
    priority_base: float = field(default=2.0, validator=number(1.0, 1e3))
    tenants: Mapping[str, float] = field(factory=dict, validator=_worths)
    per: str = field(default="request", validator=one_of(("request", "token")))

    def rank(self, request: Request) -> float:
        left = self.predictor.remaining(request.id, request.prompt_tokens, 0, request.kind)
        return self._key(
            request.arrival, left, request.output_limit, request.priority, request.tenant, request.deadline
        )

    def key(self, entry: Entry) -> float:
        prompt = entry.context_length - entry.produced
        left = self.predictor.remaining(entry.id, prompt, entry.produced, entry.kind)
        return self._key(entry.arrival, left, entry.tokens_left, entry.priority, entry.tenant, entry.deadline)

    def _key(
        self,
        arrival: float,
        left: float | None,
        limit: int | None,
        priority: int,
        tenant: str | None,
        deadline: float | None,
    ) -> float:
        if left is None or (limit is not None and limit < left):
            left = limit
        worth = self.priority_base ** max(-64, min(64, priority)) * self.tenants.get(tenant or "", 1.0)
        if self.per == "token":
            key = arrival + self.patience_s / (1.0 + worth)
        else:
            head = self.patience_s if left is None else self.token_s * left / worth
            key = arrival + min(self.patience_s, head)
        return key if deadline is None else max(arrival, min(key, deadline - self.tpot_s * (left or 0.0)))


@frozen
class OrderedAdmission(ArrivalOrder):
    """Prefill in an order of its own (``by_priority`` is not looked at); otherwise as ArrivalOrder."""

    order: Order = field(factory=ByArrival)

    def rank(self, request: Request) -> float:
        """The order's key."""
        return self.order.rank(request)


def order(name: str, predictor: Predictor | None = None, *, patience_s: float = 60.0, token_s: float = 0.1) -> Order:
    """An order by name. Raises ConfigError for an unknown name, or an option out of range."""
    if name not in ORDERS:
        raise ConfigError(f"order must be one of {', '.join(ORDERS)}, got {show(name)}")
    known = predictor or NoPrediction()
    if name == "remaining":
        return ByRemaining(known, patience_s, token_s)
    return ByValue(known, patience_s, token_s) if name == "value" else ByArrival()
