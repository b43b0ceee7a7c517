"""The switch of a 4 GiB batch, modelled: how long decoding stands still, staged against direct.

    python -m benchmarks.switch [--json benchmarks/results/switch.json]

A batch of 64 requests lies in host memory and shall decode on ``d0`` next. *Direct*: all of it comes over the PCIe 5
link of ``d0`` when the switch begins. *Staged*: it was brought to the helper ``p0`` over that device's own PCIe 5 link
before, and comes over NVLink 4 at the switch; how long the staging took beforehand is told too. *Split*: nothing was
staged, and when the switch begins each chunk comes over the link of ``d0`` or through one of four slots on ``p0``.
Overlap with the last steps of the batch before is left out: the stall is from the first copy of the switch to the last
completion.

What is modelled: time and bytes. The plans go through the real executor, copier and staging ring on modelled devices,
whose links have the rates and latencies of ``alignedsched.hardware``. A page of the model has 1/256 of its bytes, and
links and chunk sizes are divided by 256 as well, so every copy has the pieces and takes the seconds of the full size
while 16 MiB are really moved. Contention with other traffic, pinning and launch costs are not modelled.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from alignedsched.cluster import HOST, Cluster, Device, KVLayout, Lane, Link, Role
from alignedsched.events import CopyDone
from alignedsched.hardware import link_named
from alignedsched.plan import Copy, Plan
from alignedsched_torch.devices import Clock, ModelledDevice, ModelledLink
from alignedsched_torch.executor import TorchExecutor
from alignedsched_torch.memory import copier
from alignedsched_torch.models import Decoder, ModelConfig, load_weights
from alignedsched_torch.tiny import write_tiny

BATCH, REQUESTS, PAGE, SCALE = 4 << 30, 64, 16, 256
STAGING, SLOTS = "p0+staging", 4
PCIE, NVLINK = "pcie5", "nvlink4"


def decoder() -> Decoder:
    """A tiny model: of KV it makes 512 bytes a token, 1/256 of Llama-3.1-8B's 131,072."""
    with tempfile.TemporaryDirectory() as place:
        write_tiny(Path(place), "llama", vocab=32, hidden=32, layers=4, heads=4, kv_heads=2)
        config = ModelConfig.from_folder(Path(place))
        return Decoder(config, load_weights(Path(place), config, torch.float32, torch.device("cpu")))


class Switch:
    """An executor on modelled devices, with a batch in host memory."""

    def __init__(self, model: Decoder, batch: int, requests: int, slots: int = 0) -> None:
        config = model.config
        token = config.layers * 2 * config.kv_heads * config.head_dim * 4
        self.tokens = batch // SCALE // token // requests
        self.names = [f"r{number}" for number in range(requests)]
        blocks = requests * -(-self.tokens // PAGE)
        ways = {(HOST, "p0"): PCIE, (HOST, "d0"): PCIE, ("p0", "d0"): NVLINK}
        speeds = {ends: link_named(name) for ends, name in ways.items()}
        cluster = Cluster(
            (Device("p0", Role.PREFILL, 0, blocks), Device("d0", Role.DECODE, blocks)),
            (Lane("lp", ("p0",)), Lane("ld", ("d0",))),
            blocks,
            tuple(Link(*ends, speed.bytes_per_s / SCALE, speed.latency_s) for ends, speed in speeds.items()),
            KVLayout(PAGE, token),
        )
        self.clock = Clock({f"{k.source}->{k.target}": ModelledLink(k.bytes_per_s, k.latency_s) for k in cluster.links})
        devices = {name: ModelledDevice(name, self.clock) for name in ("p0", "d0")}
        self.executor = TorchExecutor(cluster, devices, {"lp": model, "ld": model}, relay_slots=slots)
        self.copies = 0
        for number, name in enumerate(self.names):
            pool = self.executor.pools[HOST]
            pool.hold(name, self.tokens)
            pool.data[pool.pages(name)] = float(number)

    def move(self, source: str, target: str) -> float:
        """Copy the batch; seconds from the plan to the last completion. Raises RuntimeError if a copy fails."""
        began = self.clock.now
        copies = [
            Copy(self.copies + 1 + number, name, source, target, 0, self.tokens)
            for number, name in enumerate(self.names)
        ]
        self.copies += len(copies)
        self.executor.submit(Plan(copies=tuple(copies)))
        left = len(copies)
        while left:
            for event in self.executor.wait(None):
                if not isinstance(event, CopyDone):
                    raise RuntimeError(f"{source} to {target}: {event}")
                left -= 1
        pool = self.executor.pools[target]
        for number, name in enumerate(self.names):
            if not bool((pool.data[pool.pages(name)] == float(number)).all()):
                raise RuntimeError(f"{name!r} arrived wrong in {target!r}")
        return self.clock.now - began


def measure(batch: int = BATCH, requests: int = REQUESTS) -> dict[str, Any]:
    """Every route, each on a fresh executor."""
    model = decoder()
    chunks = copier.HOST_CHUNK_BYTES, copier.PEER_CHUNK_BYTES
    copier.HOST_CHUNK_BYTES, copier.PEER_CHUNK_BYTES = chunks[0] // SCALE, chunks[1] // SCALE
    try:
        direct = Switch(model, batch, requests).move(HOST, "d0")
        split = Switch(model, batch, requests, SLOTS).move(HOST, "d0")
        staged = Switch(model, batch, requests)
        ahead, stall = staged.move(HOST, STAGING), staged.move(STAGING, "d0")
    finally:
        copier.HOST_CHUNK_BYTES, copier.PEER_CHUNK_BYTES = chunks
    links = {name: link_named(name) for name in (PCIE, NVLINK)}
    return {
        "what": "modelled stall of a switch of batches; no GPU was measured",
        "modelled": True,
        "batch_bytes": batch,
        "requests": requests,
        "tokens_each": staged.tokens,
        "links": {n: {"bytes_per_s": s.bytes_per_s, "latency_s": s.latency_s} for n, s in links.items()},
        "stall_ms": {"direct": round(1e3 * direct, 2), "split": round(1e3 * split, 2), "staged": round(1e3 * stall, 2)},
        "split_slots": SLOTS,
        "staging_ahead_ms": round(1e3 * ahead, 2),
        "bytes_really_moved_each": batch // SCALE,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    result = measure()
    print(f"switch of {BATCH >> 30} GiB, {REQUESTS} requests (modelled)")
    print(f"{'route':<10}{'stall ms':>10}{'ahead ms':>10}")
    for route, stall in result["stall_ms"].items():
        print(f"{route:<10}{stall:>10.2f}{result['staging_ahead_ms'] if route == 'staged' else 0:>10.2f}")
    if given.json is not None:
        given.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
