"""Random lives of staged KV on modelled devices (``staged_life``), many of them, and what was met in them.

    python -m benchmarks.staging_lives --lives 10000 [--json benchmarks/results/staging_lives.json]

A life is 80 random actions. By its seed the helper lends no, one, two or three slots to split copies.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import torch

from benchmarks.staged_life import Life, World, small_chunks

ACTIONS = 80


def measure(lives: int, seed: int = 0) -> dict[str, Any]:
    """So many lives from a seed on. Raises AssertionError, after the seed, at the first that goes wrong."""
    met: Counter[str] = Counter()
    copies = 0
    began = time.monotonic()
    for number in range(seed, seed + lives):
        life = Life(World.make(number, slots=number % 4), Random(number))
        try:
            life.live(ACTIONS)
        except AssertionError as error:
            raise AssertionError(f"seed {number}: {error}") from error
        met += life.met
        copies += life.asked
    return {
        "what": "random staging lives on modelled devices: no wrong byte, no lost page, no stuck slot",
        "lives": lives,
        "actions": lives * ACTIONS,
        "first_seed": seed,
        "copies": copies,
        "met": dict(sorted(met.items())),
        "seconds": round(time.monotonic() - began, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lives", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    small_chunks()
    result = measure(given.lives, given.seed)
    print(json.dumps(result, indent=2))
    if given.json is not None:
        given.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
