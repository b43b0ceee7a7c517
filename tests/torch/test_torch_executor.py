"""The executor under the real scheduler: the tokens of transformers, whatever policy, batch, page size or device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from alignedsched.cluster import Cluster
from alignedsched.events import Arrived
from alignedsched.plan import Copy, Outcome, Plan
from alignedsched.registry import policy
from alignedsched.request import Request
from alignedsched.scheduler import Scheduler
from alignedsched_torch.devices import ModelledDevice, ModelledLink
from alignedsched_torch.executor import TorchExecutor
from alignedsched_torch.forward import Forward, StepWork
from alignedsched_torch.job import Job
from alignedsched_torch.memory import copier
from alignedsched_torch.models import Decoder, ModelConfig, load_weights
from alignedsched_torch.sampling import Sampling
from alignedsched_torch.tiny import write_tiny
from tests.torch.serving import HORIZON, colocated, make_devices, serve, split

transformers = pytest.importorskip("transformers")
VOCAB = 64


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny")
    write_tiny(path, "llama", vocab=VOCAB, hidden=32, layers=2, positions=512)
    return path


@pytest.fixture(scope="session")
def decoder(folder: Path) -> Decoder:
    config = ModelConfig.from_folder(folder)
    return Decoder(config, load_weights(folder, config, torch.float64, torch.device("cpu")))


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies of several chunks, so that they are given up in their middle, and split."""
    monkeypatch.setattr(copier, "HOST_CHUNK_BYTES", 1 << 13)


def work(count: int, seed: int) -> list[tuple[list[int], int]]:
    """(prompt, tokens to make): short and long ones mixed."""
    rng = np.random.default_rng(seed)
    return [
        (rng.integers(0, VOCAB, int(rng.choice([3, 9, 17, 40, 90]))).tolist(), int(rng.integers(1, 24)))
        for _ in range(count)
    ]


