"""Every family under every policy: 64 mixed requests, some cancelled, make the greedy tokens of transformers."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from alignedsched.events import Arrived, CallerEvent, Cancelled
from alignedsched.plan import Outcome
from alignedsched.registry import policy, policy_names
from alignedsched.request import Request
from alignedsched.scheduler import Scheduler
from alignedsched_torch.executor import TorchExecutor
from alignedsched_torch.job import Job
from alignedsched_torch.models import Decoder, ModelConfig, load_weights
from tests.torch.serving import HORIZON, colocated, make_devices, serve, split

transformers = pytest.importorskip("transformers")
VOCAB, REQUESTS, CANCELLED = 96, 64, 10
FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": {"tie_word_embeddings": True},
    "Mistral": {"sliding_window": None},
    "Qwen2": {},
    "Qwen3": {"head_dim": 8},
}
POLICIES = [name for name in policy_names() if name != "sjf_oracle"]  # that one is told what it cannot know here


class Family:
    """A random checkpoint as transformers writes it, in both implementations."""

    def __init__(self, name: str, folder: Path) -> None:
        torch.manual_seed(sorted(FAMILIES).index(name))
        config = getattr(transformers, f"{name}Config")(
            vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=512, **FAMILIES[name],
        )  # fmt: skip
        self.model = getattr(transformers, f"{name}ForCausalLM")(config).double().eval()
        with torch.no_grad():
            for parameter in self.model.parameters():  # wide enough that no two tokens are nearly as likely
                parameter.mul_(4.0).add_(0.05 * torch.randn_like(parameter))
        self.model.save_pretrained(folder)
        ours = ModelConfig.from_folder(folder)
        self.decoder = Decoder(ours, load_weights(folder, ours, torch.float64, torch.device("cpu")))

    def greedy(self, jobs: list[Job]) -> bool:
        """Whether each token is the likeliest behind all those before it: one padded pass instead of token by token."""
        texts = [[*job.prompt.tolist(), *job.produced] for job in jobs]
        ids = torch.zeros(len(jobs), max(map(len, texts)), dtype=torch.int64)
        for row, text in enumerate(texts):
            ids[row, : len(text)] = torch.tensor(text)
        with torch.no_grad():
            likeliest = self.model(ids).logits.argmax(-1)  # what is right of a row's end, its causal rows do not see
        return all(
            likeliest[row, len(job.prompt) - 1 : len(text) - 1].tolist() == job.produced
            for row, (job, text) in enumerate(zip(jobs, texts, strict=True))
        )


@pytest.fixture(scope="session", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    return Family(request.param, tmp_path_factory.mktemp(request.param))


@pytest.mark.parametrize("name", POLICIES)
def test_tokens_are_greedy_whatever_decides_and_whoever_leaves(family: Family, name: str) -> None:
    seed = POLICIES.index(name) + 10 * sorted(FAMILIES).index(family.model.config.architectures[0][:-11])
    scenario(family, name, seed)


def scenario(family: Family, name: str, seed: int) -> None:
    """One workload on a cluster with little memory; page size, run-ahead and topology follow from the seed."""
    size, run_ahead = (1, 4, 16)[seed % 3], seed % 3
    blocks = 240 // size + 2 if size > 1 else 240
    if seed % 2:
        cluster = colocated(family.decoder, blocks, size, run_ahead, host=1600 // size)
    else:
        cluster = split(family.decoder, blocks, size, run_ahead, 1600 // size)
    executor = TorchExecutor(
        cluster, make_devices("modelled", cluster, seed), {lane.id: family.decoder for lane in cluster.lanes},
        step_seconds=1e-3,
    )  # fmt: skip
    rng = np.random.default_rng(seed)
    jobs, timed = [], []
    for number in range(REQUESTS):
        prompt = rng.integers(0, VOCAB, int(rng.choice([2, 9, 17, 40, 90])))
        request = Request(f"r{number}", len(prompt), int(rng.integers(1, 16)))
        jobs.append(Job(request, prompt, request.output_limit or 1))
        executor.expect(jobs[-1])
        timed.append((number * 1e-3, Arrived(request)))
    leaving = {f"r{number}" for number in rng.choice(REQUESTS, CANCELLED, replace=False)}
    cancels: list[tuple[float, CallerEvent]] = [
        (float(rng.random() * 0.1), Cancelled(name)) for name in sorted(leaving)
    ]
    arrivals = sorted([*timed, *cancels], key=lambda entry: entry[0])
    outcomes = serve(Scheduler(cluster, policy(name), max_horizon=HORIZON), executor, arrivals)
    ended = Counter(outcomes.values())
    assert set(ended) <= {Outcome.FINISHED, Outcome.CANCELLED}
    assert ended[Outcome.FINISHED] >= REQUESTS - CANCELLED
    finished = [job for job in jobs if outcomes[job.id] is Outcome.FINISHED]
    assert all(len(job.produced) == job.limit for job in finished)
    assert {job.id for job in jobs} - {job.id for job in finished} <= leaving
    assert family.greedy(jobs), "what a cancelled request had made is right too"
