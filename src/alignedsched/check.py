"""``check``: every named invariant over the whole state, recomputed the slow and obvious way.

Nothing here is trusted that the scheduler keeps: sums are taken member by member, places are counted request by
request. It is meant to be run after every event in tests, and on idle in production by whoever wants to.
"""

from __future__ import annotations

from collections import Counter

from .books import Books
from .errors import InvariantError
from .lane_book import LaneBook
from .live import Live
from .states import RequestState

R = RequestState


def check(books: Books) -> None:
    """Raise InvariantError, naming the invariant and the ids, unless everything holds. O(everything)."""
    _conservation(books)
    _single_place(books)
    _pins(books)
    _pool(books)
    for lane in books.lanes.values():
        _batches(books, lane)
        _orders(books, lane)
    _none_lost(books)
    _copies(books)


def _fail(invariant: str, message: str) -> None:
    raise InvariantError(invariant, message)


def _conservation(books: Books) -> None:
    """Per tier, what is held is the sum of what its extents are charged; nothing exceeds the capacity it had."""
    held: Counter[str] = Counter()
    doomed: Counter[str] = Counter()
    for request, extents in books.ledger.segments():
        if request not in books.live:
            _fail("no_leak", f"{request!r} has ended but holds {dict(extents)}")
        for tier, extent in extents.items():
            held[tier] += extent.blocks
            doomed[tier] += extent.blocks if extent.doomed else 0
            if extent.blocks < 0 or extent.tokens < 0 or extent.pins < 0:
                _fail("conservation", f"{request!r} in {tier!r}: {extent}")
            if not extent.growing and books.layout.blocks(extent.tokens) > extent.blocks:
                _fail("conservation", f"{request!r} in {tier!r} reads beyond what it is charged: {extent}")
            if extent.doomed and not extent.pins:
                _fail("no_leak", f"{request!r} in {tier!r} is doomed and nothing touches it")
    for tier in books.cluster.tiers:
        if held[tier] != books.ledger.held(tier):
            _fail("conservation", f"tier {tier!r} holds {books.ledger.held(tier)} blocks, its extents {held[tier]}")
        if doomed[tier] != books.ledger.doomed(tier):
            _fail("conservation", f"tier {tier!r}: {books.ledger.doomed(tier)} blocks doomed, extents {doomed[tier]}")
        given = held[tier] + books.ledger.growth(tier) + books.ledger.quarantined(tier) + books.ledger.free(tier)
        if given != books.ledger.capacity(tier):
            _fail("conservation", f"tier {tier!r} has {books.ledger.capacity(tier)} blocks, {given} are accounted for")
        if books.ledger.free(tier) < 0 and not books.ledger.clearing(tier):
            _fail("capacity", f"tier {tier!r} is over-full by {-books.ledger.free(tier)} blocks")
        waiting = sum(f.quarantined for f in books.quarantine.values() if f.target == tier)
        if waiting != books.ledger.quarantined(tier):
            _fail("conservation", f"tier {tier!r}: quarantined {books.ledger.quarantined(tier)}, copies say {waiting}")


def _single_place(books: Books) -> None:
    """A live request is exactly where its state says."""
    for request, live in books.live.items():
        places = []
        if request in books.queue:
            places.append("queue")
        if request in books.pool:
            places.append("pool")
        for lane in books.lanes.values():
            for name in ("prefilling", "expected", "candidates", "joining"):
                if request in getattr(lane, name):
                    places.append(name)
            places += ["batch" for batch in lane.state.batches if request in batch]
            places += ["fenced" for _ in range(request in lane.fences)]
        wanted: dict[RequestState, tuple[tuple[str, ...], ...]] = {
            R.PREFILLING: (("prefilling",), ("expected",)),
            R.POOLED: (("pool",),),
            R.CANDIDATE: (("candidates",),),
            R.JOINING: (("joining",),),
            R.RUNNING: (("batch",),),
            R.LEAVING: ((), ("fenced",)),
            R.ENDED: ((), ("fenced",), ("batch",)),
        }
        if tuple(places) not in wanted.get(live.state, ()):
            _fail("single_owner", f"{request!r} is {live.state.value} and stands in {places}")
        if live.state is R.ENDED and live.outcome is None:
            _fail("one_terminal", f"{request!r} has ended without an outcome")
        if live.state is R.RUNNING and live.outcome is not None:
            _fail("one_terminal", f"{request!r} runs with outcome {live.outcome}")
        _lengths(live)


def _lengths(live: Live) -> None:
    """What is stored follows from what was asked and made."""
    prompt = live.request.prompt_tokens
    if live.state in (R.POOLED, R.CANDIDATE, R.JOINING) and live.stored != prompt + live.produced - 1:
        _fail("monotone", f"{live.id!r}: {live.stored} tokens stored, prompt {prompt}, produced {live.produced}")
    if live.stored < 0 or live.ordered < 0 or live.ordered > live.target:
        _fail("monotone", f"{live.id!r}: stored {live.stored}, ordered {live.ordered}, target {live.target}")


