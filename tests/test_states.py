"""The tables of legal states are well formed, enforced, and drawn in docs/states.md as they stand."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from pathlib import Path

import pytest

from alignedsched.errors import InvariantError
from alignedsched.states import (
    COPY_TRANSITIONS,
    ORDER_TRANSITIONS,
    REQUEST_TRANSITIONS,
    CopyState,
    OrderState,
    RequestState,
    check_transition,
)
from benchmarks.states_page import TABLES, diagram, page

ROOT = Path(__file__).resolve().parent.parent
Table = Mapping[enum.Enum, frozenset[enum.Enum]]
CASES: list[tuple[type[enum.Enum], Table, enum.Enum, set[enum.Enum]]] = [
    (RequestState, REQUEST_TRANSITIONS, RequestState.QUEUED, {RequestState.ENDED}),  # type: ignore[list-item]
    (CopyState, COPY_TRANSITIONS, CopyState.FLYING, {CopyState.DONE, CopyState.FAILED}),  # type: ignore[list-item]
    (OrderState, ORDER_TRANSITIONS, OrderState.ISSUED, {OrderState.REPLACED}),  # type: ignore[list-item]
]


def reachable(table: Table, start: enum.Enum) -> set[enum.Enum]:
    seen: set[enum.Enum] = set()
    ahead = [start]
    while ahead:
        state = ahead.pop()
        if state not in seen:
            seen.add(state)
            ahead += table[state]
    return seen


@pytest.mark.parametrize(("states", "table", "start", "final"), CASES, ids=lambda case: getattr(case, "__name__", ""))
def test_tables_are_well_formed(states: type[enum.Enum], table: Table, start: enum.Enum, final: set[enum.Enum]) -> None:
    assert set(table) == set(states), "every state has its row"
    assert reachable(table, start) == set(states), "every state is reached from the first"
    assert {state for state in states if not table[state]} == final, "exactly the last states have no way out"
    for state in states:
        assert state not in table[state], "staying is no transition"
        assert reachable(table, state) & final, f"{state} never ends"


@pytest.mark.parametrize("old", RequestState)
@pytest.mark.parametrize("new", RequestState)
def test_what_the_table_does_not_list_is_refused_by_name(old: RequestState, new: RequestState) -> None:
    if new in REQUEST_TRANSITIONS[old]:
        check_transition("r", old, new)
        return
    with pytest.raises(InvariantError, match=rf"legal_transition.*'r'.*from {old.value} to {new.value}"):
        check_transition("r", old, new)


def test_tables_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        REQUEST_TRANSITIONS[RequestState.ENDED] = frozenset(RequestState)  # type: ignore[index]


def test_the_page_of_states_is_up_to_date() -> None:
    text = (ROOT / "docs" / "states.md").read_text(encoding="utf-8")
    assert text == page(), "write it again with: python -m benchmarks.states_page"


@pytest.mark.parametrize("name", TABLES)
def test_diagrams_show_every_transition_and_no_other(name: str) -> None:
    table = TABLES[name]
    drawn = {tuple(line.split(" --> ")) for line in map(str.strip, diagram(table).splitlines()) if " --> " in line}
    wanted = {(old.value, new.value) for old, following in table.items() for new in following}
    assert {pair for pair in drawn if "[*]" not in pair} == wanted
    assert {pair[0] for pair in drawn if pair[1] == "[*]"} == {s.value for s in table if not table[s]}
    assert [pair for pair in drawn if pair[0] == "[*]"] == [("[*]", next(iter(table)).value)]
