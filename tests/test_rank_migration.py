"""Members go from rank to rank where that pays: who, when not, what never happens, and what it is worth."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import pairwise

import pytest
from attrs import define, evolve, field
from hypothesis import given
from hypothesis import strategies as st

from alignedsched.batch import RunningBatch
from alignedsched.cluster import Cluster, Device, KVLayout, Lane, Link, Role
from alignedsched.costs import AffineCosts, Costs, Load
from alignedsched.driver import drive
from alignedsched.errors import CallerError, ConfigError
from alignedsched.events import Arrived, CallerEvent, CopyDone, Event, Resumed, StepsDone
from alignedsched.plan import Plan
from alignedsched.policies import rank_migration
from alignedsched.policies.admission import ArrivalOrder
from alignedsched.policies.cost_aligned import cost_aligned
from alignedsched.policies.fcfs import ContinuousBatching, fcfs
from alignedsched.policies.predict import NoPrediction
from alignedsched.policies.protocols import Composition, Policy, Transfer
from alignedsched.policies.rank_migration import Migration, RankMemory, UnderWay
from alignedsched.policies.rank_moves import Move, MoveSettings, linked, moves_that_pay
from alignedsched.pool import Pool
from alignedsched.queue import Queue
from alignedsched.request import Request
from alignedsched.scheduler import Scheduler
from alignedsched.sim.build import build
from alignedsched.sim.executor import SimulatedExecutor
from alignedsched.sim.run import run
from alignedsched.states import RequestState
from alignedsched.testing.policy_suite import check_policy
from alignedsched.views import BatchReader, ColumnRank, ColumnView, Entry, LaneView, PoolReader, QueueReader
from alignedsched.workloads import workload

COSTS = AffineCosts(0.004, 1e-5, 4e-7, per_pair=1e-10)
SETTINGS = MoveSettings()
Lengths = Sequence[Sequence[int]]


def cluster(ranks: int, blocks: int = 10_000, members: int = 256, linked: bool = True, ahead: int = 1) -> Cluster:
    devices = tuple(Device(f"d{i}", Role.BOTH, blocks) for i in range(ranks))
    links = tuple(Link(a.id, b.id, 1e9) for a in devices for b in devices if a is not b) if linked else ()
    lane = Lane("lane", tuple(d.id for d in devices), ahead, members, 2048)
    return Cluster(devices, (lane,), 0, links, KVLayout(16, 1000))


@define
class Flying(ColumnView):
    """A view in which some requests are being copied."""

    copied: frozenset[str] = field(default=frozenset(), kw_only=True)

    def flying(self, request: str) -> frozenset[str]:
        return frozenset({"d1"}) if request in self.copied else frozenset()


def lane_of(
    lengths: Lengths, made: Cluster | None = None, free: int = 5000, now: float = 0.0,
    candidates: Sequence[str] = (), copied: frozenset[str] = frozenset(), at: str = "d0",
) -> Flying:  # fmt: skip
    """A lane whose ranks have members of these context lengths, ``r<rank>.<number>``; candidates lie ``at`` a rank."""
    made = made or cluster(len(lengths))
    ranks, entries = [], {}
    for rank, tier in enumerate(made.lanes[0].ranks):
        batch = RunningBatch(16)
        for number, length in enumerate(lengths[rank]):
            name = f"r{rank}.{number}"
            batch.add(name, length)
            entries[name] = Entry(name, length, number, 0.0, 0.0, 5, None, 0, None, None, 0, {tier: length - 1})
        ranks.append(ColumnRank(rank, tier, BatchReader(batch, lambda: 0), 10_000, free))
    for name in candidates:
        entries[name] = Entry(name, 101, 99, 0.0, 0.0, 5, None, 0, None, None, 0, {at: 100})
    return Flying(
        now, made.lanes[0], Role.BOTH, made, made.layout, COSTS, QueueReader(Queue()), PoolReader(Pool()), ranks,
        entries, {}, candidates=tuple(candidates), copied=copied,
    )  # fmt: skip


def planned(lengths: Lengths, left: float = 1e9, **options: object) -> list[Move]:
    return moves_that_pay(lane_of(lengths, **options), COSTS, lambda request: left, SETTINGS)  # type: ignore[arg-type]


def slowest(lengths: Lengths) -> float:
    ahead = SETTINGS.ahead // 2
    loads = (Load(len(rank), sum(rank) + ahead * len(rank), max(rank) + ahead) for rank in lengths if rank)
    return max(COSTS.step_seconds(load) for load in loads)


# -- who moves


@given(st.lists(st.lists(st.integers(1, 9000), max_size=12), min_size=2, max_size=6))
def test_whoever_moves_gains_more_than_the_pause(lengths: list[list[int]]) -> None:
    moves = planned(lengths)
    assert len({move.request for move in moves}) == len(moves) <= SETTINGS.at_once
    after = [list(rank) for rank in lengths]
    for move in moves:
        rank, number = map(int, move.request[1:].split("."))
        assert (rank, lengths[rank][number]) == (move.source, move.length)
        after[move.source].remove(move.length)
        after[move.target].append(move.length)
    if moves:
        steps = SETTINGS.ahead * (slowest(lengths) - slowest(after))
        now = max(COSTS.step_seconds(Load(len(rank), sum(rank), max(rank))) for rank in lengths if rank)
        assert steps > SETTINGS.margin * 3 * now


@given(st.lists(st.integers(1, 9000), max_size=12), st.integers(2, 6))
def test_even_ranks_stay_as_they_are(lengths: list[int], ranks: int) -> None:
    assert planned([lengths] * ranks) == []


def test_two_ranks_that_are_equally_slow_give_together() -> None:
    lengths = [[4000, 3000], [4000, 3000], [100, 100], [100, 100]]
    moves = planned(lengths)
    assert {move.source for move in moves} == {0, 1}
    assert {move.target for move in moves} == {2, 3}


@pytest.mark.parametrize(
    "options",
    [
        {"left": 4.0},
        {"made": cluster(2, linked=False)},
        {"made": cluster(2, members=1)},
        {"free": 10},
    ],
    ids=["who moves would end soon", "no link", "no seat", "no room"],
)
def test_nobody_moves_in_vain(options: dict[str, object]) -> None:
    lengths = [[4000, 3000, 2000], [100]]
    assert planned(lengths)
    assert planned(lengths, **options) == []  # type: ignore[arg-type]


def test_who_is_alone_stays() -> None:
    assert planned([[90_000], []]) == []


# -- on the way


def goes_on(view: Flying, memory: RankMemory) -> tuple[Composition, RankMemory]:
    return Migration(NoPrediction()).compose(view, COSTS, Composition(), memory)


def test_a_member_is_parked_claimed_copied_and_joins() -> None:
    migration = Migration(NoPrediction())
    composition, memory = goes_on(lane_of([[4000, 3000, 2000], [100]]), RankMemory())
    assert len(composition.parks) == len(memory.moves)
    assert composition.wake_at == SETTINGS.patience_s
    way = RankMemory({"m": UnderWay(1, 0.0)})
    there = lane_of([[10], [10]], candidates=["m"])
    assert goes_on(there, way)[0].joins == []
    assert [(t.request, t.target) for t in migration.place(there, way)] == [("m", "d1")]
    composition, memory = goes_on(lane_of([[10], [10]], candidates=["m"], at="d1"), way)
    assert composition.joins == ["m"]
    assert not memory.moves


@pytest.mark.parametrize(
    ("view", "why"),
    [
        (lane_of([[10], [10]], candidates=["m"], free=1), "the room is gone"),
        (lane_of([[10], [10]], cluster(2, linked=False), candidates=["m"]), "the link is gone"),
        (lane_of([[10], [10]], candidates=["m"], copied=frozenset("m"), now=SETTINGS.patience_s), "it takes too long"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_who_cannot_go_on_goes_home(view: Flying, why: str) -> None:
    composition, memory = goes_on(view, RankMemory({"m": UnderWay(1, 0.0)}))
    assert composition.unclaims == composition.joins == ["m"], why
    assert not memory.moves


def test_a_candidate_that_nobody_remembers_goes_home() -> None:
    composition, _ = goes_on(lane_of([[10], [10]], candidates=["m"]), RankMemory())
    assert composition.unclaims == composition.joins == ["m"]


# -- whole lives


@define
class Seen:
    """What happened to requests: where their copies ended (tokens), and their pauses (seconds)."""

    copies: dict[str, list[int]] = field(factory=dict)
    left: dict[str, float] = field(factory=dict)
    pauses: list[float] = field(factory=list)

    def __call__(self, now: float, events: object, plan: Plan) -> None:
        for copy in plan.copies:
            self.copies.setdefault(copy.request, []).append(copy.end)
        for step in plan.steps:
            self.left.update(dict.fromkeys(step.leaves, now))
            self.pauses += [now - self.left.pop(join.request) for join in step.joins if join.request in self.left]


def lived(made: Cluster, jobs: list[tuple[int, int]], settings: MoveSettings = SETTINGS) -> Seen:
    """Serve jobs (prompt, output), one every 20 ms, under cost_aligned; all end, and no room is held for nothing."""
    policy = cost_aligned()
    policy.batching.migration = Migration(NoPrediction(), settings)  # type: ignore[attr-defined]
    scheduler = Scheduler(made, policy, COSTS)
    executor = SimulatedExecutor(made, COSTS)
    seen = Seen()

    def watch(now: float, events: object, plan: Plan) -> None:
        seen(now, events, plan)
        books = scheduler._books
        for live in books.live.values():
            if live.state is RequestState.POOLED:
                extents = books.ledger.extents(live.id).values()
                assert all(extent.tokens or extent.pins for extent in extents), "what a copy left behind is given up"

    def arrivals() -> Iterator[tuple[float, CallerEvent]]:
        for number, (prompt, output) in enumerate(jobs):
            executor.expect(f"r{number}", output)
            yield 0.02 * number, Arrived(Request(f"r{number}", prompt, output, 0.02 * number))

    drive(scheduler, executor, arrivals(), observe=watch)
    assert scheduler.idle()
    scheduler.check()
    assert scheduler.counts["finished"] == len(jobs)
    return seen


JOBS = st.lists(st.tuples(st.integers(1, 3000), st.integers(1, 600)), min_size=2, max_size=30)


@given(JOBS, st.integers(2, 4), st.integers(260, 1200), st.sampled_from([2, 4, 16]), st.integers(0, 2))
def test_nothing_is_lost_and_nobody_moves_twice_without_a_token(
    jobs: list[tuple[int, int]], ranks: int, blocks: int, members: int, ahead: int
) -> None:
    seen = lived(cluster(ranks, blocks, members, ahead=ahead), jobs)
    for ends in seen.copies.values():
        assert all(before < after for before, after in pairwise(ends))


def test_pauses_are_short_and_members_do_move() -> None:
    seen = lived(cluster(4), [(200, 4000 if number % 5 == 0 else 100) for number in range(60)])
    assert seen.copies
    assert max(seen.pauses) < 0.2


def test_where_all_are_alike_nothing_is_copied() -> None:
    assert not lived(cluster(4), [(200, 300)] * 64).copies


def test_without_links_or_costs_it_is_what_it_was() -> None:
    jobs = [(200, 2000 if number % 5 == 0 else 100) for number in range(40)]
    assert not lived(cluster(4, linked=False), jobs).copies
    batching = cost_aligned().batching
    blind = evolve(lane_of([[4000, 3000, 2000], [100]]), costs=None)
    assert batching.compose(blind) == Composition()


@pytest.mark.parametrize(("name", "most"), [("reasoning", 0.96), ("mooncake", 0.98)])
def test_it_beats_placing_alone(name: str, most: float) -> None:
    """Eight ranks that prefill, too, offline: some per cent faster than where there are no links between ranks."""
    built = build("h100", "llama-3.1-8b", topology="colocated", lanes=1, surface="balanced", staging=False, ranks=8)
    ranks = built.cluster.lanes[0].ranks
    apart = tuple(link for link in built.cluster.links if not (link.source in ranks and link.target in ranks))
    assert len(built.cluster.links) == len(apart) + 56
    traffic = workload(name, seed=1, n=2500 if name == "reasoning" else 500).offline()

    def seconds(made: Cluster) -> float:
        return float(run(traffic, made, built.costs, cost_aligned()).figures["simulated_s"])

    assert seconds(built.cluster) < most * seconds(evolve(built.cluster, links=apart))


def restless(view: LaneView, costs: Costs, left: object, settings: MoveSettings) -> list[Move]:
    """The shortest member of every rank goes to the next one, whatever it costs."""
    ranks = len(view.ranks)
    firsts = [(rank.rank, next(iter(rank.batch), None)) for rank in view.ranks]
    return [
        Move(member, rank, (rank + 1) % ranks, 1)
        for rank, member in firsts
        if member is not None and linked(view, rank, (rank + 1) % ranks)
    ]


@given(JOBS, st.integers(2, 4), st.integers(260, 1200), st.sampled_from([2, 4, 16]), st.sampled_from([1e6, 1e7, 1e8]))
def test_moves_without_rhyme_or_reason_lose_nothing(
    jobs: list[tuple[int, int]], ranks: int, blocks: int, members: int, speed: float
) -> None:
    """Among them copies that take longer than anybody's patience, and arrive when nobody wants them any more."""
    made = cluster(ranks, blocks, members)
    made = evolve(made, links=tuple(evolve(link, bytes_per_s=speed) for link in made.links))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rank_migration, "moves_that_pay", restless)
        seen = lived(made, jobs, MoveSettings(every=1, patience_s=0.05))
    assert max(seen.pauses, default=0.0) < 10


