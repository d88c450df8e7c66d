"""Run the simulation of replicated writes by hand.

python -m tests.simulation.replication --seed 42       one history, event by event
python -m tests.simulation.replication --seeds 10000   many, and how many a minute
python -m tests.simulation.replication --bugs          the planted bugs, and what finds each
"""

from __future__ import annotations

import argparse
import sys
import time

from tests.simulation.replication.bugs import BUGS, hunt
from tests.simulation.replication.run import freeze, run_seed

MOST_SEEDS = 1500


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.replication", description=__doc__)
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
    return many(options.first, options.seeds or 1000)


def many(first: int, count: int) -> int:
    run_seed(first)
    freeze()
    begun, wall = time.process_time(), time.monotonic()
    failed = writes = deliveries = 0
    outcomes: dict[str, int] = {}
    for seed in range(first, first + count):
        result = run_seed(seed)
        writes += result.writes
        deliveries += result.deliveries
        for outcome, times in result.outcomes.items():
            outcomes[outcome] = outcomes.get(outcome, 0) + times
        if result.violations:
            failed += 1
            invariant, text = result.violations[0]
            print(f"seed {seed}: {invariant}: {text}", flush=True)
    spent, wall = time.process_time() - begun, time.monotonic() - wall
    rate = f"{60 * count / spent:,.0f} seeds a minute of CPU time ({60 * count / wall:,.0f} of wall time)"
    told = ", ".join(f"{times:,} {outcome}" for outcome, times in sorted(outcomes.items()))
    print(
        f"{count:,} seeds, {writes:,} writes ({told}), {deliveries:,} requests, {failed} seeds failed; {rate}, one core"
    )
    return bool(failed)


def bugs() -> int:
    missed = 0
    print(f"{'planted bug':52} {'seeds':>6}  found by")
    for name in BUGS:
        found = hunt(name, range(MOST_SEEDS))
        missed += found is None
        seeds, invariant = found or ("-", f"NOT FOUND in {MOST_SEEDS}")
        print(f"{name:52} {seeds:>6}  {invariant}", flush=True)
    return bool(missed)


sys.exit(main())
