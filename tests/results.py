"""Results in the promised form, made by hand: what the tests of the report and of the command print and check."""

from __future__ import annotations

from typing import Any

from alignedsched.report.schema import LATENCIES

TOKENS = 50_000


def a_run(policy: str, speed: float = 1.0) -> dict[str, Any]:
    """One run of 100 requests that takes 1000 simulated seconds at speed 1."""
    simulated = 1000.0 / speed
    latency = {
        kind: {"mean": 0.02 * n / speed, "p50": 0.01 * n / speed, "p90": 0.05 * n / speed, "p99": 0.5 * n / speed}
        | {"max": 2.0 * n / speed}
        for n, kind in enumerate(LATENCIES, start=1)
    }
    return {
        "policy": policy,
        "requests": {"arrived": 100, "finished": 100, "cancelled": 0, "rejected": 0, "failed": 0},
        "output_tokens": TOKENS,
        "simulated_s": simulated,
        "wall_s": 1.25,
        "steps": 4321,
        "events": 1234,
        "throughput_tok_s": TOKENS / simulated,
        "latency_s": latency,
        "bubbles": {"iteration": 0.125, "batch": 0.01, "copy_stall": 0.0},
        "copies": {
            "host_to_device_bytes": 1_500_000_000,
            "device_to_host_bytes": 0,
            "peer_bytes": 20,
            "staged_bytes": 3,
        },
        "preemptions": 7,
        "bound_s": 100.0,
        "bound_ratio": 100.0 / simulated,
    }


def a_result(*runs: dict[str, Any], workload: str = "mooncake") -> dict[str, Any]:
    """A whole result around runs."""
    return {
        "version": 1,
        "workload": {"name": workload, "requests": 100, "prompt_tokens": 1_200_000, "output_tokens": TOKENS},
        "hardware": "h100",
        "model": "llama-3.1-8b",
        "surface": "gated",
        "topology": "colocated",
        "load": 0.9,
        "seed": 0,
        "lanes": 1,
        "rate_scale": None,
        "offline": False,
        "staging": True,
        "runs": list(runs),
    }
