"""Order among requests: static keys, the bound on being overtaken, and shortest-first as a whole policy."""

from __future__ import annotations

import math

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from alignedsched.cluster import Role
from alignedsched.errors import ConfigError
from alignedsched.policies.fcfs import fcfs
from alignedsched.policies.order import ORDERS, ByArrival, ByRemaining, ByValue, Order, order
from alignedsched.policies.predict import History, NoPrediction, Oracle
from alignedsched.policies.sjf import sjf, sjf_oracle
from alignedsched.request import Request
from alignedsched.sim.build import build
from alignedsched.sim.run import run
from alignedsched.views import from_columns
from alignedsched.workloads import workload

PATIENCE = 20.0


def oracle(**outputs: int) -> Oracle:
    return Oracle(dict(outputs))


@st.composite
def waiting(draw: st.DrawFn) -> tuple[Order, list[Request]]:
    requests = [
        Request(
            f"r{i}",
            draw(st.integers(1, 5000)),
            draw(st.none() | st.integers(1, 4000)),
            arrival=draw(st.floats(0, 500)),
            priority=draw(st.integers(-200, 200)),
            tenant=draw(st.sampled_from([None, "a", "b"])),
            deadline=draw(st.none() | st.floats(0, 600)),
        )
        for i in range(8)
    ]
    known = Oracle({r.id: draw(st.integers(1, 9000)) for r in requests if draw(st.booleans())})
    orders: list[Order] = [
        ByRemaining(known, PATIENCE, 0.05),
        ByValue(known, PATIENCE, 0.05, tenants={"a": 5.0}),
        ByValue(known, PATIENCE, 0.05, per="token"),
        ByRemaining(NoPrediction(), PATIENCE),
    ]
    return draw(st.sampled_from(orders)), requests


@given(waiting())
def test_nobody_is_overtaken_by_who_comes_later_than_the_patience(case: tuple[Order, list[Request]]) -> None:
    made, requests = case
    for early in requests:
        assert early.arrival <= made.rank(early) <= early.arrival + PATIENCE
        for late in requests:
            if late.arrival > early.arrival + PATIENCE:
                assert made.rank(early) < made.rank(late)


@pytest.mark.parametrize("name", ["remaining", "value"])
def test_shorter_goes_first_among_those_of_one_time(name: str) -> None:
    made = order(name, oracle(a=10, b=100, c=20), patience_s=60.0, token_s=0.1)
    requests = [Request(name, 50) for name in "abc"]
    assert [r.id for r in sorted(requests, key=made.rank)] == ["a", "c", "b"]
    limited = Request("b", 50, 5)
    assert made.rank(limited) < made.rank(requests[0]), "it may make 5 tokens at most, whatever is predicted"


def test_what_it_has_made_already_counts() -> None:
    view = from_columns(
        pooled=["a", "b"], pooled_lengths=[600, 600], produced={"a": 490, "b": 1}, free_blocks=100, capacity_blocks=200
    )
    made = ByRemaining(oracle(a=500, b=400))
    assert made.key(view.entry("a")) < made.key(view.entry("b"))
    assert made.rank(Request("a", 50)) > made.rank(Request("b", 50))


def test_worth_by_request_and_by_token() -> None:
    known = oracle(long=1000, short=10)
    long, short = Request("long", 9), Request("short", 9)
    dear = evolve(long, priority=10)
    by_request, by_token = ByValue(known), ByValue(known, per="token")
    assert by_request.rank(short) < by_request.rank(long)
    assert by_request.rank(dear) < by_request.rank(short)
    assert by_token.rank(short) == by_token.rank(long)
    assert by_token.rank(dear) < by_token.rank(short)
    assert by_request.rank(Request("?", 9)) == by_request.patience_s, "nothing is known of it"
    tenants = ByValue(known, tenants={"gold": 4.0})
    assert tenants.rank(evolve(short, tenant="gold")) < tenants.rank(short)


def test_a_deadline_comes_in_time() -> None:
    made = ByValue(oracle(a=100), tpot_s=0.05)
    assert made.rank(Request("a", 9, arrival=50.0, deadline=56.0)) == pytest.approx(56.0 - 5.0)
    assert made.rank(Request("a", 9, arrival=50.0, deadline=500.0)) == made.rank(Request("a", 9, arrival=50.0))
    view = from_columns(pooled=["a"], pooled_lengths=[10], free_blocks=10, capacity_blocks=20)
    late = Request("a", 9, arrival=50.0, deadline=1.0)
    assert made.rank(late) == 50.0, "who is too late overtakes nobody who came before"
    entry = evolve(view.entry("a"), deadline=1.0)
    assert made.key(entry) < made.key(evolve(entry, deadline=None))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: order("random"), "order must be one of arrival, remaining, value"),
        (lambda: ByRemaining(History(), -1.0), "ByRemaining.patience_s"),
        (lambda: ByRemaining(History(), token_s=math.nan), "ByRemaining.token_s"),
        (lambda: ByValue(History(), tenants={"a": 0}), "ByValue.tenants"),
        (lambda: ByValue(History(), per="day"), "ByValue.per"),
    ],
)
def test_bad_options_are_named(make: object, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make()  # type: ignore[operator]


def test_orders_by_name() -> None:
    assert [type(order(name)) for name in ORDERS] == [ByArrival, ByRemaining, ByValue]
    view = from_columns(pooled=["a", "b"], pooled_lengths=[90, 10], free_blocks=10, capacity_blocks=20)
    assert ByArrival().key(view.entry("a")) < ByArrival().key(view.entry("b"))


def test_the_pool_joins_shortest_first() -> None:
    made = sjf_oracle()
    (known,) = made.watches
    assert isinstance(known, Oracle)
    for name, tokens in (("a", 500), ("b", 5), ("c", 50)):
        known.expect(name, tokens)
    view = from_columns(
        pooled=["a", "b", "c"],
        pooled_lengths=[10, 20, 30],
        pooled_on=["host"] * 3,
        host_free_blocks=10,
        free_blocks=50,
        capacity_blocks=100,
        max_members=2,
        role=Role.BOTH,
    )
    assert list(made.batching.compose(view).joins) == ["b", "c"]


def figures(policy: object, topology: str = "colocated", n: int = 600, rate: float = 30.0) -> dict[str, object]:
    built = build("h100", "llama-3.1-8b", topology=topology, lanes=1, surface="balanced", staging=False)
    traffic = workload("azure-conv", seed=5, n=n).scaled(rate)
    made = run(traffic, built.cluster, built.costs, policy).figures  # type: ignore[arg-type]
    return {**made, "wall_s": 0.0, "policy": ""}


@pytest.mark.parametrize("topology", ["colocated", "disaggregated"])
def test_without_patience_it_is_plain_continuous_batching(topology: str) -> None:
    assert figures(sjf(patience_s=0.0), topology) == figures(fcfs(), topology)


def test_knowing_outputs_lowers_the_mean_and_guessing_them_does_little_harm() -> None:
    """Prompt lengths say little of the outputs of chat: history alone gains nothing there that could be promised."""

    def mean(made: dict[str, object]) -> float:
        return made["latency_s"]["e2e"]["mean"]  # type: ignore[index,no-any-return]

    plain, learnt, told = (mean(figures(made, n=1500, rate=8.0)) for made in (fcfs(), sjf(), sjf_oracle()))
    assert told < 0.95 * plain
    assert told < learnt < 1.05 * plain
