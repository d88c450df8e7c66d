"""A run of drills over fleets that are made up, and what a trial makes of the histories of its load."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from haclient.drill import run as runs
from haclient.drill.checker import EVERYWHERE, Contents
from haclient.drill.fleet import Fleet, Say, Target
from haclient.drill.history import Operation, Recorder
from haclient.drill.record import Trial
from haclient.drill.run import Advance, Plan, run
from haclient.drill.scenario import FaultPlan, Scenario, Topology
from haclient.drill.trial import Running, _Marked
from haclient.errors import ConfigError


class MadeUp(Fleet):
    """Two clusters that nobody starts."""

    engine = "lite"

    def __init__(self, folder: Path, say: Say = lambda _: None, matters: Sequence[str] = ()) -> None:
        super().__init__(folder, Topology(clusters=2, log=""), say)
        self.clusters = [Target("a"), Target("b")]
        self.matters = list(matters)
        self.open = False

    async def build(self, stack: AsyncExitStack) -> None:
        self.open = True
        stack.callback(lambda: setattr(self, "open", False))

    async def whole(self) -> str:
        return self.matters.pop(0) if self.matters else ""


class TestRun:
    """Which trials run on which fleet."""

    @pytest.fixture(autouse=True)
    def trials(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Trials that only say that they were."""

        class Quick:
            def __init__(self, fleet: Fleet, scenario: Scenario, seed: int, folder: Path) -> None:
                self.made = Trial(scenario=scenario.name, engine="lite", seed=seed, seconds=1, rate=1)
                fleet.say("load")

            async def run(self) -> Trial:
                if self.made.scenario == "impossible":
                    raise ExceptionGroup("faults", [OSError("no such disk")])
                return self.made

        monkeypatch.setattr(runs, "Running", Quick)

    def plan(self, tmp_path: Path, *scenarios: Scenario, matters: Sequence[Sequence[str]] = ()) -> Plan:
        self.fleets: list[MadeUp] = []
        self.told: list[Advance] = []
        self.ended: list[Trial] = []

        def make(folder: Path, group: Sequence[Scenario], say: Say) -> Fleet:
            number = len(self.fleets)
            self.fleets.append(MadeUp(folder, say, matters[number] if number < len(matters) else ()))
            return self.fleets[-1]

        return Plan(
            scenarios=scenarios,
            trials=2,
            seed=7,
            folder=tmp_path,
            engine="lite",
            make=make,
            report=self.told.append,
            ended=lambda scenario, trial: self.ended.append(trial),
        )

    def one(self, name: str, **topology: Any) -> Scenario:
        return Scenario(name=name, title=name, about=name, topology=Topology(**topology))

    async def test_scenarios_of_one_topology_share_a_fleet(self, tmp_path: Path) -> None:
        plan = self.plan(tmp_path, self.one("x"), self.one("y"), self.one("z", clusters=2))
        results = await run(plan)
        assert [(one.scenario.name, [t.seed for t in one.trials]) for one in results.results] == [
            ("x", [7, 8]),
            ("y", [7, 8]),
            ("z", [7, 8]),
        ]
        assert len(self.fleets) == 2
        assert not any(fleet.open for fleet in self.fleets)
        assert [now.done for now in self.told] == list(range(6))
        assert self.told[-1].total == 6

    async def test_a_fleet_that_is_not_whole_after_a_trial_is_replaced(self, tmp_path: Path) -> None:
        results = await run(self.plan(tmp_path, self.one("x"), matters=[["", "a is parked"]]))
        assert len(self.fleets) == 2
        assert [trial.error for trial in results.results[0].trials] == ["", ""]

    async def test_a_trial_that_cannot_be_carried_out_says_why_and_the_run_goes_on(self, tmp_path: Path) -> None:
        results = await run(self.plan(tmp_path, self.one("impossible"), self.one("x")))
        assert [trial.error for trial in results.results[0].trials] == ["OSError: no such disk"] * 2
        assert [trial.error for trial in results.results[1].trials] == ["", ""]
        assert len(self.ended) == 4

    async def test_a_fleet_that_never_is_whole(self, tmp_path: Path) -> None:
        results = await run(self.plan(tmp_path, self.one("x"), matters=[["a is parked"], ["a is parked"]]))
        assert all("a is parked" in trial.error for trial in results.results[0].trials)


class TestTargets:
    """Whom a fault hurts."""

    async def test_by_name_and_by_lot(self, tmp_path: Path) -> None:
        fleet, rng = MadeUp(tmp_path), random.Random(1)
        assert [one.name for one in await fleet.targets("cluster:1", rng)] == ["b"]
        assert [one.name for one in await fleet.targets("clusters", rng)] == ["a", "b"]
        assert {(await fleet.targets("cluster", rng))[0].name for _ in range(20)} == {"a", "b"}

    @pytest.mark.parametrize("spec", ["cluster:2", "cluster:b", "site", "proxy", "log", "log:leader", "client"])
    async def test_who_is_not_there(self, tmp_path: Path, spec: str) -> None:
        with pytest.raises(ConfigError):
            await MadeUp(tmp_path).targets(spec, random.Random(1))


