"""Attention by name and steps over fixed buffers: the same tokens, and nothing in a step that a CUDA graph forbids."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from alignedsched.errors import ConfigError
from alignedsched.events import Arrived
from alignedsched.registry import policy
from alignedsched.request import Request
from alignedsched.scheduler import Scheduler
from alignedsched_torch.devices import CpuDevice, CudaDevice, Device
from alignedsched_torch.devices.cpu import CpuStream
from alignedsched_torch.executor import TorchExecutor
from alignedsched_torch.fixed import sizes
from alignedsched_torch.job import Job
from alignedsched_torch.kernels.attention import TritonAttention
from alignedsched_torch.kernels.choice import NAMES, attention
from alignedsched_torch.memory import KVPool, PageShape
from alignedsched_torch.models import Decoder, ModelConfig, load_weights
from alignedsched_torch.models.attention import DecodeRows
from alignedsched_torch.sampling import Sampling
from alignedsched_torch.tiny import write_tiny
from tests.kernels.paged import PLACE
from tests.torch.serving import HORIZON, MEMBERS, colocated, serve

VOCAB = 64
# What waits for the device, makes shapes of what is in tensors, or sends a number to the device.
FORBIDDEN = ("_local_scalar_dense", "nonzero", "masked_select", "_unique", "repeat_interleave", "where.Scalar")


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    folder: Path = tmp_path_factory.mktemp("tiny")
    write_tiny(folder, "llama", vocab=VOCAB, hidden=32, layers=1, positions=256)
    config = ModelConfig.from_folder(folder)
    return Decoder(config, load_weights(folder, config, torch.float32, PLACE))


class Watch(TorchDispatchMode):
    """Writes down every operation of a step: its name, its shapes, and where what it did not make itself lies."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[tuple[str, list[Any], list[int]]] = []
        self._made: list[torch.Tensor] = []  # kept, so that no address is used twice

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        own = {tensor.untyped_storage().data_ptr() for tensor in self._made}
        places = [tensor.data_ptr() for tensor in given if tensor.untyped_storage().data_ptr() not in own]
        results = [leaf for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        outside = {tensor.untyped_storage().data_ptr() for tensor in given} - own
        self._made += [tensor for tensor in results if tensor.untyped_storage().data_ptr() not in outside]
        self.seen.append((str(func), [tuple(tensor.shape) for tensor in (*given, *results)], places))
        return out


class Recorder(CpuStream):
    """Records as a GPU does: runs the work before, and from then on only what was recorded."""

    def __init__(self) -> None:
        self.recorded_steps: list[list[Watch]] = []

    def recorded(self, work: Callable[[], object]) -> Callable[[], object]:
        work()
        runs: list[Watch] = []
        self.recorded_steps.append(runs)

        def replay() -> None:
            runs.append(Watch())
            with runs[-1]:
                work()

        return replay


class Recording(CpuDevice):
    """A CPU whose stream is a ``Recorder``."""

    def __init__(self) -> None:
        super().__init__("d0")
        self.recorder = Recorder()
        self._stream = self.recorder


def here() -> Device:
    """What kernels run on in this process."""
    return CpuDevice("d0") if PLACE.type == "cpu" else CudaDevice("d0")


def tokens(decoder: Decoder, device: Device, name: str, *, fixed: bool) -> list[list[int]]:
    """What six requests, two of which draw, make under the scheduler with short memory."""
    cluster = colocated(decoder, 14, 16, 1)
    executor = TorchExecutor(cluster, {"d0": device}, {"l0": decoder}, attention=name, fixed=fixed)
    rng = np.random.default_rng(7)
    jobs = []
    for number in range(6):
        prompt, limit = rng.integers(0, VOCAB, int(rng.choice([3, 20, 40]))), int(rng.integers(3, 12))
        way = Sampling(0.8, seed=number) if number in (2, 3) else Sampling()
        jobs.append(Job(Request(f"r{number}", len(prompt), limit), prompt, limit, way))
    for job in jobs:
        executor.expect(job)
    scheduler = Scheduler(cluster, policy("fcfs"), max_horizon=HORIZON)
    serve(scheduler, executor, [(0.0, Arrived(job.request)) for job in jobs])
    columns = executor.lanes["l0"]._table.columns
    assert int(columns.length[columns.spare]) == 0, "padding stays padding"
    return [job.produced for job in jobs]


@pytest.fixture(scope="module")
def wanted(decoder: Decoder) -> list[list[int]]:
    return tokens(decoder, here(), "torch", fixed=False)


@pytest.mark.parametrize("name", ["triton", "triton_invariant", "triton_unsplit"])
def test_every_attention_makes_the_tokens_of_torch(name: str, decoder: Decoder, wanted: list[list[int]]) -> None:
    assert tokens(decoder, here(), name, fixed=name != "triton") == wanted


@pytest.mark.skipif(PLACE.type != "cpu", reason="watches a CPU's work")
def test_a_recorded_step_is_the_same_work_over_the_same_memory_for_every_batch(
    decoder: Decoder, wanted: list[list[int]]
) -> None:
    device = Recording()
    assert tokens(decoder, device, "triton", fixed=True) == wanted
    assert len(device.recorder.recorded_steps) >= 3, "of several sizes, and with draws and without"
    assert sum(map(len, device.recorder.recorded_steps)) >= 8
    for runs in device.recorder.recorded_steps:
        for run in runs:
            assert run.seen == runs[0].seen
        assert not [name for name, *_ in runs[0].seen if any(word in name for word in FORBIDDEN)]


def test_the_watch_sees_what_a_graph_forbids() -> None:
    column = torch.zeros(4)

    def step(rows: torch.Tensor) -> None:
        column[rows] += 1.0
        if float(column.sum()) > 100:
            column.zero_()

    first, second = Watch(), Watch()
    with first:
        step(torch.tensor([1]))
    with second:
        step(torch.tensor([1, 2]))
    assert first.seen != second.seen, "shapes differ"
    assert [name for name, *_ in first.seen if any(word in name for word in FORBIDDEN)], "the host waits for a number"


def test_memory_goes_with_its_executor_before_any_garbage_is_collected(decoder: Decoder) -> None:
    gc.collect()
    gc.disable()
    try:
        for name, fixed in (("torch", False), ("triton", True), ("triton_invariant", True)):
            device = here()
            executor = TorchExecutor(
                colocated(decoder, 14, 16, 1), {"d0": device}, {"l0": decoder}, attention=name, fixed=fixed
            )
            executor.expect(Job(Request("r", 3, 4), np.arange(3), 4))
            serve(Scheduler(executor.cluster, policy("fcfs")), executor, [(0.0, Arrived(Request("r", 3, 4)))])
            pools = [weakref.ref(pool) for pool in executor.pools.values()]
            del executor
            assert [pool() for pool in pools] == [None] * len(pools), name
    finally:
        gc.enable()


def test_a_plan_is_made_for_other_rows_and_after_a_page_of_steps() -> None:
    backend = attention("triton", KVPool("d0", here(), PageShape(1, 1, 16, 16, torch.float32), 8), 1, 4)
    assert isinstance(backend, TritonAttention)
    assert backend.work is not None
    ids = torch.zeros(2, dtype=torch.int64)
    plans = []
    for step in range(34):
        version = 1 if step < 32 else step
        backend.prepare(DecodeRows(ids, ids[None], ids, np.array([40, 3]) + step, version))
        plans.append(backend.work.loaded)
    for first, last in ((0, 16), (16, 32)):
        assert all(plan is plans[first] for plan in plans[first:last])
    assert len(set(map(id, plans))) == 4


def test_steps_are_padded_to_few_sizes_with_little_waste() -> None:
    for members in (1, 3, 8, 100, 256, 1000):
        of = sizes(members)
        assert of == sorted(set(of))
        assert of[-1] == members
        assert len(of) <= 12 + members // 32
        for rows in range(1, members + 1):
            size = next(size for size in of if size >= rows)
            assert size - rows <= max(rows, 31) if rows < 8 else size - rows <= 31


def pool(dtype: torch.dtype) -> KVPool:
    return KVPool("d0", CpuDevice(), PageShape(1, 1, 16, 16, dtype), 2)


def test_an_attention_that_cannot_be_had_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert attention("auto", pool(torch.float32), 1, 4).name == "torch", "interpreted kernels are for tests"
    with pytest.raises(ConfigError, match=r"attention 'flash' is not known; known: auto, torch, triton"):
        attention("flash", pool(torch.float32), 1, 4)
    with pytest.raises(ConfigError, match=r"'triton' computes in float32 at most, and the model's dtype is float64"):
        attention("triton", pool(torch.float64), 1, 4)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(ConfigError, match=r"'triton' needs a CUDA device \(or TRITON_INTERPRET=1"):
        attention("triton", pool(torch.float32), 1, 4)
    monkeypatch.setattr("alignedsched_torch.kernels.choice.find_spec", lambda name: None)
    for name, package in (("triton_unsplit", "triton"), ("flashinfer", "flashinfer")):
        with pytest.raises(ConfigError, match=f"'{name}' needs the package {package}, which is not installed"):
            attention(name, pool(torch.float32), 1, 4)
    assert attention("auto", pool(torch.float32), 1, 4).name == "torch"
    assert set(NAMES) == {"auto", "torch", "triton", "triton_invariant", "triton_unsplit", "flashinfer"}
    assert MEMBERS >= 6
