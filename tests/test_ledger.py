"""The ledger against a plain account: every operation, every refusal, and blocks that are never made or lost."""

from __future__ import annotations

import pytest
from attrs import define, evolve, field
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from alignedsched import Cluster, Device, KVLayout, Lane, Role
from alignedsched.errors import InvariantError
from alignedsched.ledger import Extent, Ledger

BLOCK = 4
CLUSTER = Cluster(
    (Device("g", Role.BOTH, 40, staging_blocks=10),), (Lane("l", ("g",)),), host_blocks=30, layout=KVLayout(BLOCK, 1)
)
TIERS = {"g": 40, "g+staging": 10, "host": 30}
segments = st.sampled_from("ab")
tiers = st.sampled_from(("g", "g", "g+staging", "host"))
tokens = st.integers(0, 60)
extents = st.integers(0, 99)


def blocks(count: int) -> int:
    return -(-count // BLOCK)


@define
class Held:
    """One extent of the plain account: which block numbers it has, one by one."""

    tokens: int = 0
    blocks: list[int] = field(factory=list)
    pins: int = 0
    growing: bool = False
    doomed: bool = False


class LedgerMachine(RuleBasedStateMachine):
    """Does everything twice: to the ledger, and to lists of numbered blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger(CLUSTER)
        self.held: dict[tuple[str, str], Held] = {}
        self.free: dict[str, list[int]] = {tier: list(range(count)) for tier, count in TIERS.items()}
        self.capacity = dict(TIERS)
        self.growth = dict.fromkeys(TIERS, 0)
        self.aside: dict[str, int] = dict.fromkeys(TIERS, 0)

    # -- the plain account's own moves

    def room(self, tier: str) -> int:
        charged = sum(len(h.blocks) for (_, at), h in self.held.items() if at == tier)
        return self.capacity[tier] - charged - self.growth[tier] - self.aside[tier]

    def pick(self, which: int) -> tuple[str, str, Held]:
        """One of the extents there are."""
        key = sorted(self.held)[which % len(self.held)]
        return *key, self.held[key]

    def give(self, segment: str, tier: str) -> None:
        del self.held[segment, tier]

    # -- rules

    @rule(segment=segments, tier=tiers, count=tokens)
    def reserve(self, segment: str, tier: str, count: int) -> None:
        there = self.held.get((segment, tier))
        if there is not None and (there.doomed or there.growing):
            with pytest.raises(InvariantError, match=r"single_owner.*not at rest"):
                self.ledger.reserve(segment, tier, count)
            return
        more = max(0, blocks(count) - (len(there.blocks) if there is not None else 0))
        assert self.ledger.missing(segment, tier, count) == more
        if more and more > self.room(tier):
            if there is not None:  # a refusal of a new segment leaves it with an empty extent; the core looks first
                with pytest.raises(
                    InvariantError, match=rf"capacity.*needs {more} blocks of '{tier}'".replace("+", r"\+")
                ):
                    self.ledger.reserve(segment, tier, count)
            return
        self.ledger.reserve(segment, tier, count)
        self.held.setdefault((segment, tier), Held()).blocks += range(more)

    @precondition(lambda self: self.held)
    @rule(which=extents, count=tokens)
    def commit(self, which: int, count: int) -> None:
        segment, tier, there = self.pick(which)
        if there.growing or blocks(count) > len(there.blocks):
            return
        self.ledger.commit(segment, tier, count)
        if not there.doomed:
            there.tokens = max(there.tokens, count)

    @precondition(lambda self: self.held)
    @rule(which=extents, count=tokens)
    def trim(self, which: int, count: int) -> None:
        segment, tier, there = self.pick(which)
        if there.growing or blocks(count) > len(there.blocks):
            return
        self.ledger.trim(segment, tier, count)
        there.tokens = min(there.tokens, count)
        del there.blocks[blocks(count) :]

    @precondition(lambda self: self.held)
    @rule(which=extents)
    def pin(self, which: int) -> None:
        segment, tier, there = self.pick(which)
        if not there.doomed:
            self.ledger.pin(segment, tier)
            there.pins += 1

    @precondition(lambda self: self.held)
    @rule(which=extents)
    def unpin(self, which: int) -> None:
        segment, tier, there = self.pick(which)
        if not there.pins:
            return
        there.pins -= 1
        frees = there.doomed and not there.pins
        assert self.ledger.unpin(segment, tier) is frees
        if frees:
            self.give(segment, tier)

    @precondition(lambda self: self.held)
    @rule(which=extents)
    def drop(self, which: int) -> None:
        segment, tier, there = self.pick(which)
        if there.growing:
            with pytest.raises(InvariantError, match=r"pinned_stays.*cannot be dropped"):
                self.ledger.drop(segment, tier)
            return
        frees = not there.pins
        assert self.ledger.drop(segment, tier) is frees
        there.tokens = 0
        there.doomed = not frees
        if frees:
            self.give(segment, tier)

    @precondition(lambda self: self.held)
    @rule(which=extents)
    def lend(self, which: int) -> None:
        segment, tier, there = self.pick(which)
        if there.growing or there.doomed:
            with pytest.raises(InvariantError, match=r"single_owner.*grows already or is dropped"):
                self.ledger.lend(segment, tier)
            return
        self.ledger.lend(segment, tier)
        self.growth[tier] += len(there.blocks)
        self.ledger.set_growth(tier, self.growth[tier])
        there.blocks = []
        there.growing = True

    @precondition(lambda self: self.held)
    @rule(which=extents, readable=tokens, more=st.integers(0, 8))
    def settle(self, which: int, readable: int, more: int) -> None:
        segment, tier, there = self.pick(which)
        if not there.growing:
            with pytest.raises(InvariantError, match=r"single_owner.*does not grow"):
                self.ledger.settle(segment, tier, readable, readable + more)
            return
        room = BLOCK * self.growth[tier]  # what the batch was charged covers what the member leaves behind
        readable = min(readable, room)
        written = min(readable + more, room)
        charged = blocks(written)
        self.ledger.settle(segment, tier, readable, written)
        self.growth[tier] -= charged
        self.ledger.set_growth(tier, self.growth[tier])
        there.growing, there.tokens, there.blocks = False, readable, list(range(charged))

    @rule(tier=tiers, count=st.integers(0, 20))
    def grow(self, tier: str, count: int) -> None:
        if count <= self.growth[tier] + self.room(tier):
            self.growth[tier] = count
            self.ledger.set_growth(tier, count)

    @precondition(lambda self: self.held)
    @rule(which=extents)
    def quarantine(self, which: int) -> None:
        segment, tier, there = self.pick(which)
        if there.growing or not there.pins:
            return
        assert self.ledger.quarantine(segment, tier) == len(there.blocks)
        self.aside[tier] += len(there.blocks)
        self.give(segment, tier)

    @precondition(lambda self: any(self.aside.values()))
    @rule(count=st.integers(1, 9))
    def vouch(self, count: int) -> None:
        tier = max(self.aside, key=lambda t: self.aside[t])
        safe = min(count, self.aside[tier])
        self.ledger.vouch(tier, safe)
        self.aside[tier] -= safe

    @precondition(lambda self: self.held)
    @rule(which=extents)
    def forget(self, which: int) -> None:
        segment, tier, there = self.pick(which)
        if not there.growing:
            self.ledger.forget(segment, tier)
            self.give(segment, tier)

    @precondition(lambda self: self.held)
    @rule(tier=tiers, count=st.integers(0, 60))
    def resize(self, tier: str, count: int) -> None:
        self.ledger.set_capacity(tier, count)
        self.capacity[tier] = count
        assert self.ledger.clearing(tier) is (self.room(tier) < 0)

    # -- what holds at every moment

    @invariant()
    def both_accounts_agree(self) -> None:
        ledger = self.ledger
        for tier in TIERS:
            held = sum(len(h.blocks) for (_, at), h in self.held.items() if at == tier)
            assert ledger.held(tier) == held
            assert ledger.free(tier) == self.room(tier)
            assert (ledger.growth(tier), ledger.quarantined(tier)) == (self.growth[tier], self.aside[tier])
            assert ledger.capacity(tier) == self.capacity[tier]
            assert ledger.doomed(tier) == sum(
                len(h.blocks) for (_, at), h in self.held.items() if at == tier and h.doomed
            )
            total = ledger.held(tier) + ledger.growth(tier) + ledger.quarantined(tier) + ledger.free(tier)
            assert total == self.capacity[tier]
        for segment in "ab":
            mine = {tier: h for (name, tier), h in self.held.items() if name == segment}
            assert set(ledger.extents(segment)) == set(mine)
            for tier, h in mine.items():
                extent = ledger.extents(segment)[tier]
                kept = (extent.tokens, extent.blocks, extent.pins, extent.growing, extent.doomed)
                assert kept == (h.tokens, len(h.blocks), h.pins, h.growing, h.doomed)
                assert ledger.tokens(segment, tier) == (0 if h.doomed else h.tokens)
        assert {name for name, _ in ledger.segments()} == {name for name, _ in self.held}

    @invariant()
    def another_ledger_can_be_put_in_the_same_state(self) -> None:
        again = Ledger(CLUSTER)
        again.load(self.ledger.state())
        for name, extents in self.ledger.segments():
            again.put(name, {tier: evolve(extent) for tier, extent in extents.items()})
        for tier in TIERS:
            for figure in (Ledger.free, Ledger.held, Ledger.growth, Ledger.quarantined, Ledger.doomed, Ledger.clearing):
                assert figure(again, tier) == figure(self.ledger, tier)
        assert dict(again.segments()) == dict(self.ledger.segments())


LedgerMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=40)
TestLedger = LedgerMachine.TestCase


def test_unknown_segments_hold_nothing() -> None:
    ledger = Ledger(CLUSTER)
    assert ledger.tokens("x", "g") == 0
    assert not ledger.extents("x")
    assert ledger.missing("x", "g", 9) == 3
    for operation in (ledger.pin, ledger.unpin, ledger.drop, ledger.lend, ledger.quarantine, ledger.forget):
        with pytest.raises(KeyError):
            operation("x", "g")


def test_a_state_of_other_tiers_or_a_segment_twice_is_refused() -> None:
    ledger = Ledger(CLUSTER)
    with pytest.raises(InvariantError, match=r"conservation.*there are g, g\+staging, host"):
        ledger.load({"g": (1, 0, 0, False)})
    ledger.put("a", {"g": Extent(4, 1)})
    with pytest.raises(InvariantError, match=r"single_owner.*'a' is there twice"):
        ledger.put("a", {"host": Extent(4, 1)})
    assert (ledger.held("g"), ledger.held("host")) == (1, 0)


def test_a_reservation_beyond_the_room_is_refused() -> None:
    ledger = Ledger(CLUSTER)
    ledger.reserve("a", "g+staging", 36)
    with pytest.raises(InvariantError, match=r"capacity.*'a' needs 2 blocks of 'g\+staging', 1 free"):
        ledger.reserve("a", "g+staging", 44)
    assert ledger.held("g+staging") == 9


def test_a_pinned_extent_is_doomed_until_its_last_pin_goes() -> None:
    ledger = Ledger(CLUSTER)
    ledger.reserve("a", "g", 9)
    ledger.commit("a", "g", 9)
    ledger.pin("a", "g")
    ledger.pin("a", "g")
    assert ledger.drop("a", "g") is False
    assert (ledger.tokens("a", "g"), ledger.held("g")) == (0, 3)
    ledger.commit("a", "g", 9)  # what arrives too late is not readable any more
    assert ledger.tokens("a", "g") == 0
    with pytest.raises(InvariantError, match=r"single_owner.*'a' joins in 'g'"):
        ledger.lend("a", "g")
    with pytest.raises(InvariantError, match=r"single_owner.*'a' reserves in 'g'"):
        ledger.reserve("a", "g", 12)
    assert ledger.unpin("a", "g") is False
    assert ledger.unpin("a", "g") is True
    assert ledger.held("g") == 0
    assert not ledger.extents("a")