@pytest.fixture(scope="session")
def wanted(folder: Path) -> dict[tuple[tuple[int, ...], int], list[int]]:
    """Greedy tokens as transformers makes them, one request at a time."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    known = {}
    for prompt, count in work(24, 1):
        ids = torch.tensor([prompt])
        mask = torch.ones_like(ids)
        made = model.generate(ids, attention_mask=mask, max_new_tokens=count, do_sample=False, pad_token_id=0)
        known[tuple(prompt), count] = made[0, len(prompt) :].tolist()
    return known


def late(executor: TorchExecutor, rng: np.random.Generator) -> None:
    """Links change their speed, so that copies are late and overtake each other; now and then one is down."""
    (clock,) = {device.clock for device in executor.devices.values() if isinstance(device, ModelledDevice)}
    clock.down.clear()
    if rng.random() < 0.3:
        clock.down.add(str(rng.choice(sorted(clock.links))))
    for name, link in clock.links.items():
        clock.links[name] = ModelledLink(float(10 ** rng.uniform(5, 9)), link.latency_s)


def run(
    cluster: Cluster,
    name: str,
    decoder: Decoder,
    kind: str,
    seed: int = 0,
    sampling: Sampling | None = None,
    revoke: float = 0.0,
    faults: float = 0.0,
    **options: Any,
) -> tuple[dict[tuple[tuple[int, ...], int], list[int]], TorchExecutor, Scheduler]:
    executor = TorchExecutor(
        cluster, make_devices(kind, cluster, seed), {lane.id: decoder for lane in cluster.lanes}, step_seconds=1e-3,
        relay_slots=seed % 3,
    )  # fmt: skip
    scheduler = Scheduler(
        cluster, policy(name, **options), max_horizon=HORIZON, copy_retries=10_000, step_retries=10_000
    )
    arrivals, jobs = [], []
    for number, (prompt, count) in enumerate(work(24, 1)):
        request = Request(f"r{number}", len(prompt), count, arrival=0.0)
        job = Job(request, np.array(prompt), count, sampling or Sampling())
        executor.expect(job)
        jobs.append(((tuple(prompt), count), job))
        arrivals.append((executor.now() + 0.002 * number, Arrived(request)))
    rng = np.random.default_rng(seed)
    copies: list[Copy] = []

    def watch(plan: Plan) -> None:
        if revoke and rng.random() < revoke:
            staged = executor.pools["p0+staging"].requests()
            executor.revoke("p0", staged[: int(rng.integers(0, 3))])
        if faults and rng.random() < faults:
            executor.copier.abort(int(rng.integers(0, 1 + max((copy.copy for copy in copies), default=0))))
        if faults and rng.random() < 0.2 * faults:
            executor.lanes[str(rng.choice(sorted(executor.lanes)))].fail("told to")
        if faults and rng.random() < faults:
            late(executor, rng)
        copies.extend(plan.copies)

    outcomes = serve(scheduler, executor, arrivals, watch)
    assert outcomes == {job.id: Outcome.FINISHED for _, job in jobs}, outcomes
    return {key: job.produced for key, job in jobs}, executor, scheduler


@pytest.mark.parametrize("kind", ["cpu", "modelled", "threaded"])
@pytest.mark.parametrize("run_ahead", [0, 1, 2])
@pytest.mark.parametrize("size", [1, 4, 16])
def test_tokens_equal_those_of_transformers(
    kind: str, run_ahead: int, size: int, decoder: Decoder, wanted: object
) -> None:
    made, _, _ = run(colocated(decoder, 2000 // size, size, run_ahead), "fcfs", decoder, kind, seed=size)
    assert made == wanted


@pytest.mark.parametrize("kind", ["cpu", "modelled"])
@pytest.mark.parametrize(("name", "options"), [("fcfs", {}), ("fcfs", {"swap": True}), ("density_first", {"k_min": 2})])
def test_memory_that_is_short_costs_time_and_no_token(
    kind: str, name: str, options: dict[str, Any], decoder: Decoder, wanted: object
) -> None:
    made, executor, scheduler = run(colocated(decoder, 64, 4, 1, host=400), name, decoder, kind, 3, **options)
    assert made == wanted
    if name == "fcfs":
        assert scheduler.counts["preemptions"] or sum(executor.copier.copied_bytes.values())


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("name", ["fcfs", "density_first"])
def test_prefill_elsewhere_and_staging_change_no_token(name: str, seed: int, decoder: Decoder, wanted: object) -> None:
    options: dict[str, Any] = {"k_min": 2} if name == "density_first" else {}
    made, executor, _ = run(split(decoder, 80, 4, seed % 3, 400), name, decoder, "modelled", seed, **options)
    assert made == wanted
    assert executor.copier.copied_bytes["p0", "d0"]


@pytest.mark.parametrize("seed", range(20))
def test_staging_may_be_taken_back_at_any_moment(seed: int, decoder: Decoder, wanted: object) -> None:
    made, _, scheduler = run(
        split(decoder, 80, 4, seed % 3, 400),
        "density_first",
        decoder,
        "modelled",
        seed,
        revoke=0.2,
        k_min=2,
        batch_share=0.3,
    )
    assert made == wanted
    assert not scheduler.counts["failed"]


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("name", ["fcfs", "density_first"])
def test_late_and_failed_copies_and_failed_steps_change_no_token(
    name: str, seed: int, decoder: Decoder, wanted: object
) -> None:
    options: dict[str, Any] = {"k_min": 2, "batch_share": 0.3} if name == "density_first" else {"swap": True}
    cluster = split(decoder, 80, 4, seed % 3, 400) if seed % 2 else colocated(decoder, 64, 4, seed % 3, 400)
    revoke = 0.1 if seed % 2 else 0.0
    made, _, scheduler = run(cluster, name, decoder, "modelled", seed, revoke=revoke, faults=0.2, **options)
    assert made == wanted
    assert not scheduler.counts["failed"]


@pytest.mark.parametrize("kind", ["modelled", "threaded"])
@pytest.mark.parametrize("run_ahead", [0, 2])
def test_steps_whose_device_fails_under_way_change_no_token(
    kind: str, run_ahead: int, decoder: Decoder, wanted: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host hears of it by the step's event only, when other steps have been launched behind it."""
    steps, failed, whole = 0, 0, Forward._run

    def fails_now_and_then(self: Forward, work: StepWork, out: torch.Tensor) -> None:
        nonlocal steps, failed
        steps += 1
        whole(self, work, out)
        if steps % 7 == 3:
            failed += 1
            out.fill_(0)
            raise RuntimeError("an illegal memory access")

    monkeypatch.setattr(Forward, "_run", fails_now_and_then)
    made, _, scheduler = run(colocated(decoder, 64, 4, run_ahead, host=400), "fcfs", decoder, kind, 5, swap=True)
    assert made == wanted
    assert failed > 5
    assert not scheduler.counts["failed"]


