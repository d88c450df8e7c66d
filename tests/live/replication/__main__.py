"""Trials by hand.

python -m tests.live.replication --engine lite --log sqlite --fault all --trials 3 --seed 1

Prints a table with what was done and what was wrong, and, of a trial with violations, what they were and how to repeat
it. Ends with 1 if anything was wrong.
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

from tests.live.replication.faults import FAULTS
from tests.live.replication.fleet import ENGINES, MEMBERS, Fleet
from tests.live.replication.trial import Trial, trial

_HEAD = ("fault", "trials", "writes ok", "failed", "unknown", "reads", "caught up s", "violations")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.live.replication",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--engine", choices=ENGINES, default="lite")
    parser.add_argument("--log", choices=MEMBERS, default="sqlite")
    parser.add_argument("--fault", nargs="+", choices=("all", *FAULTS), default=["all"])
    parser.add_argument("--trials", type=int, default=1, help="of each fault")
    parser.add_argument("--seed", type=int, default=random.randrange(10_000), help="of the first trial of each fault")
    parser.add_argument("--seconds", type=float, default=8.0, help="length of the load beside the fault")
    parser.add_argument("--ack", choices=("log", "one", "quorum", "all"), default="one")
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
    """Run every trial on one fleet; a fleet that is not whole after a trial is replaced."""
    faults = [name for name in (FAULTS if "all" in options.fault else options.fault) if FAULTS[name].fits(options.log)]
    todo = [(name, options.seed + number) for number in range(options.trials) for name in faults]
    done: list[Trial] = []
    generation = 0
    while todo:
        generation += 1
        small_disk = "full-disk" in faults
        async with Fleet(folder / f"fleet{generation}", options.engine, options.log, small_disk=small_disk) as fleet:
            while todo:
                fault, seed = todo.pop(0)
                one = await trial(fleet, fault, seed, load_s=options.seconds)
                done.append(one)
                print(f"{len(done)}: {one}", file=sys.stderr, flush=True)
                if one.violations:
                    where = f"--engine {options.engine} --log {options.log} --ack {options.ack}"
                    print(
                        f"    again: python -m tests.live.replication {where} --fault {fault} --seed {seed}", flush=True
                    )
                    break
    print(f"\n{options.engine}, {options.log}, ack={options.ack}, seeds from {options.seed}\n\n{table(done)}")
    return any(one.violations for one in done)


def table(done: list[Trial]) -> str:
    """Results by fault, in Markdown."""
    lines = [f"| {' | '.join(_HEAD)} |", "|---|" + "---:|" * (len(_HEAD) - 2) + "---|"]
    for name in (*dict.fromkeys(one.fault for one in done), "total"):
        mine = [one for one in done if name in (one.fault, "total")]
        outcomes = sum((one.outcomes for one in mine), Counter[str]())
        wrong = sum(
            (Counter({kind: len(texts) for kind, texts in one.violations.items()}) for one in mine), Counter[str]()
        )
        slowest = f"{max(one.catch_up_s for one in mine):.1f}"
        cells = (name, len(mine), *(outcomes[kind] for kind in ("ok", "failed", "unknown", "read")), slowest)
        violations = ", ".join(f"{kind} {count}" for kind, count in wrong.items()) or 0
        lines.append(f"| {' | '.join(map(str, (*cells, violations)))} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
