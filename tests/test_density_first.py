"""Batch formation against a literal tree, the starvation guard's bound, and the switching of ``density_first``."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignedsched.errors import CallerError, ConfigError
from alignedsched.policies import guard
from alignedsched.policies.density_first import AlignedBatching, density_first
from alignedsched.policies.formation import ANCHOR_LEVEL, DensestClass, never_drawn
from alignedsched.policies.lane_room import LaneRoom
from alignedsched.policies.protocols import Composition, Evict, Sacrifice, Transfer
from alignedsched.policies.staging import StagedResidency
from alignedsched.pool import LEVELS, LONGEST, class_of
from alignedsched.views import LaneView, from_columns

BLOCK = 16


# -- a literal 4-ary interval tree, and the search over it by plain recursion over lists


class Node:
    def __init__(self, low: int, width: int, level: int, items: list[tuple[int, int]]) -> None:
        self.level, self.index, self.low, self.width = level, (low - 1) // width, low, width
        self.items = sorted(items)  # (length, number)
        self.children: list[Node] = []
        if level < LEVELS:
            quarter = width // 4
            for child in range(4):
                start = low + child * quarter
                inside = [i for i in items if start <= min(i[0], LONGEST) < start + quarter]
                self.children.append(
                    Node(start, quarter, level + 1, inside) if inside else Empty(start, quarter, level + 1)
                )

    def need(self, headroom: int) -> int:
        return sum(-(-length // BLOCK) + headroom for length, _ in self.items)


class Empty(Node):
    def __init__(self, low: int, width: int, level: int) -> None:
        self.level, self.index, self.low, self.width = level, (low - 1) // width, low, width
        self.items, self.children = [], []


def search(root: Node, b_max: int, k_min: int, seats: int, headroom: int, clocks: Mapping[str, float]) -> list[int]:
    """The batch as numbers: descend while too big, widen while too few."""

    def when(node: Node) -> float:
        """The latest batch of any class of 1,024 tokens that shares a length with the node."""
        ends = node.low + node.width
        return max(clocks.get(str(c), 0.0) for c in range(64) if c * 1024 + 1 < ends and node.low <= (c + 1) * 1024)

    def ok(items: Sequence[tuple[int, int]]) -> bool:
        return len(items) <= seats and sum(-(-n // BLOCK) + headroom for n, _ in items) <= b_max

    def densest(nodes: Sequence[Node]) -> Node:
        return min(nodes, key=lambda n: (-len(n.items), when(n), n.index))

    node, siblings = root, [root]
    while not ok(node.items):
        if not node.children:
            best = node.items[:1]
            for start in range(len(node.items)):
                for end in range(start + 1, len(node.items) + 1):
                    window = node.items[start:end]
                    spread = window[-1][0] - window[0][0]
                    longer = len(window) > len(best)
                    tighter = (
                        node.index == 4**LEVELS - 1 and len(window) == len(best) and spread < best[-1][0] - best[0][0]
                    )
                    if ok(window) and (longer or tighter):
                        best = window
            return [number for _, number in best]
        siblings = node.children
        node = densest(siblings)
    taken, places = list(node.items), {node.index}
    while len(taken) < k_min:
        sides = [s for s in siblings if s.index not in places and (s.index + 1 in places or s.index - 1 in places)]
        if not sides:
            break
        side = densest(sides)
        if not ok(taken + side.items):
            inward = sorted(side.items) if side.index > max(places) else sorted(side.items, key=lambda i: (-i[0], i[1]))
            for item in inward:
                if len(taken) >= k_min or not ok([*taken, item]):
                    break
                taken.append(item)
            break
        taken += side.items
        places.add(side.index)
    return [number for _, number in taken]


def pooled_view(lengths: Sequence[int], **kwargs: object) -> LaneView:
    options: dict[str, object] = {"free_blocks": 10**6, "capacity_blocks": 10**6} | kwargs
    ids = [f"p{i}" for i in range(len(lengths))]
    return from_columns(pooled=ids, pooled_lengths=lengths, **options)  # type: ignore[arg-type]


# Lengths that crowd classes (some within 16 tokens), spread out, and pass the end of the tree.
LENGTHS = st.lists(
    st.one_of(
        st.integers(1, 300),
        st.integers(1000, 1040),
        st.integers(1, LONGEST),
        st.sampled_from([LONGEST - 15, LONGEST, LONGEST + 1, LONGEST + 4000, 2 * LONGEST]),
    ),
    min_size=1,
    max_size=60,
)


@settings(max_examples=250, deadline=None)
@given(LENGTHS, st.integers(1, 9000), st.integers(1, 50), st.integers(1, 60), st.integers(0, 2), st.data())
def test_formation_is_the_search_over_a_literal_tree(
    lengths: list[int], b_max: int, k_min: int, seats: int, headroom: int, data: st.DataObject
) -> None:
    clocks = {str(i): data.draw(st.sampled_from([0.0, 1.0, 2.0])) for i in {class_of(n, ANCHOR_LEVEL) for n in lengths}}
    drawn = guard.drawn(clocks)
    tree = Node(1, LONGEST, 0, [(n, i) for i, n in enumerate(lengths)])
    expected = search(tree, b_max, k_min, seats, headroom, clocks)
    view = pooled_view(lengths)
    got = DensestClass(k_min, headroom).form(view, view.pool, b_max, seats, drawn=drawn)
    assert len(set(got)) == len(got)
    assert sorted(map(view.pool.length, got)) == sorted(lengths[i] for i in expected)  # equal lengths may be exchanged


@settings(max_examples=200, deadline=None)
@given(LENGTHS, st.integers(1, 5000), st.integers(1, 50), st.integers(1, 60), st.data())
def test_every_batch_is_within_its_limits_and_around_its_anchor(
    lengths: list[int], b_max: int, k_min: int, seats: int, data: st.DataObject
) -> None:
    view = pooled_view(lengths)
    anchor = data.draw(st.none() | st.sampled_from([f"p{i}" for i in range(len(lengths))]))
    batch = DensestClass(k_min).form(view, view.pool, b_max, seats, anchor=anchor)
    assert batch
    assert len(set(batch)) == len(batch) <= seats
    assert len(batch) == 1 or sum(view.pool.blocks(r) + 1 for r in batch) <= b_max
    assert anchor is None or batch[0] == anchor


def test_k_min_is_soft_where_long_contexts_cannot_reach_it() -> None:
    """36 requests of 4,000 tokens do not fit in 2,000 blocks: 7 of them run all the same, not a lone short one."""
    view = pooled_view([4000] * 50 + [20])
    batch = DensestClass(36).form(view, view.pool, 2000, 256)
    assert len(batch) == 2000 // (250 + 1)
    assert {view.pool.length(r) for r in batch} == {4000}


def test_a_request_larger_than_a_batch_runs_alone() -> None:
    view = pooled_view([60_000, 59_000])
    assert DensestClass(36).form(view, view.pool, 100, 256) == ["p1"]


def test_work_does_not_grow_with_the_pool() -> None:
    """Requests looked at, counted: the batch's own and a few more, of 20,000."""

    class Counting:
        def __init__(self, view: LaneView) -> None:
            self._pool, self.seen = view.pool, 0

        def __len__(self) -> int:
            return len(self._pool)

        def __getattr__(self, name: str) -> object:
            value = getattr(self._pool, name)
            if name not in ("by_length", "nearest", "by_order"):
                return value

            def counted(*args: int) -> object:
                for request in value(*args):
                    self.seen += 1
                    yield request

            return counted

    view = pooled_view([1 + (i * 7919) % 30_000 for i in range(20_000)])
    pool = Counting(view)
    batch = DensestClass(36).form(view, pool, 40_000, 200)  # type: ignore[arg-type]
    assert 36 <= len(batch) <= 200
    assert pool.seen <= 3 * len(batch) + 3


