"""Random lives of schedulers: ``python -m tests.swarm --events 2000 --seed 1 --lives 100``, as long as one likes."""

from __future__ import annotations

import argparse
import collections
import sys
import traceback

from tests.world import walk


def main() -> int:
    """Run lives with consecutive seeds; print each failure's seed and last events."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=300, help="calls of one life")
    parser.add_argument("--lives", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="of the first life")
    parser.add_argument("--calm", action="store_true", help="no trouble: steps, arrivals and cancels only")
    parser.add_argument("--keep-going", action="store_true", help="tally failures instead of stopping at the first")
    options = parser.parse_args()
    tally: collections.Counter[str] = collections.Counter()
    for seed in range(options.seed, options.seed + options.lives):
        try:
            walk(seed, options.events, not options.calm)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is what we look for
            frames = traceback.extract_tb(error.__traceback__)
            if not options.keep_going:
                traceback.print_exc()
                print(f"failed with --seed {seed} --events {options.events}")  # noqa: T201
                return 1
            where = [f"{f.filename.rsplit('/', 1)[-1]}:{f.lineno}" for f in frames[-2:]]
            tally[f"{type(error).__name__} {where} {str(error)[:70]}"] += 1
            tally.setdefault(f"  first seed {seed}: {str(error)[:150]}", 0)
    for line, count in tally.most_common():
        print(count or "", line)  # noqa: T201
    print(f"{options.lives - sum(tally.values())} of {options.lives} lives ended well")  # noqa: T201
    return 1 if tally else 0


if __name__ == "__main__":
    sys.exit(main())
