"""What aligning, or holding the members below the gate, would gain on this GPU's own surfaces.

Whole steps of Llama-3.1-8B's shape are put together from what was measured: a model of one layer without attention, by
rows, 31 times what a second layer adds, 32 times the fitted attention of each kernel, the head. Then workloads run
offline in simulation: `fcfs`, the default policy, `fcfs` with fewer members than the gate, and `fcfs` if imbalance cost
nothing. Workloads are those synthesised from fits to published traces; a trace file of one's own goes with ``--trace``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from attrs import evolve, frozen

from alignedsched.arrays import FloatArray
from alignedsched.cost_sheet import Curve
from alignedsched.load import Load, check_uniform
from alignedsched.registry import policy
from alignedsched.sim.build import build
from alignedsched.sim.run import run
from alignedsched.workloads import Workload, read_trace
from alignedsched.workloads import workload as built_in
from alignedsched_torch.calibrate.random_model import LLAMA_8B, TINY, random_decoder
from benchmarks.gpu_surface import Surface
from benchmarks.gpu_timing import Record, Size, Timer

ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
WORKLOADS = ("azure-conv", "mooncake", "reasoning", "m-large")
REQUESTS = 300
PREFILL = 4096  # tokens


@frozen(eq=False)
class FittedCosts:
    """Costs of a whole step: rows through the layers, and each layer's attention on a fitted surface."""

    layers: int
    rows: Curve  # of all layers and the head
    attention: Surface  # of one layer
    per_pair: float

    @property
    def surface(self) -> str:
        """See Costs."""
        return self.attention.name

    def step_seconds(self, load: Load) -> float:
        """See Costs."""
        return self._seconds(load, self.attention)

    def balanced_seconds(self, load: Load) -> float:
        """See Costs."""
        return self._seconds(load, evolve(self.attention, gate=None))

    def _seconds(self, load: Load, attention: Surface) -> float:
        if not (load.n or load.chunks):
            return 0.0
        rows = load.n + sum(end - start for start, end in load.chunks)
        pairs = sum((end - start) * (start + end + 1) / 2 for start, end in load.chunks)
        seconds = self.rows.at(rows) + self.per_pair * pairs
        if load.n:
            seconds += self.layers * attention.seconds(load.n, load.total, load.longest)
        return seconds

    def finishing_times(self, load: Load, steps: int) -> FloatArray:
        """See Costs."""
        check_uniform(steps, load)
        if not load.n:
            return np.zeros(steps)
        ahead, a = np.arange(steps, dtype=np.float64), self.attention
        busy = a.d * (load.total + load.n * ahead)
        if a.gate is not None and load.n >= a.gate:
            np.maximum(busy, a.s * (load.longest + ahead), out=busy)
        return np.cumsum(self.layers * (a.a + a.b * load.n + busy) + self.rows.at(load.n))


def gain(record: Record, size: Size, surfaces: Sequence[dict[str, Any]], traces: Sequence[str]) -> None:
    """``surfaces``: the rows that the section ``surface`` found for one number of KV heads, the shape's own."""
    layers, rows, per_pair = _linear(record, size)
    for found in surfaces:
        fit = Surface(found["a"], found["b"], found["d"], found["s"], found["gate"])
        costs = FittedCosts(layers, rows, fit, per_pair)
        for work in _workloads(size, traces):
            record.attempt(f"{found['kernel']}, {work.name}", lambda found=found, costs=costs, work=work: _gains(  # type: ignore[misc]
                record, found["kernel"], costs, work))  # fmt: skip


def _linear(record: Record, size: Size) -> tuple[int, Curve, float]:
    """Layers of the shape, seconds of all of them and the head by rows, and of a query-key pair of prefill."""
    raw = size.pick(LLAMA_8B, TINY)
    decoder, two = (random_decoder(raw | {"num_hidden_layers": n}, size.dtype, size.device) for n in (1, 2))
    timer, layers = Timer(size), int(raw["num_hidden_layers"])

    def through(
        layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> torch.Tensor:
        return q

    seconds, highest = [], 0.0
    counts = size.pick(ROWS, (1, 8, 64))
    with torch.inference_mode():
        for count in counts:
            ids = torch.arange(count, device=size.device)
            first, both = (timer.seconds(lambda ids=ids, of=of: of.hidden(ids, ids, through)) for of in (decoder, two))  # type: ignore[misc]
            sampled = min(count, 256)  # of prefill rows only the last one has a next token
            hidden = torch.zeros((sampled, decoder.config.hidden), dtype=size.dtype, device=size.device)
            head = timer.seconds(lambda hidden=hidden: decoder.logits(hidden))  # type: ignore[misc]
            # Embedding, angles and the last norm come once a step, whatever the layers.
            highest = max(highest, first + (layers - 1) * max(0.0, both - first) + head)
            seconds.append(highest)
        tokens = size.pick(PREFILL, 32)
        shape = (1, decoder.heads, tokens, decoder.config.head_dim)
        q, k, v = (torch.randn(shape, device=size.device).to(size.dtype) for _ in range(3))
        attend = torch.nn.functional.scaled_dot_product_attention
        prefill = timer.seconds(lambda: attend(q, k, v, is_causal=True))
    per_pair = layers * prefill / (tokens * (tokens + 1) / 2)
    rows = Curve(tuple(map(float, counts)), tuple(seconds))
    record.put("layers", rows=list(counts), seconds=seconds, prefill_s_per_pair=per_pair)
    return layers, rows, per_pair


def _workloads(size: Size, traces: Sequence[str]) -> list[Workload]:
    count = size.pick(REQUESTS, 6)
    found = [built_in(name, seed=0, n=count) for name in size.pick(WORKLOADS, ("azure-conv",))]
    for trace in traces:
        with read_trace(trace, None, limit=count) as reader:
            found.append(Workload.from_rows(trace, reader))
    return [work.offline() for work in found]


def _gains(record: Record, kernel: str, costs: FittedCosts, work: Workload) -> None:
    """Output tokens a second of each way to schedule one workload, and against plain `fcfs`."""
    cluster = build("h200", "llama-3.1-8b", topology="colocated", lanes=1, surface="gated", staging=False).cluster
    gate = costs.attention.gate
    ways: dict[str, tuple[str, FittedCosts, int | None]] = {
        "fcfs": ("fcfs", costs, None),
        "cost_aligned": ("cost_aligned", costs, None),
    }
    if gate is not None:
        ways["imbalance free"] = ("fcfs", evolve(costs, attention=evolve(costs.attention, gate=None)), None)
        if gate > 1:
            ways["below the gate"] = ("fcfs", costs, gate - 1)
    made: dict[str, float] = {}
    bubble: dict[str, float] = {}
    for way, (name, shown, most) in ways.items():
        lanes = cluster.lanes if most is None else tuple(evolve(lane, max_members=most) for lane in cluster.lanes)
        here = evolve(cluster, lanes=lanes)
        got = run(work, here, dict.fromkeys(here.lane, shown), policy(name), published=shown).figures
        made[way], bubble[way] = got["throughput_tok_s"], got["bubbles"]["iteration"]
    record.put(
        "gain", kernel=kernel, workload=work.name, requests=len(work), surface=costs.surface, throughput_tok_s=made,
        against_fcfs={way: value / made["fcfs"] for way, value in made.items()}, iteration_bubble=bubble,
    )  # fmt: skip
