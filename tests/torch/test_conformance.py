"""The executor passes the conformance kit of `alignedsched.testing`, on every kind of device that needs no GPU."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from alignedsched.cluster import Cluster
from alignedsched.request import Request
from alignedsched.testing import Verdict, check_executor
from alignedsched_torch.executor import TorchExecutor
from alignedsched_torch.job import Job
from alignedsched_torch.models import Decoder, ModelConfig, load_weights
from alignedsched_torch.tiny import write_tiny
from tests.torch.serving import make_devices

VOCAB = 64


class Conforming(TorchExecutor):
    """With what the kit asks beside the protocol: random prompts, a look at the pools, steps that fail when told to."""

    def __init__(self, decoder: Decoder, kind: str, cluster: Cluster) -> None:
        devices = make_devices(kind, cluster, 0)
        super().__init__(cluster, devices, dict.fromkeys(cluster.lane, decoder), step_seconds=1e-2)
        self.capabilities = {"ranks": False, "virtual_time": kind == "modelled"}
        self._rng = np.random.default_rng(0)

    def introduce(self, request: Request, output_tokens: int) -> None:
        self.expect(Job(request, self._rng.integers(0, VOCAB, request.prompt_tokens), output_tokens))

    def blocks_held(self, tier: str) -> int:
        return self.cluster.tiers[tier].blocks - self.pools[tier].free

    def fail_next_step(self, lane: str) -> bool:
        return self.lanes[lane].fail("told to")


@pytest.fixture(scope="session")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    folder = tmp_path_factory.mktemp("conforming")
    config = write_tiny(folder, "llama", vocab=VOCAB, hidden=16, layers=1, heads=2, kv_heads=1, positions=512)
    return Decoder(ModelConfig.from_folder(folder), load_weights(folder, config, torch.float64, torch.device("cpu")))


@pytest.mark.parametrize("kind", ["cpu", "modelled", "threaded"])
def test_the_executor_conforms(decoder: Decoder, kind: str) -> None:
    spacing = 0.02 if kind == "modelled" else 0.0005
    report = check_executor(partial(Conforming, decoder, kind), seeds=range(14), requests=30, spacing_s=spacing)
    report.raise_if_failed()
    # The executor counts pages, not tokens in them: whether copies are whole is shown byte by byte in test_copier.
    assert report.named(Verdict.SKIPPED) == ("copies_arrive_whole", "reports_are_prompt")
