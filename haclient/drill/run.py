"""A run of drills: scenarios, each as often as wanted, on as few fleets as possible.

Decision made here: starting a fleet takes longer than a trial, so trials of scenarios with the same topology share one.
It is looked at before each trial, and replaced if it is not whole; a trial that could not be carried out says so, and
the run goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

from haclient.drill.faults import check
from haclient.drill.fleet import DrillError, Fleet, Say
from haclient.drill.record import Trial
from haclient.drill.report.results import About, Result, Results
from haclient.drill.scenario import Scenario
from haclient.drill.started import Engine, StartedFleet
from haclient.drill.trial import Running
from haclient.errors import ConfigError

#: Makes a fleet: its folder, the scenarios that it is for, and who is told what is being done.
Make = Callable[[Path, Sequence[Scenario], Say], Fleet]


@final
@dataclass(frozen=True, slots=True)
class Advance:
    """How far a run is.

    Attributes:
        scenario: The scenario under way.
        trial: Which trial of it, from 1.
        doing: What is being done.
        done: Trials that have ended.
        total: Trials in all.
    """

    scenario: str
    trial: int
    doing: str
    done: int
    total: int


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is to be run.

    Attributes:
        scenarios: In this order, but for those that share a fleet.
        trials: Of each.
        seed: Of the first trial of each; the others' follow.
        folder: For data, histories and logs.
        engine: What the clusters are, for a person.
        make: Makes fleets.
        report: Told how far it is.
        ended: Told of each trial that has ended.
    """

    scenarios: Sequence[Scenario]
    trials: int
    seed: int
    folder: Path
    engine: str
    make: Make
    report: Callable[[Advance], None] = lambda _: None
    ended: Callable[[Scenario, Trial], None] = field(default=lambda *_: None)


def started(engine: Engine, plants: tuple[str, ...] = ()) -> Make:
    """Return what starts fleets of this engine."""

    def make(folder: Path, scenarios: Sequence[Scenario], say: Say) -> Fleet:
        full = any(plan.kind == "full-disk" for scenario in scenarios for plan in scenario.fault)
        return StartedFleet(folder, scenarios[0].topology, engine, small_disk=full, say=say, plants=plants)

    return make


def refuse(scenario: Scenario, engine: str) -> str:
    """Say why a scenario cannot be run with these servers, "" if it can.

    Raises:
        ConfigError: It cannot be run at all: a fault is not known, or cannot be done to its target.
    """
    for plan in scenario.fault:
        fault = check(plan)
        if engine not in fault.engines:
            return f"{plan.kind} cannot be done to {engine}"
        if fault.logs and scenario.topology.log not in fault.logs:
            raise ConfigError(f'scenario {scenario.name}: {plan.kind} needs log = "{fault.logs[0]}"')
    if not scenario.topology.log and scenario.load.upsert + scenario.load.delete:
        raise ConfigError(f"scenario {scenario.name}: without a log nobody writes; set upsert and delete to 0")
    return "" if engine in (*scenario.engines, "staging") else f"it is for {', '.join(scenario.engines)}"


async def run(plan: Plan) -> Results:
    """Run it; a fleet that is not whole after a trial is replaced."""
    results = Results(About.here(plan.engine))
    fleets = 0
    done = 0
    for group in _sharing_a_fleet(plan.scenarios):
        todo = [(scenario, number) for number in range(plan.trials) for scenario in group]
        made = {scenario.name: Result(scenario, []) for scenario in group}
        results.results.extend(made.values())
        while todo:
            fleets += 1
            scenario, number = todo[0]
            say = _Saying(plan, done)
            say.now = scenario, number
            try:
                async with plan.make(plan.folder / f"fleet{fleets}", group, say) as fleet:
                    while todo:
                        say.now = scenario, number = todo[0]
                        await _whole(fleet)
                        trial = await Running(fleet, scenario, plan.seed + number, _folder(plan, todo[0])).run()
                        todo.pop(0)
                        done = say.done = done + 1
                        made[scenario.name].trials.append(trial)
                        plan.ended(scenario, trial)
                        if todo and await fleet.whole():
                            break
            except Exception as error:
                scenario, number = todo.pop(0)
                done += 1
                trial = _not_carried_out(plan, scenario, plan.seed + number, error)
                made[scenario.name].trials.append(trial)
                plan.ended(scenario, trial)
    return results


@final
class _Saying:
    """What a fleet and its trials are given to tell what is being done."""

    def __init__(self, plan: Plan, done: int) -> None:
        self._plan = plan
        self.done = done
        self.now = plan.scenarios[0], 0

    def __call__(self, doing: str) -> None:
        scenario, number = self.now
        total = self._plan.trials * len(self._plan.scenarios)
        self._plan.report(Advance(scenario.name, number + 1, doing, self.done, total))


def _sharing_a_fleet(scenarios: Iterable[Scenario]) -> Iterator[list[Scenario]]:
    """Group scenarios whose topology is the same, in the order of the first of each group."""
    groups: dict[object, list[Scenario]] = {}
    for scenario in scenarios:
        groups.setdefault(scenario.topology, []).append(scenario)
    yield from groups.values()


async def _whole(fleet: Fleet) -> None:
    if matter := await fleet.whole():
        raise DrillError(f"the fleet is not whole: {matter}")


def _folder(plan: Plan, one: tuple[Scenario, int]) -> Path:
    scenario, number = one
    return plan.folder / f"{scenario.name}-{plan.seed + number}"


def _not_carried_out(plan: Plan, scenario: Scenario, seed: int, error: Exception) -> Trial:
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return Trial(
        scenario=scenario.name,
        engine=plan.engine,
        seed=seed,
        seconds=scenario.load.seconds,
        rate=scenario.load.rate,
        error=f"{type(error).__name__}: {error}",
    )
