"""What copies take: whole ones through the executor, scattered pieces by their size, and both beside decoding."""

from __future__ import annotations

from statistics import median

import torch
from attrs import evolve

from alignedsched.cluster import HOST
from alignedsched.measured import MeasuredLink

from ..devices import Device, Piece
from .bench import Bench
from .fits import errors, least_squares
from .rounds import Rounds, Told
from .shapes import Limits, Rng
from .stopwatch import Stopwatch

SMALLEST = 4 << 10  # bytes of a piece
AT_ONCE = 64 << 20  # bytes of the largest piece, and of all pieces of one size together
MOST_PIECES = 2048  # of one size: each is some microseconds of Python
MOST_STEPS, MOST_BESIDE = 64, 1 << 30  # beside each other: steps, and bytes of a copy


def measure_links(bench: Bench, limits: Limits, seconds: float, rng: Rng, told: Told) -> dict[str, MeasuredLink]:
    """Both directions between host and device; nothing where the cluster has no host memory."""
    if HOST not in bench.cluster.tiers:
        return {}
    device = bench.lane.ranks[0]
    here, there = bench.device.empty((AT_ONCE,), torch.uint8), bench.device.pinned((AT_ONCE,), torch.uint8)
    here.fill_(1)
    there.fill_(2)
    ways = {"host->device": (HOST, device, there, here), "device->host": (device, HOST, here, there)}
    links = {}
    for name, (source, target, read, written) in ways.items():
        link = _line(bench, name, source, target, seconds * 0.2, rng, told)
        rounds = Rounds(f"pieces {name}", seconds * 0.15, rng, told)
        speeds = _pieces(bench.device, name, read, written, rounds)
        copy_left, step_left = _beside(bench, limits, source, target, name, seconds * 0.15, rng, told)
        links[name] = evolve(link, pieces=speeds, copy_beside=copy_left, step_beside=step_left)
    return links


def measure_peers(bench: Bench, source: str, target: str, seconds: float, rng: Rng, told: Told) -> MeasuredLink:
    """From one device's KV memory to another's."""
    return _line(bench, "device->device", source, target, seconds, rng, told)


def _line(bench: Bench, name: str, source: str, target: str, seconds: float, rng: Rng, told: Told) -> MeasuredLink:
    """Whole copies of more and more tokens, and the straight line through them."""
    page = bench.cluster.layout.block_size
    room = min(bench.cluster.tiers[tier].blocks for tier in (source, target)) * page
    sizes = [page * 4**k for k in range(12) if page * 4**k < room * 0.7] + [room]
    bench.copy(source, target, sizes[-1])
    found = Rounds(f"copies {name}", seconds, rng, told).medians(
        sizes, lambda tokens: bench.copy(source, target, tokens)
    )
    moved = [bench.cluster.layout.copy_bytes(0, tokens) for tokens in found]
    taken = list(found.values())
    latency, per_byte = least_squares([[1.0, size] for size in moved], taken, taken).tolist()
    if not per_byte:  # too small to tell: the largest copy's own speed
        latency, per_byte = 0.0, taken[-1] / moved[-1]
    off = errors([latency + per_byte * size for size in moved], taken)
    return MeasuredLink(1.0 / per_byte, latency, off.p50)


def _pieces(device: Device, name: str, source: torch.Tensor, target: torch.Tensor, rounds: Rounds) -> dict[int, float]:
    """Bytes a second by size of the pieces, which lie scattered at both ends."""
    sizes = [SMALLEST * 4**k for k in range(12) if SMALLEST * 4**k <= source.numel()]
    watch, stream = Stopwatch(device), device.stream(name)

    def once(size: int) -> float:
        pieces = scattered(source, target, size, rounds.rng)
        watch.start()
        stream.copy(pieces)
        stream.record().wait()
        return watch.stop() / sum(piece.bytes for piece in pieces)

    once(sizes[-1])
    return {size: 1.0 / each for size, each in rounds.medians(sizes, once).items()}


def scattered(source: torch.Tensor, target: torch.Tensor, size: int, rng: Rng, most: int = MOST_PIECES) -> list[Piece]:
    """At most so many pieces of one size between places drawn at random, none twice."""
    places = source.numel() // size
    ways = zip(rng.permutation(places)[:most].tolist(), rng.permutation(places)[:most].tolist(), strict=True)
    return [Piece(target[b * size : (b + 1) * size], source[a * size : (a + 1) * size]) for a, b in ways]


def _beside(
    bench: Bench, limits: Limits, source: str, target: str, name: str, seconds: float, rng: Rng, told: Told
) -> tuple[float, float]:
    """Shares of their own speed that a copy and the steps beside it keep, both for about as long."""
    n = max(1, min(16, limits.members))
    company = [max(2, min(1024, limits.mean(n) // 2) - MOST_STEPS)] * n
    page = bench.cluster.layout.block_size
    tiers, seated = bench.cluster.tiers, sum(-(-(length + MOST_STEPS) // page) for length in company)
    room = min(tiers[bench.lane.ranks[0]].blocks - seated, tiers[HOST].blocks) * page
    tokens = max(page, min(room, MOST_BESIDE // bench.cluster.layout.bytes_per_token) // page * page)
    steps = max(1, min(MOST_STEPS, round(bench.copy(source, target, tokens) / bench.decode(company))))
    both: dict[str, list[float]] = {"steps": [], "copy": []}

    def once(key: str) -> float:
        if key == "steps":
            return bench.beside(company, steps)[0]
        if key == "copy":
            return bench.copy(source, target, tokens)
        for what, taken in zip(("steps", "copy"), bench.beside(company, steps, source, target, tokens), strict=True):
            both[what].append(taken)
        return both["steps"][-1]

    alone = Rounds(f"copies {name} beside decoding", seconds, rng, told).medians(("steps", "copy", "both"), once)
    copy_left, step_left = (min(1.0, alone[what] / median(both[what])) for what in ("copy", "steps"))
    return copy_left, step_left