@pytest.mark.parametrize("bad", [0, -1, 1.5, True])
def test_formation_names_a_bad_option(bad: object) -> None:
    with pytest.raises(ConfigError, match=r"k_min must be an integer of at least 1"):
        DensestClass(bad)  # type: ignore[arg-type]


# -- the guard


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 8000), min_size=1, max_size=40), st.data())
def test_the_longest_waiting_request_of_a_class_is_found(lengths: list[int], data: st.DataObject) -> None:
    view = pooled_view(lengths)
    index = class_of(data.draw(st.sampled_from(lengths)), ANCHOR_LEVEL)
    usable = data.draw(st.sets(st.sampled_from([f"p{i}" for i in range(len(lengths))])))
    inside = [f"p{i}" for i, n in enumerate(lengths) if class_of(n, ANCHOR_LEVEL) == index and f"p{i}" in usable]
    assert guard.longest_waiting(view.pool, index, usable.__contains__) == (inside[0] if inside else None)


def crowded(now: float, *, candidates: Sequence[str] = (), lone: int = 9000) -> LaneView:
    """A lane full of short members, a crowd of short ones in the pool, and one long one that arrived first."""
    return from_columns(
        running=[f"r{i}" for i in range(60)],
        running_lengths=[500] * 60,
        pooled=["lone", *(f"p{i}" for i in range(200))],
        pooled_lengths=[lone, *([500] * 200)],
        candidates=candidates,
        free_blocks=5000,
        capacity_blocks=5000,
        max_members=60,
        now=now,
    )


