"""The slot protocol, model-checked: whatever order things happen in, each use of a slot ends exactly once."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from alignedsched.errors import ExecutorError
from alignedsched_torch.memory.staging import SlotState, StagingRing

NAMES = st.sampled_from("abc")


class RingMachine(RuleBasedStateMachine):
    """The ring beside the naive truth: which copies are under way, which slots hold readable bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.ring = StagingRing("p0")
        self.fills: list[tuple[str, int]] = []
        self.drains: list[tuple[str, int]] = []
        self.readable: set[str] = set()

    @rule(name=NAMES)
    def fill(self, name: str) -> None:
        busy = any(name == n for n, _ in (*self.fills, *self.drains))
        if busy:
            with pytest.raises(ExecutorError, match="again while its slot is"):
                self.ring.fill(name)
            return
        self.fills.append((name, self.ring.fill(name)))
        self.readable.discard(name)

    @precondition(lambda self: self.fills)
    @rule(which=st.integers(0, 9), arrived=st.booleans())
    def filled(self, which: int, arrived: bool) -> None:
        name, generation = self.fills.pop(which % len(self.fills))
        wanted = not self.ring.slot(name).revoked  # type: ignore[union-attr]
        assert self.ring.filled(name, generation, arrived) == (arrived and wanted)
        if arrived and wanted:
            self.readable.add(name)

    @rule(name=NAMES)
    def drain(self, name: str) -> None:
        if name not in self.readable:
            with pytest.raises(ExecutorError, match="is asked for"):
                self.ring.drain(name)
            return
        self.drains.append((name, self.ring.drain(name)))

    @precondition(lambda self: self.drains)
    @rule(which=st.integers(0, 9))
    def drained(self, which: int) -> None:
        self.ring.drained(*self.drains.pop(which % len(self.drains)))

    @rule(name=NAMES)
    def revoke(self, name: str) -> None:
        touched = any(name == n for n, _ in (*self.fills, *self.drains))
        assert self.ring.revoke(name) == (name in self.readable and not touched)
        self.readable.discard(name)

    @rule(name=NAMES, generation=st.integers(0, 3))
    def late(self, name: str, generation: int) -> None:
        """Completions of an earlier use change nothing."""
        if (name, generation) not in self.fills:
            slot = self.ring.slot(name)
            if slot is None or slot.generation != generation:
                assert not self.ring.filled(name, generation, True)
                self.ring.drained(name, generation)

    @invariant()
    def nothing_is_stuck(self) -> None:
        touched = {n for n, _ in (*self.fills, *self.drains)}
        assert {s for s in "abc" if self.ring.slot(s) is not None} == touched | self.readable
        for name in self.readable:
            slot = self.ring.slot(name)
            assert slot is not None
            assert not slot.revoked
            assert (slot.state is SlotState.DRAINING) == any(name == n for n, _ in self.drains)


TestRing = RingMachine.TestCase
