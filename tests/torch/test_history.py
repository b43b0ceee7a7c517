"""Each request takes what its row made, once and in order, whenever it asks; blocks that nobody needs go."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from alignedsched_torch import history
from alignedsched_torch.history import History

SLOTS = 5
ACTIONS = st.lists(
    st.tuples(st.sampled_from(["step", "step", "begin", "end", "take"]), st.integers(0, SLOTS - 1)), min_size=20
)


@given(ACTIONS, st.integers(0, 1000), st.integers(1, 4))
def test_every_token_is_taken_once_and_in_order(actions: list[tuple[str, int]], step: int, lines: int) -> None:
    whole, history.LINES = history.LINES, lines
    try:
        made = History(SLOTS)
        begun: dict[int, list[int]] = {}  # slot -> what it made and nobody took
        for action, slot in actions:
            if action == "step":
                slots = np.array(sorted(begun), dtype=np.int64)
                tokens = step * SLOTS + slots
                made.write(step, slots, tokens)
                for one, token in zip(slots.tolist(), tokens.tolist(), strict=True):
                    begun[one].append(token)
                step += 1
            elif action == "begin" and slot not in begun:
                made.begin(slot, step)
                begun[slot] = []
            elif action == "end":
                made.end(slot)
                begun.pop(slot, None)
            elif action == "take":
                assert made.take(slot) == begun.get(slot, [])
                begun.update({slot: []} if slot in begun else {})
        for slot in range(SLOTS):
            assert made.take(slot) == begun.get(slot, [])
    finally:
        history.LINES = whole


def test_blocks_that_everybody_has_taken_go() -> None:
    made, slots = History(2), np.array([0, 1], dtype=np.int64)
    made.begin(0, 0)
    made.begin(1, 0)
    for step in range(10 * history.LINES):
        made.write(step, slots, np.array([step, -step], dtype=np.int64))
        if step % history.LINES == 7:
            assert len(made.take(0)) in (8, history.LINES)
        if step == 5 * history.LINES:
            assert len(made._blocks) == 6, "the second row has taken nothing"
            assert made.take(1) == [-token for token in range(step + 1)]
    assert len(made._blocks) == 5
