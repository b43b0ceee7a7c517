"""Scattered pages between host and device against one large copy; and decoding beside a prefetch.

A page holds 64 tokens of all layers (8 MiB for Llama-3.1-8B), or 16 (2 MiB). Pages are copied as the executor does it,
piece by piece on one stream, and by the one-kernel move that reads pinned memory in place.
"""

from __future__ import annotations

import time
from importlib.util import find_spec
from statistics import median

import numpy as np
import torch

from alignedsched_torch.devices import CpuDevice, CudaDevice, Device, Piece
from benchmarks.gpu_timing import Record, Size, Timer, Work

PIECES = (8 << 20, 2 << 20, 256 << 10, 64 << 10, 16 << 10)  # bytes: pages of 64 and 16 tokens, and parts of pages
TOTAL = 1 << 30
MOST = 4096  # pieces of one size


def copies(record: Record, size: Size) -> None:
    """Both directions, every size of pieces, by copies and by the kernel; then both directions at once."""
    device: Device = CpuDevice() if size.smoke else CudaDevice("d0")
    timer = Timer(size)
    total = size.pick(TOTAL, 1 << 18)
    here, there = device.empty((total,), torch.uint8), device.pinned((total,), torch.uint8)
    here.fill_(1)
    there.fill_(2)
    ways = {"host->device": (there, here), "device->host": (here, there)}
    for way, (source, target) in ways.items():
        seconds = _timed(timer, device, [Piece(target, source)])
        record.put("copy", way=way, how="one copy", piece_bytes=total, bytes_per_s=total / seconds)
        for piece in size.pick(PIECES, (4096,)):
            record.attempt(f"{way}, pieces of {piece}", lambda way=way, piece=piece, source=source, target=target:  # type: ignore[misc]
                           _scattered(record, timer, device, way, source, target, piece))  # fmt: skip
    half = total // 2
    both = [Piece(here[:half], there[:half])], [Piece(there[half:], here[half:])]
    record.attempt("both ways at once", lambda: _both(record, timer, device, both, half))


def _scattered(
    record: Record, timer: Timer, device: Device, way: str, source: torch.Tensor, target: torch.Tensor, size: int
) -> None:
    """Pages between places drawn at random: by copies one by one, then by one kernel."""
    places = source.numel() // size
    count = min(places, MOST)
    rng = np.random.default_rng(0)
    read, written = (rng.permutation(places)[:count] for _ in range(2))
    pieces = [
        Piece(target[b * size : (b + 1) * size], source[a * size : (a + 1) * size])
        for a, b in zip(read.tolist(), written.tolist(), strict=True)
    ]
    seconds = _timed(timer, device, pieces)
    record.put("copy", way=way, how="copies", piece_bytes=size, pieces=count, bytes_per_s=count * size / seconds)
    if timer.gpu and find_spec("triton") is not None:
        from alignedsched_torch.kernels.pages import move_pages

        ids = [torch.from_numpy(which).to(device.torch_device) for which in (read, written)]
        pages = [side[: places * size].view(places, size) for side in (source, target)]
        seconds = timer.seconds(lambda: move_pages(pages[0], ids[0], pages[1], ids[1]), repeats=5)
        record.put(
            "copy", way=way, how="one kernel", piece_bytes=size, pieces=count, bytes_per_s=count * size / seconds
        )


def _timed(timer: Timer, device: Device, pieces: list[Piece]) -> float:
    """Seconds of copies on a stream of their own, from before the first is queued: queuing many takes its time too."""
    stream = device.stream("copies")

    def work() -> None:
        stream.copy(pieces)
        stream.record().wait()

    return _wall(timer, work)


def _wall(timer: Timer, work: Work) -> float:
    """Median of real seconds, the device idle at both ends."""
    found = []
    for _ in range(7 if timer.gpu else 2):
        if timer.gpu:
            torch.cuda.synchronize()
        began = time.perf_counter()
        work()
        if timer.gpu:
            torch.cuda.synchronize()
        found.append(time.perf_counter() - began)
    return median(found[1:])


def _both(record: Record, timer: Timer, device: Device, both: tuple[list[Piece], list[Piece]], half: int) -> None:
    """Half the bytes each way, at once: each direction's rate."""
    streams = [device.stream("copies in"), device.stream("copies out")]

    def work() -> None:
        for stream, pieces in zip(streams, both, strict=True):
            stream.copy(pieces)
        for stream in streams:
            stream.record().wait()

    record.put("copy", way="both ways", how="one copy each", piece_bytes=half, bytes_per_s=half / _wall(timer, work))
