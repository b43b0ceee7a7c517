"""What steps take: decode over a grid of batches, layers by rows, prefill chunks; how well that predicts others."""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import median

import torch

from alignedsched.cost_sheet import Curve, Sheet
from alignedsched.cost_table import TERMS, Prefill, TableCosts
from alignedsched.load import Load
from alignedsched.measured import Errors

from .bench import Bench
from .fits import errors, least_squares
from .rounds import LEAST, Rounds, Told
from .shapes import Cell, Limits, Rng, chunks, grid, lengths, unseen, unseen_chunk

UNSEEN = 48  # batches of each kind that no fit sees
WARM_UP = 5
Seconds = dict[Cell, float]


def load_of(members: Sequence[int], *parts: tuple[int, int]) -> Load:
    """What costs are asked about a batch of these lengths with these chunks."""
    return Load(len(members), sum(members), max(members, default=0), parts)


def measure_decode(bench: Bench, limits: Limits, seconds: float, rng: Rng, told: Told) -> tuple[Sheet, ...]:
    """Decode steps over the grid: the coarse half of it at least, the fine one where time allows."""
    cells = grid(limits)

    def once(cell: Cell) -> float:
        return bench.decode(lengths(cell, rng))

    coarse = [cell for cell in cells if not cell.fine]
    for cell in coarse[-WARM_UP:]:
        once(cell)
    began = time.monotonic()
    first = {cell: once(cell) for cell in coarse}
    spent = time.monotonic() - began
    enough = spent * len(cells) / len(coarse) * LEAST < seconds - spent
    found = Rounds("decode steps", seconds - spent, rng, told).run(cells if enough else coarse, once)
    medians = {cell: median([*times, *([first[cell]] if cell in first else [])]) for cell, times in found.items()}
    return sheets_of(medians)


def sheets_of(seconds: Seconds) -> tuple[Sheet, ...]:
    """A table of what was measured. Cells that no batch reaches (their longest has no positions) are extended to."""
    sheets = []
    for n in sorted({cell.n for cell in seconds}):
        mine = {(cell.mean, cell.stretch): taken for cell, taken in seconds.items() if cell.n == n}
        means, wide = sorted({mean for mean, _ in mine}), sorted({stretch for _, stretch in mine})
        level = [mine[mean, wide[0]] for mean in means]
        columns = [_column([mine.get((mean, stretch)) for mean in means], means, level) for stretch in wide]
        rows = tuple(zip(*columns, strict=True))
        sheets.append(Sheet(n, tuple(map(float, means)), tuple(wide), rows))
    return tuple(sheets)


def _column(found: list[float | None], means: Sequence[float], level: Sequence[float]) -> list[float]:
    """Seconds along mean lengths. What is missing at the end goes on as a straight line that does not fall; behind a
    single value, as batches of one length (``level``) go on.
    """
    known = [value for value in found if value is not None]
    assert found[: len(known)] == known, "what is missing are the longest"
    last = len(known) - 1
    if not last:
        return [known[0] * max(1.0, seconds / level[0]) for seconds in level]
    slope = max(0.0, (known[-1] - known[-2]) / (means[last] - means[last - 1]))
    return [*known, *(known[-1] + slope * (mean - means[last]) for mean in means[last + 1 :])]


def measure_rows(bench: Bench, most: int, seconds: float, rng: Rng, told: Told) -> Curve:
    """The layers without attention, by rows of a step."""
    place = bench.device.torch_device
    rows = [2**k for k in range(20) if 2**k < most] + [most]
    tokens = torch.arange(most, device=place) % bench.decoder.config.vocab
    positions = torch.arange(most, device=place) % bench.decoder.config.max_positions

    def through(
        layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> torch.Tensor:
        return q

    def once(count: int) -> float:
        with torch.inference_mode():
            bench.watch.start()
            bench.decoder.hidden(tokens[:count], positions[:count], through)
            return bench.watch.stop()

    for _ in range(WARM_UP):
        once(rows[-1])
    found = Rounds("layers", seconds, rng, told).medians(rows, once)
    rising, highest = [], 0.0
    for count in rows:
        highest = max(highest, found[count])
        rising.append(highest)
    return Curve(tuple(map(float, rows)), tuple(rising))


def measure_prefill(
    bench: Bench, limits: Limits, sheets: tuple[Sheet, ...], rows: Curve, seconds: float, rng: Rng, told: Told
) -> Prefill:
    """Chunks alone and beside decoding members, and the terms that explain what they take best."""
    most = bench.lane.max_tokens
    beside = max(1, min(8, limits.members // 2))
    company = [max(1, min(512, limits.mean(beside) // 2))] * beside
    keys = [(chunk, with_it) for chunk in chunks(limits, most) for with_it in (False, True)]
    keys = [
        (chunk, with_it) for chunk, with_it in keys
        if not with_it or (limits.fits([chunk[1], *company]) and chunk[1] - chunk[0] + beside <= most)
    ]  # fmt: skip

    def once(key: tuple[tuple[int, int], bool]) -> float:
        (start, end), with_it = key
        return bench.chunk(start, end, company if with_it else ())

    for key in keys[:WARM_UP]:
        once(key)
    found = Rounds("prefill chunks", seconds, rng, told).medians(keys, once)
    plain = TableCosts(sheets, Prefill(rows=rows))
    features, extra, scale = [], [], []
    for ((start, end), with_it), taken in found.items():
        size = end - start
        features.append([not with_it, size, size * (start + end + 1) / 2, 1, size * end, end])
        extra.append(taken - plain.step_seconds(load_of(company if with_it else (), (start, end))))
        scale.append(taken)
    return Prefill(**dict(zip(TERMS, least_squares(features, extra, scale).tolist(), strict=True)), rows=rows)


def held_out(
    bench: Bench, limits: Limits, costs: TableCosts, seconds: float, rng: Rng, told: Told
) -> dict[str, Errors]:
    """Errors on decode batches, chunks, and steps with both, none of which a fit has seen."""
    batches = unseen(limits, rng)
    most = bench.lane.max_tokens
    steps: list[tuple[str, tuple[int, ...], tuple[tuple[int, int], ...]]] = []
    for _ in range(UNSEEN):
        steps.append(("decode", tuple(next(batches)), ()))
        chunk = unseen_chunk(limits, most, rng)
        steps.append(("prefill", (), (chunk,)))
        members = next(batches)
        chunk = chunk[0], min(chunk[1], chunk[0] + most - len(members))
        if chunk[1] > chunk[0] and limits.fits([*members, chunk[1]]):
            steps.append(("both", tuple(members), (chunk,)))

    def once(key: tuple[str, tuple[int, ...], tuple[tuple[int, int], ...]]) -> float:
        _, members, parts = key
        return bench.chunks_beside(parts, members) if parts else bench.decode(members)

    found = Rounds("batches not seen", seconds, rng, told).medians(list(dict.fromkeys(steps)), once)
    kinds = {}
    for kind in ("decode", "prefill", "both"):
        mine = [(key, taken) for key, taken in found.items() if key[0] == kind]
        if mine:
            predicted = [costs.step_seconds(load_of(members, *parts)) for (_, members, parts), _ in mine]
            kinds[kind] = errors(predicted, [taken for _, taken in mine])
    return kinds
