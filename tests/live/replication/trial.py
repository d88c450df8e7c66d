"""One trial: load, a fault at a random moment, healing, catching up, and judgement.

Everything random comes from the seed; what the machine's scheduler adds does not, so a seed says what was done, and
does not replay it to the letter.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, final

from haclient import MilvusClient
from haclient.errors import LogError
from haclient.replication.refusals import REFUSED, void_entries
from tests.live.replication import rows
from tests.live.replication.checker import judge, shown
from tests.live.replication.faults import FAULTS
from tests.live.replication.fleet import BOUNDED_S, Fleet
from tests.live.replication.history import load
from tests.live.replication.rows import Names

#: How long a fault lasts, at least and at most, seconds.
_FAULT_S: Final = (2.0, 5.0)
#: Between two looks at the positions, seconds.
_LOOK_S: Final = 0.1


@final
@dataclass(slots=True)
class Trial:
    """What came of one.

    Attributes:
        fault: What was done to the fleet.
        seed: Of all choices.
        violations: What does not hold, by invariant.
        outcomes: How many calls had which outcome; "read" are reads that were answered.
        catch_up_s: From the end of the load until every cluster had everything.
    """

    fault: str
    seed: int
    violations: dict[str, list[str]] = field(default_factory=dict)
    outcomes: Counter[str] = field(default_factory=Counter)
    catch_up_s: float = 0.0

    def __str__(self) -> str:
        return f"{self.fault}, seed {self.seed}: {dict(self.outcomes)}\n{shown(self.violations)}"


async def trial(fleet: Fleet, fault: str, seed: int, *, load_s: float = 8.0) -> Trial:
    """Run one, in collections of its own.

    Args:
        fleet: Whole, and nobody writes to it.
        fault: Name of one of `FAULTS`.
        seed: Of all choices.
        load_s: Length of the load beside the fault and its healing, seconds.
    """
    result = Trial(fault, seed)
    number = len(list(fleet.folder.glob("trial*")))
    names, folder = Names(f"t{number}"), fleet.folder / f"trial{number}"
    folder.mkdir()
    await through_fleet(fleet, rows.create, names)
    void: set[int] = set()
    watch = asyncio.create_task(_watch(fleet, result, void))
    try:
        await _load(fleet, fault, random.Random(f"{fault} {seed}"), names.trial, folder, load_s)
        begun = time.monotonic()
        if matter := await fleet.caught_up():
            result.violations["stuck"] = [matter]
        result.catch_up_s = time.monotonic() - begun
    finally:
        watch.cancel()
        await fleet.stop_writers(kill=True)
    history = load(folder.glob("*.history"))
    for op in history:
        result.outcomes["read" if op.level and op.outcome == "ok" else op.outcome] += 1
    held, old_rows = await fleet.contents(names), fleet.engine in ("milvus", "mixed")
    result.violations |= judge(history, held, bounded_s=BOUNDED_S, void=void, old_rows=old_rows)
    await through_fleet(fleet, rows.drop, names)
    return result


async def through_fleet(fleet: Fleet, work: Callable[[MilvusClient, Names], None], names: Names) -> None:
    """Do something with a client of its own, in a thread: pymilvus' async one makes no index on milvus-lite."""

    def do() -> None:
        with MilvusClient(config=fleet.config()) as client:
            work(client, names)

    await asyncio.to_thread(do)


async def _load(fleet: Fleet, fault: str, rng: random.Random, trial: str, folder: Path, load_s: float) -> None:
    """Start an SDK and a client of each proxy, hurt the fleet and heal it while they write, and stop them."""
    through = (None, *fleet.proxies)
    await asyncio.gather(*(fleet.add_writer(folder, trial, rng.getrandbits(32), through=one) for one in through))
    before_s = rng.uniform(0.2, 0.6) * load_s
    await asyncio.sleep(before_s)
    async with FAULTS[fault].hurt(fleet, rng):
        await asyncio.sleep(rng.uniform(*_FAULT_S))
    await asyncio.sleep(load_s - before_s)
    await fleet.stop_writers()


async def _watch(fleet: Fleet, result: Trial, void: set[int]) -> None:
    """Watch that the epoch of a cluster's applier never goes back, and which entries every cluster has refused."""
    newest: dict[str, int] = {}
    while True:
        with contextlib.suppress(LogError):
            for cluster, position in (await fleet.positions()).items():
                if position.epoch < newest.get(cluster, 0):
                    text = f"{cluster}: {position.epoch} after {newest[cluster]}"
                    result.violations.setdefault("epoch", []).append(text)
                newest[cluster] = position.epoch
            void |= void_entries(await fleet.log.facts(REFUSED)).keys()
        await asyncio.sleep(_LOOK_S)