class TestTrial:
    """What is read of the histories."""

    def running(self, tmp_path: Path, target: str = "cluster:0") -> Running:
        plan = FaultPlan(kind="crash", target=target)
        scenario = Scenario(name="x", title="x", about="x", fault=(plan,))
        fleet = MadeUp(tmp_path)
        fleet.topology = Topology(clusters=2)
        running = Running(fleet, scenario, 1, tmp_path)
        running._begun = time.monotonic()
        running._ended = running._begun + 60
        running._marks = [_Marked(plan, fleet.clusters[:1], running._begun, running._begun + 30)]
        return running

    def note(self, recorder: Recorder, kind: str, **values: Any) -> None:
        """Record a call that ends at once; reads are at Session."""
        reads = kind in ("search", "query")
        now = time.monotonic()
        op = Operation(recorder.client, kind, now, 8, now, values.pop("sets", {}), "Session" if reads else "")
        with recorder.record(op):
            for name, value in {"outcome": "ok", **values}.items():
                setattr(op, name, value)

    def test_what_became_of_each_call(self, tmp_path: Path) -> None:
        running = self.running(tmp_path)
        setup, load = (Recorder(tmp_path / f"{name}.history", name) for name in (EVERYWHERE, "w1"))
        running._begun -= 1
        self.note(setup, "upsert", sets={"own/1": 1, "own/2": 2})
        self.note(load, "upsert", sets={"own/1": 5}, attempts=3)
        self.note(load, "search", got={"own/1": 5})
        self.note(load, "search", got={"own/1": 1})  # it has written 5
        self.note(load, "search", got={"own/1": 5}, wrong="row 2 has the vector of row 1")
        self.note(load, "query", got={"own/2": 77})  # nobody wrote that
        self.note(load, "query", outcome="unknown", error="Unavailable: nobody\nattempts")
        self.note(load, "delete", sets={"own/2": None}, outcome="unknown", seq=9)
        load.record(Operation("w1", "query", time.monotonic(), due=time.monotonic(), level="Session")).__enter__()
        held = {name: Contents({"own/1": 5}) for name in "ab"}
        trial = running._result(held)
        assert [(op.kind, op.outcome) for op in trial.operations] == [
            ("upsert", "ok"),
            ("search", "ok"),
            ("search", "stale"),
            ("search", "wrong"),
            ("query", "wrong"),
            ("query", "failed"),
            ("delete", "unknown"),
        ]
        assert trial.operations[0].attempts == 3
        assert trial.operations[5].error == "Unavailable: nobody"
        assert trial.audit is not None
        assert (trial.audit.acknowledged, trial.audit.lost, trial.audit.differing) == (1, 0, 0)

    def test_what_is_found_on_the_clusters(self, tmp_path: Path) -> None:
        running = self.running(tmp_path)
        load = Recorder(tmp_path / "w1.history", "w1")
        self.note(load, "upsert", sets={"own/1": 5})
        self.note(load, "upsert", sets={"own/2": 6})
        self.note(load, "delete", sets={"own/2": None})
        trial = running._result({"a": Contents({"own/2": 6}), "b": Contents({"own/1": 5}, duplicates=["own/1"])})
        assert trial.audit is not None
        assert (trial.audit.lost, trial.audit.resurrected, trial.audit.duplicates) == (1, 1, 1)
        assert trial.audit.differing == 2
        assert trial.audit.caught_up_s is None

    def test_when_a_fault_was_noticed(self, tmp_path: Path) -> None:
        running = self.running(tmp_path)
        load = Recorder(tmp_path / "w1.history", "w1")
        load.notice("EndpointChanged", ("b", "b:1"), "another one")
        load.notice("ApplierChanged", ("a",), "says nothing of the cluster")
        between = time.monotonic()
        load.notice("EndpointChanged", ("a", "a:1"), "down")
        load.notice("StandingChanged", ("a",), "away")
        (mark,) = running._result({}).faults
        assert mark.detected is not None
        assert between - running._begun <= mark.detected < 30
        assert (mark.name, mark.target, mark.began, mark.healed) == ("crash", "a", 0, pytest.approx(30))

    def test_another_process_takes_over_from_one_that_was_killed(self, tmp_path: Path) -> None:
        running = self.running(tmp_path, "client")
        running._marks[0].targets = [Target("w1")]
        for client in ("w1", "w2"):
            recorder = Recorder(tmp_path / f"{client}.history", client)
            recorder.notice("ApplierChanged", ("a",), "active")
            between = time.monotonic()
        (mark,) = running._result({}).faults
        assert mark.detected is not None
        assert mark.detected <= between - running._begun
        (tmp_path / "w2.history").unlink()
        (mark,) = running._result({}).faults
        assert mark.detected is None