def test_a_request_draws_the_same_tokens_in_any_batch(decoder: Decoder) -> None:
    sampling = Sampling(0.9, 0.95, 30, seed=5)
    one, _, _ = run(colocated(decoder, 500, 4, 1), "fcfs", decoder, "cpu", sampling=sampling)
    two, _, _ = run(colocated(decoder, 50, 4, 2), "fcfs", decoder, "modelled", sampling=sampling)
    assert one == two


@pytest.mark.parametrize("run_ahead", [0, 2])
def test_a_request_whose_numbers_are_not_finite_fails_alone(run_ahead: int, folder: Path, wanted: Any) -> None:
    config = ModelConfig.from_folder(folder)
    broken = Decoder(config, load_weights(folder, config, torch.float64, torch.device("cpu")))
    prompts = [
        (prompt, count) for prompt, count in work(24, 1) if 63 not in prompt and 63 not in wanted[tuple(prompt), count]
    ]
    broken.weights.embedding[63] = float("nan")
    cluster = colocated(broken, 500, 4, run_ahead)
    executor = TorchExecutor(cluster, make_devices("modelled", cluster, 1), {"l0": broken}, step_seconds=1e-3)
    scheduler = Scheduler(cluster, policy("fcfs"), max_horizon=HORIZON)
    jobs = [Job(Request(f"r{n}", len(p), count), np.array(p), count) for n, (p, count) in enumerate(prompts)]
    jobs.insert(2, Job(Request("bad", 3, 4), np.array([1, 63, 2]), 4))
    for job in jobs:
        executor.expect(job)
    outcomes = serve(scheduler, executor, [(0.001 * n, Arrived(job.request)) for n, job in enumerate(jobs)])
    assert [name for name, outcome in outcomes.items() if outcome is not Outcome.FINISHED] == ["bad"]
    assert len(jobs) > 3
    for job in jobs:
        assert job.id == "bad" or job.produced == wanted[tuple(job.prompt.tolist()), job.limit]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("apart", [False, True], ids=["one device", "two logical devices"])
def test_a_gpu_makes_the_tokens_of_transformers(apart: bool, folder: Path, wanted: object) -> None:
    config = ModelConfig.from_folder(folder)
    there = Decoder(config, load_weights(folder, config, torch.float64, torch.device("cuda", 0)))
    cluster = split(there, 80, 4, 1, 400) if apart else colocated(there, 64, 4, 1, host=400)
    options: dict[str, Any] = {"k_min": 2, "batch_share": 0.3} if apart else {"swap": True}
    name = "density_first" if apart else "fcfs"
    made, executor, _ = run(cluster, name, there, "cuda", seed=2, revoke=0.1 if apart else 0.0, **options)
    assert made == wanted
    assert sum(executor.copier.copied_bytes.values())