def _pins(books: Books) -> None:
    """Every pin belongs to a copy, a chunk under way or a fence, and to nothing else."""
    pins: Counter[tuple[str, str]] = Counter()
    for flight in books.flights.values():
        pins[flight.request, flight.source] += 1
        pins[flight.request, flight.target] += 1
    for lane in books.lanes.values():
        state = lane.state
        standing = [state.standing] if state.standing is not None and state.standing.first > state.reported else []
        for issued in (*standing, *state.issued):
            for chunk in issued.step.chunks:
                pins[chunk.request, lane.tiers[chunk.rank]] += 1
        for request in lane.fences:
            pins[request, lane.tiers[books.live[request].rank]] += 1
    for request, extents in books.ledger.segments():
        for tier, extent in extents.items():
            if extent.pins != pins.pop((request, tier), 0):
                _fail("pinned_stays", f"{request!r} in {tier!r}: {extent.pins} pins are kept, others are due")
    if +pins:
        _fail("pinned_stays", f"pins are due on what is not there: {dict(pins)}")


def _pool(books: Books) -> None:
    """Pool keys are what the requests say, both orders agree, and so does the index of who lies on which device."""
    ordered, sized = list(books.pool.by_order()), list(books.pool.by_length())
    again = frozenset(books.pool.again())
    if sorted(ordered) != sorted(sized):
        _fail("single_owner", "the two orders of the pool differ")
    for request in ordered:
        live = books.live[request]
        if books.pool.length(request) != live.context_length or books.pool.order(request) != live.order:
            _fail("single_owner", f"{request!r}: the pool keeps other keys than the request has")
        if (request in again) != (live.preemptions > 0):
            _fail("single_owner", f"{request!r}: the pool is wrong about whether it was preempted")
        if not any(books.ledger.tokens(request, tier) >= live.stored for tier in books.ledger.extents(request)):
            _fail("last_copy", f"{request!r} is pooled and nowhere whole")
    for tier, requests in books.resident.items():
        there = {r for r in ordered if books.ledger.tokens(r, tier)}
        if set(requests) != there:
            _fail("single_owner", f"resident in {tier!r}: index {sorted(requests)}, ledger {sorted(there)}")


def _batches(books: Books, lane: LaneBook) -> None:
    """The closed forms of every running batch equal sums over its members; seats and room are kept."""
    state = lane.state
    for rank, batch in enumerate(state.batches):
        tier, step = lane.tiers[rank], state.latest_first()
        lengths = [batch.base(request) + step for request in batch]
        if len(batch) > state.lane.max_members:
            _fail("budget", f"lane {lane.id!r} has {len(batch)} members, at most {state.lane.max_members}")
        if batch.total(step) != sum(lengths) or batch.longest(step) != max(lengths, default=0):
            _fail("closed_forms", f"lane {lane.id!r}: totals do not match the members")
        blocks = sum(books.layout.blocks(length) for length in lengths)
        if batch.blocks(step) != blocks:
            _fail("closed_forms", f"lane {lane.id!r}: {batch.blocks(step)} blocks, members need {blocks}")
        need = batch.blocks(state.exposed())
        if books.ledger.growth(tier) < need:
            _fail("reserved", f"lane {lane.id!r}: {books.ledger.growth(tier)} blocks reserved, {need} may be in use")
        for request in batch:
            live, extent = books.live[request], books.ledger.extents(request).get(tier)
            if extent is None or not extent.growing or live.rank != rank or live.lane != lane.id:
                _fail("legal_for_executor", f"{request!r} decodes in {tier!r} without KV growing there")


def _orders(books: Books, lane: LaneBook) -> None:
    """Chunk orders keep within run-ahead; what stands covers what may run; fences lie within reach."""
    state = lane.state
    if state.chunk_orders() > state.lane.run_ahead + 1:
        _fail("budget", f"lane {lane.id!r} has {state.chunk_orders()} chunk orders under way")
    if state.exposed() < state.reported:
        _fail("orders", f"lane {lane.id!r}: exposed {state.exposed()} < reported {state.reported}")
    for request, (step, order) in lane.fences.items():
        if request not in books.live or step <= state.reported or order > state.next_order:
            _fail("orders", f"lane {lane.id!r}: {request!r} is fenced by step {step}, order {order}")


def _none_lost(books: Books) -> None:
    """Arrived = queued + live + ended."""
    c = books.counts
    ended = c["finished"] + c["cancelled"] + c["rejected"] + c["failed"]
    if c["arrived"] != len(books.queue) + len(books.live) + ended:
        _fail("none_lost", f"{c['arrived']} arrived, {len(books.queue)} queue, {len(books.live)} live, {ended} ended")


def _copies(books: Books) -> None:
    """Copies and requests name each other."""
    named = {copy for live in books.live.values() for copy in live.copies}
    if named != set(books.flights):
        _fail("single_owner", f"copies under way {sorted(books.flights)}, requests name {sorted(named)}")
