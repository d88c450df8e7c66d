"""One trial: load, faults at random moments, healing, catching up, and what is found at the end.

Decision made here: a fleet lives through many trials, each in collections of its own. Everything random comes from the
seed; what the machine's scheduler adds does not, so a seed says what was done, and does not replay it to the letter.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

from haclient.client import AsyncMilvusClient
from haclient.drill import record, rows
from haclient.drill.checker import EVERYWHERE, Violation, judge, shown
from haclient.drill.faults import Harm, check
from haclient.drill.fleet import BOUNDED_S, DrillError, Fleet, Target
from haclient.drill.history import Notice, Operation, Recorder, load, notices
from haclient.drill.rows import Names
from haclient.drill.scenario import FaultPlan, Scenario
from haclient.errors import LogError
from haclient.replication.refusals import REFUSED, void_entries
from haclient.sync import MilvusClient

#: Between two looks at the positions, seconds.
_LOOK_S: Final = 0.1
#: The load goes on for so long after the last fault was healed, at least, seconds.
_AFTER_S: Final = 4.0
#: An application has run for a while when something happens to it, seconds.
_WARM_UP_S: Final = 3.0
#: Nobody minds how long it takes to prepare a trial, seconds.
_PREPARE_S: Final = 3_600.0
#: What a read that showed it is called in a trial.
_WRONG: Final[dict[str, record.Outcome]] = {"wrong": "wrong", "phantom": "wrong", "session": "stale", "stale": "stale"}
#: What a trial's audit counts by itself, and what makes the clusters count as different, if no read but they showed it.
_AUDITED: Final = ("lost", "resurrected", "duplicate")
_OF_ROWS: Final = ("diverged", "damaged", "phantom", "keys", "order", "epoch")

#: Starts the processes of the load; takes the fleet, the trial's folder and a seed.
Start = Callable[[Fleet, Path, int], Any]


@final
@dataclass(slots=True)
class _Marked:
    """A fault under way: `haclient.drill.record.FaultMark` with times of the clock."""

    plan: FaultPlan
    targets: Sequence[Target]
    began: float
    healed: float | None = None


@final
class Running:
    """A trial under way.

    Args:
        fleet: Whole, and nobody writes to it.
        scenario: What is to happen.
        seed: Of all choices.
        folder: For histories; made.
        start: Starts the load; the scenario's own unless given.
    """

    def __init__(self, fleet: Fleet, scenario: Scenario, seed: int, folder: Path, start: Start | None = None) -> None:
        self.fleet = fleet
        self.scenario = scenario
        self.seed = seed
        self.folder = folder
        self._start = start or self._start_load
        self._rng = random.Random(f"{scenario.name} {seed}")
        self._marks: list[_Marked] = []
        self._void: set[int] = set()
        self._found: list[Violation] = []
        self._begun = self._ended = 0.0
        self._caught_up_s: float | None = None

    async def run(self) -> record.Trial:
        """Run it.

        Raises:
            DrillError: It could not be carried out.
        """
        fleet = self.fleet
        self.folder.mkdir(parents=True)
        fleet.names = Names(f"drill_{self._rng.getrandbits(32):08x}")
        try:
            trial = await self._run()
        except BaseException:
            if fleet.lasting:
                await self._drop()
            raise
        await self._drop()
        return trial

    async def _run(self) -> record.Trial:
        fleet = self.fleet
        fleet.say("preparing the collection")
        await self._prepare()
        try:
            async with self._watched():
                await self._under_load()
                fleet.say("waiting for the clusters to catch up")
                begun = time.monotonic()
                if matter := await fleet.caught_up():
                    self._found.append(Violation("stuck", matter))
                else:
                    self._caught_up_s = time.monotonic() - begun
        finally:
            await fleet.stop_load()
        fleet.say("reading every row of every cluster")
        return self._result(await fleet.contents())

    async def _drop(self) -> None:
        await through(self.fleet, lambda client: rows.drop(client, self.fleet.names))

    # Before.

    async def _prepare(self) -> None:
        """Create the collections, with first rows on every cluster."""
        recorder = Recorder(self.folder / "setup.history", EVERYWHERE)
        first = rows.first_rows()
        op = Operation(
            EVERYWHERE,
            "upsert",
            time.monotonic(),
            _PREPARE_S,
            sets={f"own/{row['id']}": row["version"] for row in first},
        )

        def make(client: Any) -> None:
            rows.create(client, self.fleet.names.own)
            client.upsert(self.fleet.names.own, first)

        with recorder.record(op):
            if self.fleet.topology.log:
                async with AsyncMilvusClient(config=self.fleet.config(direct=True)):  # somebody has to apply it
                    await through(self.fleet, make)
                    if matter := await self.fleet.caught_up():
                        raise DrillError(f"the fleet does not come to rest before the load: {matter}")
            else:
                await through(self.fleet, make)
            op.outcome = "ok"
        recorder.close()

    async def _start_load(self, fleet: Fleet, folder: Path, seed: int) -> None:
        plan = self.scenario.load
        shares = {"search": plan.search, "query": plan.query, "upsert": plan.upsert, "delete": plan.delete}
        canary = {"collection": fleet.names.own, "vector": rows.vector(rows.CANARIES[0]), "limit": 1}
        await fleet.start_load(
            folder,
            seed,
            {"rate": plan.rate, **shares},
            timeout_s=plan.timeout_s,
            canaries=[{**canary, "expect": [rows.CANARIES[0]]}] if fleet.topology.canary else (),
        )

    # Meanwhile.

    async def _under_load(self) -> None:
        """Start the load, hurt and heal the fleet while it goes on, and stop it."""
        fleet, seconds = self.fleet, self.scenario.load.seconds
        fleet.say("starting the load")
        await self._start(fleet, self.folder, self._rng.getrandbits(32))
        self._begun = time.monotonic() + _WARM_UP_S
        fleet.say("load")
        async with asyncio.TaskGroup() as group:
            for plan in self.scenario.fault:
                group.create_task(self._inflict(plan, random.Random(self._rng.getrandbits(64))))
        healed = max((mark.healed or 0.0 for mark in self._marks), default=0.0)
        fleet.say("load, all healed")
        await _until(max(self._begun + seconds, healed + _AFTER_S))
        self._ended = time.monotonic()
        fleet.say("ending the load")
        await fleet.finish_load()

    async def _inflict(self, plan: FaultPlan, rng: random.Random) -> None:
        await _until(self._begun + rng.uniform(*plan.at))
        targets = await self.fleet.targets(plan.target, rng)
        mark = _Marked(plan, targets, time.monotonic())
        self._marks.append(mark)
        self.fleet.say(f"{plan.kind}: {_names(targets)}")
        async with check(plan).hurt(Harm(self.fleet, targets, plan.settings, rng)):
            await asyncio.sleep(plan.lasts)
            self.fleet.say(f"healing {plan.kind}: {_names(targets)}")
        mark.healed = time.monotonic()

    @asynccontextmanager
    async def _watched(self) -> AsyncIterator[None]:
        """Watch the log meanwhile, if there is one."""
        watch = asyncio.create_task(self._watch()) if self.fleet.topology.log else None
        try:
            yield
        finally:
            if watch is not None:
                watch.cancel()
                await asyncio.gather(watch, return_exceptions=True)

    async def _watch(self) -> None:
        """Watch that the epoch of a cluster's applier never goes back, and which entries every cluster has refused."""
        newest: dict[str, int] = {}
        while True:
            with contextlib.suppress(LogError):
                for cluster, position in (await self.fleet.positions()).items():
                    if position.epoch < newest.get(cluster, 0):
                        self._found.append(Violation("epoch", f"{cluster}: {position.epoch} after {newest[cluster]}"))
                    newest[cluster] = position.epoch
                self._void |= void_entries(await self.fleet.log.facts(REFUSED)).keys()
            await asyncio.sleep(_LOOK_S)

    # After.

    def _result(self, held: Any) -> record.Trial:
        paths = sorted(self.folder.glob("*.history"))
        history, told = load(paths), notices(paths)
        old_rows = self.fleet.engine in ("milvus", "mixed")
        found = judge(history, held, bounded_s=BOUNDED_S, void=self._void, old_rows=old_rows) + self._found
        seconds = self._ended - self._begun
        return record.Trial(
            scenario=self.scenario.name,
            engine=self.fleet.engine,
            seed=self.seed,
            seconds=seconds,
            rate=self.scenario.load.rate,
            operations=self._operations(history, found),
            faults=[self._fault(mark, told) for mark in sorted(self._marks, key=lambda mark: mark.began)],
            audit=self._audit(history, found) if self.fleet.topology.log else None,
        )

    def _operations(self, history: Iterable[Operation], found: Iterable[Violation]) -> list[record.Operation]:
        """The calls that were due while the load lasted; what a killed process had under way is nobody's answer."""
        shown_by: dict[int, record.Outcome] = {}
        for one in found:  # the worst comes first
            if one.op and one.invariant in _WRONG:
                shown_by.setdefault(id(one.op), _WRONG[one.invariant])
        made = []
        for op in history:
            if op.end is None or op.client == EVERYWHERE or not self._begun <= op.due < self._ended:
                continue
            outcome: Any = shown_by.get(id(op), "failed" if op.level and op.outcome != "ok" else op.outcome)
            error = op.error.partition("\n")[0] or op.wrong
            due, ended = op.due - self._begun, op.end - self._begun
            made.append(record.Operation(op.kind, due, ended, outcome, op.client, max(1, op.attempts), error))  # type: ignore[arg-type] # checked where the load is configured
        return sorted(made, key=lambda one: one.due)

    def _fault(self, mark: _Marked, told: Iterable[Notice]) -> record.FaultMark:
        detected = next((one.at for one in told if one.at >= mark.began and _is_about(one, mark)), None)
        return record.FaultMark(
            mark.plan.kind,
            _names(mark.targets),
            mark.began - self._begun,
            None if mark.healed is None else mark.healed - self._begun,
            None if detected is None else detected - self._begun,
        )

    def _audit(self, history: Iterable[Operation], found: Sequence[Violation]) -> record.Audit:
        count = {name: sum(one.invariant == name for one in found) for name in _AUDITED}
        acknowledged = sum(op.outcome == "ok" and bool(op.sets) and op.client != EVERYWHERE for op in history)
        return record.Audit(
            acknowledged=acknowledged,
            lost=count["lost"],
            resurrected=count["resurrected"],
            duplicates=count["duplicate"],
            differing=sum(one.op is None and one.invariant in _OF_ROWS for one in found),
            caught_up_s=self._caught_up_s,
            notes=tuple(shown(found)),
        )


async def through(fleet: Fleet, work: Callable[[Any], None]) -> None:
    """Do something by way of haclient in a thread, as pymilvus' async client makes no index on milvus-lite.

    Where nothing is mirrored it is done to each cluster.
    """

    def do() -> None:
        with MilvusClient(config=fleet.config(direct=True)) as client:
            work(client)

    if fleet.topology.log:
        await asyncio.to_thread(do)
    else:
        await asyncio.gather(*(cluster.ask(work) for cluster in fleet.clusters))


async def _until(moment: float) -> None:
    await asyncio.sleep(max(0.0, moment - time.monotonic()))


def _names(targets: Iterable[Target]) -> str:
    return ", ".join(target.name for target in targets)


def _is_about(notice: Notice, mark: _Marked) -> bool:
    """Whether an event is about who was hurt: the log and the load's own processes have no name in events."""
    names = {target.name for target in mark.targets}
    if mark.plan.target.startswith("log"):
        return notice.event == "LogTrouble"
    if mark.plan.target.startswith("client"):
        return notice.event == "ApplierChanged" and notice.client not in names
    return not names.isdisjoint(notice.about) and notice.event != "ApplierChanged"