def test_a_policy_that_is_restless_keeps_every_promise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_migration, "moves_that_pay", restless)
    check_policy(cost_aligned, seeds=[202, 217], events=60, another_process=False).raise_if_failed()


def test_who_has_come_and_finds_no_seat_is_sent_to_no_other_rank() -> None:
    """Where ranks are linked, KV that waits for a seat on one of them would else be copied to and fro."""
    built = build("h100", "llama-3.1-8b", topology="disaggregated", lanes=1, surface="balanced", staging=False, ranks=2)
    lanes = tuple(evolve(lane, max_members=3) for lane in built.cluster.lanes)
    traffic = workload("reasoning", seed=1, n=40).offline()
    figures = run(traffic, evolve(built.cluster, lanes=lanes), built.costs, fcfs()).figures
    assert figures["requests"]["finished"] == 40
    assert figures["copies"]["peer_bytes"] == built.cluster.layout.copy_bytes(0, int(traffic.prompt_tokens.sum()))


# -- memory and options


def test_who_is_under_way_is_part_of_the_state() -> None:
    batching, other = cost_aligned().batching, cost_aligned().batching
    view = lane_of([[4000, 3000, 2000], [100]])
    batching.taken(view, batching.compose(view))
    state = json.loads(json.dumps(batching.state()))
    assert state["ranks"]["lane"][0]
    other.load(state)
    assert other.state() == batching.state()
    assert other.compose(view) == batching.compose(view)


