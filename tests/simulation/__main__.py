"""Run the simulation by hand.

python -m tests.simulation --seed 42       one history, event by event
python -m tests.simulation --seeds 10000   many, and how many a minute
python -m tests.simulation --bugs          the planted bugs, and what finds each
"""

from __future__ import annotations

import argparse
import sys
import time

from tests.simulation.bugs import BUGS, hunt
from tests.simulation.run import freeze, run_seed

MOST_SEEDS = 3000


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, help="run this history and show every event")
    parser.add_argument("--seeds", type=int, help="run this many histories")
    parser.add_argument("--first", type=int, default=0, help="number of the first of them")
    parser.add_argument("--bugs", action="store_true", help="hunt the planted bugs")
    options = parser.parse_args()
    if options.seed is not None:
        result = run_seed(options.seed, trace=True)
        for invariant, text in result.violations:
            print(f"{invariant}: {text}")
        return bool(result.violations)
    if options.bugs:
        return bugs()
    return many(options.first, options.seeds or 2000)


def many(first: int, count: int) -> int:
    run_seed(first)
    freeze()
    begun, wall = time.process_time(), time.monotonic()
    failed = calls = attempts = 0
    for seed in range(first, first + count):
        result = run_seed(seed)
        calls += result.calls
        attempts += result.attempts
        if result.violations:
            failed += 1
            invariant, text = result.violations[0]
            print(f"seed {seed}: {invariant}: {text}")
    spent, wall = time.process_time() - begun, time.monotonic() - wall
    rate = f"{60 * count / spent:,.0f} seeds a minute of CPU time ({60 * count / wall:,.0f} of wall time)"
    print(f"{count:,} seeds, {calls:,} calls, {attempts:,} attempts, {failed} seeds failed; {rate}, one core")
    return bool(failed)


def bugs() -> int:
    missed = 0
    print(f"{'planted bug':45} {'seeds':>6}  found by")
    for name in BUGS:
        found = hunt(name, MOST_SEEDS)
        missed += found is None
        seeds, invariant = found or ("-", f"NOT FOUND in {MOST_SEEDS}")
        print(f"{name:45} {seeds:>6}  {invariant}", flush=True)
    return bool(missed)


sys.exit(main())
