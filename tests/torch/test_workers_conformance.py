"""Worker processes pass the conformance kit of `alignedsched.testing` as an executor in one process does."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from alignedsched.cluster import Cluster
from alignedsched.request import Request
from alignedsched.testing import Verdict, check_executor
from alignedsched.testing.executor_suite import settings
from alignedsched_torch.job import Job
from alignedsched_torch.tiny import write_tiny
from alignedsched_torch.workers import WorkersExecutor

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="workers need Linux: memfd, eventfd, SEQPACKET")
VOCAB = 64


class Conforming(WorkersExecutor):
    """With what the kit asks beside the protocol: random prompts. It ends its processes when nobody has it any more."""

    def __init__(self, folder: Path, ranks: int, cluster: Cluster) -> None:
        super().__init__(cluster, folder, dtype="float64", tensor_parallel=ranks)
        self.capabilities = {"ranks": False}
        self._rng = np.random.default_rng(0)

    def introduce(self, request: Request, output_tokens: int) -> None:
        self.expect(Job(request, self._rng.integers(0, VOCAB, request.prompt_tokens), output_tokens))


class Factory:
    """A fresh executor for each life; the kit's two looks at what it can do are at the first life's."""

    def __init__(self, folder: Path, ranks: int) -> None:
        self._make = partial(Conforming, folder, ranks)
        self._calls = 0
        self._first: Conforming | None = None

    def __call__(self, cluster: Cluster) -> Conforming:
        self._calls += 1
        if self._first is None or self._calls > 3:
            self._first = self._make(cluster)
        return self._first


# By seed: one lane; run-ahead and a host pool; two lanes; prefill and decode apart, with staging. Two ranks: run-ahead.
@pytest.mark.parametrize(("ranks", "seeds", "place"), [(1, (0, 2, 4, 6), None), (2, (0,), 1)])
def test_workers_conform(tmp_path: Path, ranks: int, seeds: tuple[int, ...], place: int | None) -> None:
    write_tiny(tmp_path, "llama", vocab=VOCAB, hidden=16, layers=1, heads=2, kv_heads=2, positions=512)
    clusters = None if place is None else (settings()[place].cluster,)
    factory = Factory(tmp_path, ranks)
    report = check_executor(factory, seeds=seeds, clusters=clusters, requests=30, spacing_s=0.002)
    report.raise_if_failed()
    assert report.named(Verdict.SKIPPED) == (
        "copies_arrive_whole", "reports_are_prompt", "memory_as_accounted", "orders_void_after_failure",
    )  # fmt: skip
