"""Trials by hand.

python -m tests.live.replication --engine lite --log sqlite --fault all --trials 3 --seed 1

Prints what was done and what was wrong. Ends with 1 if anything was.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import random
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests.live.replication.trials import FAULTS, fleet, possible, trial, violations


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.live.replication",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--engine", choices=("lite", "milvus", "mixed"), default="lite")
    parser.add_argument("--log", choices=("sqlite", "etcd1", "etcd3"), default="sqlite")
    parser.add_argument("--clusters", type=int, default=2)
    parser.add_argument("--fault", nargs="+", choices=("all", *FAULTS), default=["all"])
    parser.add_argument("--trials", type=int, default=1, help="of each fault")
    parser.add_argument("--seed", type=int, default=random.randrange(10_000), help="of the first trial of each fault")
    parser.add_argument("--seconds", type=float, default=8.0, help="length of the load beside the fault")
    parser.add_argument("--keep", type=Path, help="keep data, histories and logs in this folder")
    options = parser.parse_args()
    folder = options.keep or Path(tempfile.mkdtemp(prefix="haclient-trials-"))
    folder.mkdir(parents=True, exist_ok=True)
    logging.getLogger("pymilvus").setLevel(logging.CRITICAL)
    try:
        return asyncio.run(run(options, folder))
    finally:
        if options.keep is None:
            shutil.rmtree(folder, ignore_errors=True)


async def run(options: argparse.Namespace, folder: Path) -> int:
    """Run every trial on one fleet; a fleet is replaced after one with violations."""
    faults = [name for name in (FAULTS if "all" in options.fault else options.fault) if possible(name, options.log)]
    todo = [(name, options.seed + number) for number in range(options.trials) for name in faults]
    generation = wrong = 0
    while todo:
        generation += 1
        home, full_disk = folder / f"fleet{generation}", "full-disk" in faults
        async with fleet(home, options.engine, options.log, clusters=options.clusters, full_disk=full_disk) as started:
            while todo:
                fault, seed = todo.pop(0)
                one = await trial(started, fault, seed, load_s=options.seconds)
                print(f"{fault}, seed {seed}: {dict(Counter(op.outcome for op in one.operations))}", flush=True)
                if text := violations(one):
                    wrong += 1
                    print(text, flush=True)
                    break
    print(f"{options.engine}, {options.log}, seeds from {options.seed}: {wrong} trials with violations")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