def step(batching: AlignedBatching, view: LaneView) -> Composition:
    composition = batching.compose(view)
    batching.taken(view, composition)
    return composition


@given(st.integers(1, 60_000).filter(lambda n: abs(n - 500) > 1500), st.floats(0.5, 100.0))
@settings(max_examples=60, deadline=None)
def test_the_batch_after_a_class_is_overdue_is_its_longest_waiting_requests(lone: int, guard_s: float) -> None:
    batching = AlignedBatching(density_first(guard_s=guard_s, patience_s=None).batching.settings, DensestClass())  # type: ignore[attr-defined]
    first = step(batching, crowded(1.0, lone=lone))
    assert first.candidates
    assert "lone" not in first.candidates
    early = step(batching, crowded(1.0 + guard_s * 0.9, lone=lone))  # another batch of the dense class is drawn
    assert "lone" not in early.candidates
    assert first.wake_at == 1.0 + guard_s
    late = step(batching, crowded(1.0 + guard_s, lone=lone))
    assert late.candidates[0] == "lone"
    assert step(batching, crowded(1.1 + guard_s, lone=lone)).candidates[0] != "lone"  # the clock has started again


def test_without_the_guard_the_lone_request_is_never_due() -> None:
    batching = density_first(guard_s=None, patience_s=None).batching
    for now in (1.0, 1e3, 1e6):
        composition = batching.compose(crowded(now))
        batching.taken(crowded(now), composition)
        assert composition.candidates
        assert "lone" not in composition.candidates
        assert composition.wake_at is None


def test_a_near_overdue_request_is_refilled_instead() -> None:
    batching = density_first(mix_share=0.0, guard_s=5.0, k_min=1000).batching

    def view(now: float) -> LaneView:
        return from_columns(
            running=["r"], running_lengths=[1000], pooled=["old", *(f"p{i}" for i in range(300))],
            pooled_lengths=[1300, *([1100] * 300)], free_blocks=700, capacity_blocks=1000, max_members=20, now=now,
        )  # fmt: skip

    first = batching.compose(view(0.0))
    batching.taken(view(0.0), first)
    assert first.joins
    assert "old" not in first.joins
    assert batching.compose(view(5.0)).joins[0] == "old"


# -- batch-level scheduling


def test_all_that_is_ready_runs_at_low_load() -> None:
    view = from_columns(
        running=["r"], running_lengths=[100], pooled=["a", "b", "c"], pooled_lengths=[10, 9000, 400],
        free_blocks=2000, capacity_blocks=2100,
    )  # fmt: skip
    assert list(density_first().batching.compose(view).joins) == ["a", "b", "c"]


def test_refill_takes_near_requests_only_up_to_a_batch() -> None:
    lengths = [100] * 50 + [1000] * 200 + [9000] * 50
    view = from_columns(
        running=[f"r{i}" for i in range(20)], running_lengths=[1000] * 20,
        pooled=[f"p{i}" for i in range(300)], pooled_lengths=lengths, free_blocks=8000, capacity_blocks=10_000,
    )  # fmt: skip
    joins = density_first().batching.compose(view).joins
    assert {view.pool.length(r) for r in joins} == {1000}
    blocks = 20 * 63 + sum(view.pool.blocks(r) for r in joins)
    assert 4000 - 64 <= blocks <= 4000


