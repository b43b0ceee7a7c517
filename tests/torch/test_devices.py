"""What every device promises: order within a stream, events between streams; and how a forgotten wait shows."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alignedsched_torch.devices import (
    Clock,
    CpuDevice,
    CudaDevice,
    Device,
    DeviceError,
    ModelledDevice,
    ModelledLink,
    Piece,
    ThreadedDevice,
)

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
KINDS: dict[str, Callable[[], Device]] = {
    "cpu": CpuDevice,
    "modelled": lambda: ModelledDevice("d", Clock({"a->b": ModelledLink(1e3, 1e-3)})),
    "threaded": lambda: ThreadedDevice("d", 1, 0.002),
    "cuda": lambda: CudaDevice("d"),
}


@pytest.fixture(params=[*list(KINDS)[:3], pytest.param("cuda", marks=needs_cuda)])
def device(request: pytest.FixtureRequest) -> Device:
    return KINDS[request.param]()


def modelled(seed: int = 0) -> ModelledDevice:
    return ModelledDevice("d", Clock({"a->b": ModelledLink(1e3, 1e-3)}, seed))


def full(device: Device, value: float, count: int = 4) -> torch.Tensor:
    return device.empty((count,), torch.float64).fill_(value)


def test_work_on_a_stream_runs_in_order_and_the_event_comes_behind_it(device: Device) -> None:
    stream = device.stream("compute")
    ran: list[int] = []
    for number in range(30):
        stream.launch(partial(ran.append, number), 0.001)
    event = stream.record()
    event.wait()
    assert event.done()
    assert ran == list(range(30))
    assert device.stream("compute") is stream


def test_who_waits_for_an_event_reads_what_came_before_it(device: Device) -> None:
    source, target, out = full(device, 1.0), full(device, 0.0), full(device, 0.0)
    compute, side = device.stream("compute"), device.stream("side")
    for step in range(5):
        compute.launch(partial(source.fill_, step), 0.01)
        side.wait(compute.record())
        side.copy([Piece(target[:2], source[:2]), Piece(target[2:], source[2:])], "a->b")
        compute.wait(side.record())
        compute.launch(lambda: out.add_(target), 0.01)
    compute.record().wait()
    assert out.tolist() == [10.0] * 4


def test_memory_has_the_shape_asked_for_and_is_poisoned_where_that_is_said(device: Device) -> None:
    for tensor in (device.empty((2, 3), torch.float32), device.pinned((2, 3), torch.float32)):
        assert tensor.shape == (2, 3)
        assert tensor.dtype is torch.float32
        tensor.zero_()
        device.scribble(tensor)
        assert bool(tensor.isnan().all()) == device.poisons
    assert device.host_ids(3).shape == (3,)
    assert bool(device.empty((4,), torch.float64).isnan().all()) == device.poisons


def test_time_goes_on_while_the_host_is_idle(device: Device) -> None:
    until, last = device.now() + 0.001, device.now()
    while device.now() < until:
        device.idle(until)
        assert device.now() >= last
        last = device.now()


@given(st.integers(0, 1000), st.floats(0.0, 0.5))
def test_a_missing_wait_for_a_copy_reads_garbage_every_time(seed: int, seconds: float) -> None:
    """The work runs at its start or at its end, by a coin: before the copy is over it finds NaN either way."""
    device = modelled(seed)
    source, target, out = full(device, 1.0, 1000), full(device, 0.0, 1000), full(device, 0.0, 1000)
    device.stream("side").copy([Piece(target, source)], "a->b")  # takes 8.001 s
    compute = device.stream("compute")
    compute.launch(lambda: out.copy_(target), seconds)
    compute.record().wait()
    assert bool(out.isnan().all())


@given(st.integers(0, 1000))
def test_a_source_that_is_given_back_too_early_arrives_as_garbage(seed: int) -> None:
    device = modelled(seed)
    source, target = full(device, 1.0), full(device, 0.0)
    stream = device.stream("side")
    stream.copy([Piece(target, source)], "a->b")
    device.scribble(source)
    stream.record().wait()
    assert bool(target.isnan().all())


def test_work_may_start_too_early_or_end_too_late_for_who_does_not_wait() -> None:
    seen = set()
    for seed in range(20):
        device = modelled(seed)
        out = full(device, 0.0)
        device.stream("compute").launch(partial(out.fill_, 1.0), 1.0)
        device.idle(0.5)
        seen.add(float(out[0]))
    assert seen == {0.0, 1.0}


def test_copies_over_one_link_take_turns_and_over_two_do_not() -> None:
    clock = Clock({"a->b": ModelledLink(1e3, 0.5), "c->b": ModelledLink(1e3)})
    device = ModelledDevice("d", clock)
    pieces = [Piece(full(device, 0.0, 125), full(device, 1.0, 125))]  # a second each
    one, two, three = (device.stream(name) for name in "xyz")
    one.copy(pieces, "a->b")
    two.copy(pieces, "a->b")
    three.copy(pieces, "c->b")
    ends = []
    for stream in (three, one, two):
        stream.record().wait()
        ends.append(device.now())
    assert ends == pytest.approx([1.0, 1.5, 3.0])


@pytest.mark.parametrize("kind", ["modelled", "threaded"])
def test_work_that_fails_is_told_by_the_next_event_and_by_no_later_one(kind: str) -> None:
    device = KINDS[kind]()
    stream = device.stream("compute")

    def fail() -> None:
        raise RuntimeError("broken")

    before = stream.record()
    stream.launch(fail, 0.1)
    behind = stream.record()
    stream.launch(lambda: None, 0.1)
    after = stream.record()
    before.wait()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="broken"):
            behind.wait()
        with pytest.raises(RuntimeError, match="broken"):
            behind.done()
    after.wait()
    assert after.done()


@pytest.mark.parametrize("kind", ["modelled", "threaded"])
def test_a_copy_over_a_link_that_is_down_fails_and_leaves_garbage(kind: str) -> None:
    down = {"a->b"}
    clock = Clock({"a->b": ModelledLink(1e3)})
    clock.down = down
    device: Device = ModelledDevice("d", clock) if kind == "modelled" else ThreadedDevice("d", down=down)
    source, target = full(device, 1.0), full(device, 0.0)
    stream = device.stream("side")
    stream.copy([Piece(target, source)], "a->b")
    with pytest.raises(DeviceError, match="link a->b is down"):
        stream.record().wait()
    assert bool(target.isnan().all())
    down.clear()
    stream.copy([Piece(target, source)], "a->b")
    stream.record().wait()
    assert target.tolist() == [1.0] * 4


@needs_cuda
def test_a_gpu_under_two_names_orders_its_copies_by_events_alone() -> None:
    one, two = CudaDevice("p0"), CudaDevice("d0")
    source, target = full(one, 1.0, 1 << 20), full(two, 0.0, 1 << 20)
    compute, side = one.stream("compute"), two.stream("side")
    compute.launch(lambda: torch.cuda._sleep(50_000_000))
    compute.launch(lambda: source.fill_(2.0))
    side.wait(compute.record())
    side.copy([Piece(target, source)])
    side.record().wait()
    assert bool((target == 2.0).all())


@needs_cuda
def test_host_memory_is_pinned_as_large_as_asked_and_can_be_pinned_again() -> None:
    device = CudaDevice("d")
    for _ in range(50):  # the allocator gives the same place again
        tensor = device.pinned((3, 1 << 20), torch.bfloat16)
        assert tensor.is_pinned()
        assert tensor.shape == (3, 1 << 20)
        del tensor
    assert device.pinned((0, 4), torch.float32).numel() == 0