@pytest.mark.parametrize(
    "ranks", [[], {"lane": None}, {"lane": [[], "soon"]}, {"lane": [[["m", 1]], None]}, {"lane": [[["m", -1, 0.0]], 1]}]
)
def test_what_is_no_state_is_refused(ranks: object) -> None:
    batching = cost_aligned().batching
    with pytest.raises(CallerError, match="cost_aligned"):
        batching.load({"backlogs": {}, "lanes": {}, "ranks": ranks})  # type: ignore[dict-item]
    assert batching.state() == {"backlogs": {}, "lanes": {}}


def test_bad_settings_are_named() -> None:
    with pytest.raises(ConfigError, match=r"MoveSettings\.margin must be a number from 1"):
        MoveSettings(margin=0.5)


def test_a_copy_that_nobody_wants_any_more_gives_its_room_back_even_if_its_request_leaves_just_then() -> None:
    """It kept the room at the other rank as long as the request lived."""
    wishes: list[Composition] = []
    copies: list[Transfer] = []

    class Batching(ContinuousBatching):
        def compose(self, view: LaneView) -> Composition:
            soon = view.now + 0.5
            return evolve(wishes[0] if wishes else Composition(), wake_at=soon, look_at=soon)

        def taken(self, view: LaneView, composition: Composition) -> None:
            wishes.clear()

    class Residency:
        def place(self, view: LaneView) -> list[Transfer]:
            return list(copies)

    policy = Policy("scripted", ArrivalOrder(), Batching(), Residency(), may_idle_s=60.0)
    scheduler, now = Scheduler(cluster(2, ahead=2), policy), 0.0

    def tell(*events: Event) -> Plan:
        nonlocal now
        now += 1.0
        plan = scheduler.handle(now, *events)
        scheduler.check()
        return plan

    view = scheduler.view("lane")
    tell(Arrived(Request("a", 20, 100)))
    wishes.append(Composition(joins=["a"]))
    (order,) = tell(StepsDone("lane", 0, 0, 0, prefilled=("a",))).steps
    home = next(rank.rank for rank in view.ranks if "a" in rank.batch)
    other = view.ranks[1 - home].tier
    free = view.free(other)

    wishes.append(Composition(parks=["a"]))
    (order,) = tell(StepsDone("lane", order.order, 1, 2)).steps
    assert order.leaves == ("a",)
    wishes.append(Composition(candidates=["a"]))
    copies.append(Transfer("a", other))
    (copy,) = tell(StepsDone("lane", order.order, 3, 2)).copies
    assert view.free(other) < free
    copies.clear()
    wishes.append(Composition(unclaims=["a"], joins=["a"]))
    plan = tell(Resumed())
    assert [abort.copy for abort in plan.aborts] == [copy.copy]
    (order,) = plan.steps
    wishes.append(Composition(parks=["a"]))
    (left,) = tell(StepsDone("lane", order.order, 3, 4)).steps
    assert left.leaves == ("a",)
    assert view.leaving == 1
    tell(CopyDone(copy.copy))
    assert view.free(other) == free