def test_a_drained_batch_is_switched_and_the_rest_is_the_old_one() -> None:
    def view(now: float, running: int) -> LaneView:
        return from_columns(
            running=[f"r{i}" for i in range(running)], running_lengths=[1000] * running,
            pooled=[f"p{i}" for i in range(200)], pooled_lengths=[9000] * 200, candidates=["p0", "p1"],
            free_blocks=6000, capacity_blocks=10_000, now=now,
        )  # fmt: skip

    batching = density_first(dwell_s=0.5).batching
    assert not batching.compose(view(0.0, 40)).joins  # 2,520 of 4,000 blocks: more than half full
    switch = batching.compose(view(1.0, 30))
    assert list(switch.joins) == ["p0", "p1"]
    batching.taken(view(1.0, 30), switch)
    state = json.loads(json.dumps(batching.state()))
    assert sorted(state["lanes"]["lane"]["old"]) == sorted(f"r{i}" for i in range(30))
    again = batching.compose(view(1.2, 1))  # within the dwell time nothing is switched
    assert not again.joins
    assert again.wake_at == pytest.approx(1.5)
    assert list(batching.compose(view(1.5, 1)).joins) == ["p0", "p1"]


def test_waiting_candidates_join_a_full_lane_in_the_end_and_the_longest_make_room() -> None:
    def view(now: float) -> LaneView:
        return from_columns(
            running=[f"r{i:02}" for i in range(60)], running_lengths=[1000 + 16 * i for i in range(60)],
            pooled=[f"p{i}" for i in range(200)], pooled_lengths=[100] * 200,
            candidates=[f"p{i}" for i in range(40)], host_free_blocks=9000,
            free_blocks=100, capacity_blocks=10_000, max_members=60, pooled_on=["host"] * 200, now=now,
        )  # fmt: skip

    batching = density_first(patience_s=5.0).batching
    first = batching.compose(view(0.0))
    assert not first.joins
    assert not first.parks
    batching.taken(view(0.0), first)
    assert first.wake_at == 5.0
    late = batching.compose(view(5.0))
    assert list(late.parks) == [f"r{i:02}" for i in range(59, 19, -1)]
    batching.taken(view(5.0), late)
    assert not batching.compose(view(5.1)).parks  # once a switch


def test_victims_are_the_old_batch_first_then_the_longest() -> None:
    view = from_columns(
        running=["new-long", "old-short", "old-long", "new-short"], running_lengths=[2000, 100, 900, 1800],
        free_blocks=0, capacity_blocks=400, host_free_blocks=70,
    )  # fmt: skip
    batching = density_first().batching
    batching.load(
        {
            "clocks": {},
            "lanes": {"lane": {"old": ["old-short", "old-long"], "since": 0.0, "chosen": None, "turning": False}},
        }
    )
    order = list(batching.victims(view, 0, 10))
    assert [request for request, _ in order] == ["old-long", "old-short", "new-long", "new-short"]
    assert [how for _, how in order] == [Sacrifice.PARK] * 2 + [Sacrifice.RECOMPUTE] * 2


@pytest.mark.parametrize(
    ("state", "word"),
    [
        (None, "its state is a dict"),
        ({"clocks": {"64": 0.0}, "lanes": {}}, "'clocks'"),
        ({"clocks": {"3": math.inf}, "lanes": {}}, "finite"),
        ({"clocks": {}, "lanes": {"x": {"old": []}}}, r"lanes\['x'\]"),
        ({"clocks": {}, "lanes": []}, "'lanes'"),
    ],
)
def test_a_state_that_is_none_is_refused_and_nothing_changes(state: object, word: str) -> None:
    batching = density_first().batching
    step(batching, crowded(3.0))  # type: ignore[arg-type]
    before = batching.state()
    with pytest.raises(CallerError, match=word):
        batching.load(state)  # type: ignore[arg-type]
    assert batching.state() == before


@pytest.mark.parametrize(
    "option",
    [{"batch_share": 0.0}, {"drain_share": 1.1}, {"guard_s": -1.0}, {"dwell_s": math.nan}, {"growth_share": 2.0}],
)
def test_options_out_of_range_are_named(option: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(option))):
        density_first(**option)  # type: ignore[arg-type]


# -- staging


def staged_view(**kwargs: object) -> LaneView:
    options: dict[str, object] = {
        "running": ["r"], "running_lengths": [500], "free_blocks": 1000, "capacity_blocks": 2000,
        "host_free_blocks": 5000, "staging_free_blocks": 100,
    } | kwargs  # fmt: skip
    return from_columns(**options)  # type: ignore[arg-type]


