"""Copies under any interleaving: each ends exactly once, what arrived is byte for byte right, no page is lost."""

from __future__ import annotations

from collections import Counter

import pytest

from alignedsched.cluster import HOST
from alignedsched.errors import ExecutorError
from alignedsched.events import CopyDone
from alignedsched.plan import Copy
from alignedsched_torch.memory import copier
from benchmarks.staging_lives import PAGES, SHAPE, STAGING, WAYS, make, measure


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copier, "HOST_CHUNK_BYTES", 2 * SHAPE.bytes)  # several chunks a copy
    monkeypatch.setattr(copier, "PEER_CHUNK_BYTES", 3 * SHAPE.bytes)


@pytest.mark.usefixtures("small_chunks")
def test_copies_under_any_interleaving() -> None:
    met: Counter[str] = Counter(measure(150)["met"])
    for source, target in WAYS:
        assert met[f"{source}->{target} done"]
        assert met[f"{source}->{target} aborted"]
    assert met["dropped under a copy"]
    assert met[f"{HOST}->{STAGING} staging was revoked"], "taken back while it was filled"
    assert met[f"{STAGING}->d0 staging was revoked"], "taken back before the scheduler heard of it"


def test_a_copy_of_what_is_not_there_is_refused_and_takes_nothing() -> None:
    _, pools, copies = make(0)
    with pytest.raises(ExecutorError, match=r"reads 9 tokens, 0 have pages in 'p0'"):
        copies.start(Copy(1, "a", "p0", HOST, 0, 9))
    assert pools[HOST].free == PAGES
    assert not len(copies)


def test_an_abort_waits_for_what_is_queued_and_not_for_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copier, "HOST_CHUNK_BYTES", SHAPE.bytes)
    clock, pools, copies = make(0)
    pools["p0"].hold("a", 80)
    copies.start(Copy(1, "a", "p0", HOST, 0, 80))
    copies.abort(1)
    clock.advance(copier.IN_FLIGHT * (1e-5 + SHAPE.bytes / 1e6) + 1e-9)
    (event,) = copies.poll()
    assert not isinstance(event, CopyDone)
    assert event.reason == "aborted"
