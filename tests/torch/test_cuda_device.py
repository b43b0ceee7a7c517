"""The CUDA device's own bookkeeping, over a driver that only takes notes: no GPU is needed."""

from __future__ import annotations

import gc
import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from attrs import define, field

from alignedsched_torch.calibrate.bench import Bench
from alignedsched_torch.calibrate.random_model import TINY, random_decoder
from alignedsched_torch.columns import DeviceColumns
from alignedsched_torch.devices import CpuDevice, CudaDevice, Piece
from alignedsched_torch.executor import TorchExecutor
from tests.torch.serving import colocated


@define(eq=False)
class Noted:
    """A stream that does nothing."""

    device: torch.device
    priority: int = 0
    waited: list[Any] = field(factory=list)

    @property
    def device_index(self) -> int:
        return int(self.device.index)

    def wait_stream(self, other: Any) -> None:
        self.waited.append(other)


@define(eq=False)
class Driver:
    """What was made, entered and copied."""

    made: list[Noted] = field(factory=list)
    entered: list[Noted] = field(factory=list)
    copied: list[list[int]] = field(factory=list)  # the current streams' GPUs of each copy
    inside: list[int] = field(factory=list)

    def stream(self, device: torch.device, priority: int = 0) -> Noted:
        self.made.append(Noted(device, priority))
        return self.made[-1]

    @contextmanager
    def within(self, stream: Noted) -> Iterator[None]:
        self.entered.append(stream)
        self.inside.append(stream.device_index)
        yield
        self.inside.pop()

    def piece(self, target: int, source: int) -> Piece:
        """From one GPU to another; -1 is the host."""
        ends = [SimpleNamespace(is_cuda=index >= 0, device=SimpleNamespace(index=index),
                                copy_=lambda *_, **__: self.copied.append(list(self.inside)))
                for index in (target, source)]  # fmt: skip
        return Piece(ends[0], ends[1])  # type: ignore[arg-type]


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    noted = Driver()
    monkeypatch.setattr(torch.cuda, "Stream", noted.stream)
    monkeypatch.setattr(torch.cuda, "stream", noted.within)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"current of {device.index}")
    return noted


def test_copies_between_two_gpus_use_one_side_stream_that_has_waited_for_its_gpu(driver: Driver) -> None:
    stream = CudaDevice("d0", 0).stream("p0->d0")
    for _ in range(3):
        stream.copy([driver.piece(0, 1)] * 4)
    own, side = driver.made
    assert (own.device_index, side.device_index) == (0, 1)
    assert side.waited == ["current of 1"]
    assert driver.entered == [own, side] * 3, "once a copy, not once a piece"
    assert driver.copied == [[0, 1]] * 12


def test_each_piece_goes_by_the_streams_of_its_own_gpus(driver: Driver) -> None:
    stream = CudaDevice("d0", 0).stream("any")
    stream.copy([driver.piece(0, -1), driver.piece(0, 1), driver.piece(2, 0), driver.piece(-1, 0)])
    assert driver.copied == [[0, 0], [0, 1], [0, 2], [0, 0]]
    assert [side.device_index for side in driver.made] == [0, 1, 2]


def test_pinned_memory_begins_with_a_page_and_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: dict[int, int] = {}

    def register(place: int, size: int, flags: int) -> int:
        pinned[place] = size
        return 0

    runtime = SimpleNamespace(cudaHostRegister=register, cudaHostUnregister=pinned.pop)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    device = CudaDevice("d0")
    for shape in ((3, 1 << 20), (1, 5), (7, 4097)):
        tensor = device.pinned(shape, torch.bfloat16)
        assert tensor.shape == shape
        assert tensor.data_ptr() % mmap.PAGESIZE == 0
        assert pinned == {tensor.data_ptr(): 2 * tensor.numel()}
        tensor.fill_(1.0)
        del tensor
        gc.collect()
        assert not pinned
    assert device.pinned((0, 4), torch.float32).numel() == 0
    assert not pinned


class Settling(CpuDevice):
    """Writes down when memory was made and when it was waited for."""

    def __init__(self) -> None:
        super().__init__("d0")
        self.seen: list[str] = []

    def empty(self, *shape: Any, **how: Any) -> torch.Tensor:
        self.seen.append("made")
        return super().empty(*shape, **how)

    def host_ids(self, count: int) -> torch.Tensor:
        self.seen.append("made")
        return super().host_ids(count)

    def settle(self) -> None:
        self.seen.append("settled")


def test_an_executor_waits_for_its_memory_before_any_stream_uses_it() -> None:
    device, decoder = Settling(), random_decoder(TINY, torch.float32, torch.device("cpu"))
    TorchExecutor(colocated(decoder, 8, 16, 1), {"d0": device}, {"l0": decoder})
    assert device.seen.count("made") >= 2
    assert device.seen[-1] == "settled"


def test_all_that_a_chunk_step_sends_goes_the_way_that_pins_it(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, sent = random_decoder(TINY, torch.float32, torch.device("cpu")), []
    here = Bench(colocated(decoder, 8, 16, 1), {"d0": CpuDevice("d0")}, {"l0": decoder})
    send = DeviceColumns.send

    def noted(columns: DeviceColumns, values: np.ndarray[Any, Any]) -> torch.Tensor:
        sent.append(values.tolist())
        return send(columns, values)

    monkeypatch.setattr(DeviceColumns, "send", noted)
    here.chunk(16, 40, [7])
    assert sent[-4:] == [sent[-4], [0] * 23 + [40], sent[-2], [0, 24]]
    assert (len(sent[-4]), len(sent[-2])) == (3, 1), (
        "pages and tokens of the chunk, its slot, the rows that make tokens"
    )