def test_candidates_in_the_host_are_staged_in_order_while_there_is_room() -> None:
    pooled = [f"c{i}" for i in range(6)]
    view = staged_view(
        pooled=pooled, pooled_lengths=[400] * 6, candidates=pooled,
        pooled_on=["helper+staging", "host", "gpu", "host", "host", "host"], staging_free_blocks=60, now=7.0,
    )  # fmt: skip
    proposals = list(StagedResidency(lead_s=2.0).place(view))
    assert [(p.request, p.target, p.keep, p.deadline) for p in proposals if isinstance(p, Transfer)] == [
        ("c1", "helper+staging", True, 9.0),
        ("c3", "helper+staging", True, 9.0),
    ]


def test_joining_requests_go_first_and_pooled_ones_out_last() -> None:
    view = staged_view(
        pooled=["p", "j", "c"], pooled_lengths=[100] * 3, pooled_on=["gpu", "helper+staging", "host"],
        joining=["j"], candidates=["c"],
    )  # fmt: skip
    got = [(p.request, p.target) for p in StagedResidency().place(view) if isinstance(p, Transfer)]
    assert got == [("j", "gpu"), ("c", "helper+staging"), ("p", "host")]


@pytest.mark.parametrize("residency", [StagedResidency(staging=False), StagedResidency()])
def test_without_a_helper_nothing_is_staged(residency: StagedResidency) -> None:
    view = staged_view(
        pooled=["c"], pooled_lengths=[100], pooled_on=["host"], candidates=["c"],
        staging_free_blocks=0 if residency.staging else 100,
    )  # fmt: skip
    assert not list(residency.place(view))


def test_staged_kv_nobody_wants_any_more_is_dropped() -> None:
    view = staged_view(pooled=["u"], pooled_lengths=[100], pooled_on=["helper+staging"])
    view.resident = ("u",)  # type: ignore[misc]
    assert Evict("u", "helper+staging") in list(StagedResidency(to_host="never").place(view))


def test_no_class_was_drawn_before_anything_was() -> None:
    assert never_drawn(0, 0) == guard.drawn({})(0, 0) == 0.0


# -- admission


@pytest.mark.parametrize(
    ("free", "pooled", "host", "admitted"),
    [
        (1000, 0, 0, ["q0"]),  # an idle lane takes what fits; the next one would take the room for growth
        (999, 0, 0, []),
        (1099, 1, 0, []),  # 1,000 blocks and a tenth of 1,000 for growth
        (1100, 1, 0, ["q0"]),
        (1499, 1, 5000, []),  # and, with a host pool, the 400 of the batch that is to come
        (1500, 1, 5000, ["q0"]),
    ],
)
def test_prefill_leaves_the_room_that_decoding_needs(free: int, pooled: int, host: int, admitted: list[str]) -> None:
    view = from_columns(
        pooled=["p"][:pooled], pooled_lengths=[5][:pooled], queued=["q0", "q1"], queued_prompts=[15_999, 15_999],
        free_blocks=free, capacity_blocks=1000, host_free_blocks=host, max_tokens=20_000,
    )  # fmt: skip
    assert [take.request for take in density_first().admission.admit(view)] == admitted


def test_a_deep_pool_stops_prefill() -> None:
    def takes(pool_batches: float | None) -> int:
        view = from_columns(
            pooled=[f"p{i}" for i in range(100)], pooled_lengths=[1600] * 100, pooled_on=["host"] * 100, queued=["q"],
            queued_prompts=[10], free_blocks=1000, capacity_blocks=1000, host_free_blocks=9,
        )  # fmt: skip
        return len(list(density_first(pool_batches=pool_batches).admission.admit(view)))

    assert (takes(24.9), takes(25.0), takes(None)) == (0, 1, 1)  # the pool holds 10,000 blocks, 25 batches of 400


def test_a_refill_looks_no_further_than_its_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even for requests that are near, among many far ones that the lane cannot get."""
    looked: list[str] = []
    usable = LaneRoom.usable

    def look(room: LaneRoom, request: str) -> bool:
        looked.append(request)
        return usable(room, request)

    monkeypatch.setattr(LaneRoom, "usable", look)
    far = [f"far{i}" for i in range(300)]
    view = from_columns(
        running=["a", "b"],
        running_lengths=[500, 520],
        pooled=["near", *far],
        pooled_lengths=[600, *(5000 for _ in far)],
        pooled_on=["gpu", *("nowhere" for _ in far)],
        free_blocks=400,
        capacity_blocks=500,
    )
    composition = density_first(mix_share=0.0, k_min=999, drain_share=0.0).batching.compose(view)
    assert composition.joins == ["near"]
    assert looked == ["near"]
