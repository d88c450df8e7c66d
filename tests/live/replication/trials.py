"""Trials with the load of `churn`: an SDK and a client of each of two proxies, all on the same keys."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Final

from haclient.drill import rows
from haclient.drill.fleet import LEASE_S, Fleet
from haclient.drill.record import Trial
from haclient.drill.scenario import FaultPlan, Load, Scenario, Topology
from haclient.drill.started import Engine, StartedFleet
from haclient.drill.trial import Running, through

#: What is done to whom.
FAULTS: Final[dict[str, FaultPlan | None]] = {
    "none": None,
    "kill-server": FaultPlan(kind="crash"),
    "kill-every-server": FaultPlan(kind="crash", target="clusters"),
    "stop-server": FaultPlan(kind="hang"),
    "empty-server": FaultPlan(kind="empty-disk"),
    "upgrade": FaultPlan(kind="rolling", target="clusters"),
    "kill-writer": FaultPlan(kind="crash", target="client"),
    "kill-proxy": FaultPlan(kind="crash", target="proxy"),
    # For longer than its lease.
    "stop-writer": FaultPlan(kind="hang", target="client", lasts=4 * LEASE_S),
    "stop-proxy": FaultPlan(kind="hang", target="proxy", lasts=4 * LEASE_S),
    "partition-server": FaultPlan(kind="partition"),
    "one-way-server": FaultPlan(kind="one-way"),
    "reset-server": FaultPlan(kind="reset"),
    "partition-log": FaultPlan(kind="partition", target="log"),
    "black-hole-log": FaultPlan(kind="black-hole", target="log"),
    "one-way-log": FaultPlan(kind="one-way", target="log"),
    "reset-log": FaultPlan(kind="reset", target="log"),
    "kill-leader": FaultPlan(kind="crash", target="log:leader"),
    "stop-leader": FaultPlan(kind="hang", target="log:leader"),
    "kill-log": FaultPlan(kind="crash", target="log:all"),
    "full-disk": FaultPlan(kind="full-disk", target="log"),
}


def possible(fault: str, log: str) -> bool:
    """Whether it can be done here, to a fleet with this log."""
    plan = FAULTS[fault]
    if plan is None or not plan.target.startswith("log"):
        return True
    if plan.kind == "full-disk":
        return log == "sqlite" and os.geteuid() == 0
    return log == "etcd3" if plan.target == "log:leader" else log != "sqlite"


def fleet(folder: Path, engine: Engine, log: str, *, clusters: int = 2, full_disk: bool = False) -> StartedFleet:
    """A fleet for such trials."""
    topology = Topology.model_validate({"clusters": clusters, "log": log, "proxies": 2})
    return StartedFleet(folder, topology, engine, small_disk=full_disk)


async def trial(fleet: StartedFleet, fault: str, seed: int, *, load_s: float = 8.0) -> Trial:
    """Run one; the fleet is whole, and nobody writes to it."""
    rng = random.Random(f"{fault} {seed}")
    before_s, lasts_s = rng.uniform(0.2, 0.6) * load_s, rng.uniform(2.0, 5.0)
    plan = FAULTS[fault]
    plans = [plan.model_copy(update={"at": (before_s, before_s), "lasts": max(plan.lasts, lasts_s)})] if plan else []
    # The rate and the kinds of calls are those of `churn`.
    scenario = Scenario(name=fault, title=fault, about=fault, load=Load(seconds=load_s), fault=tuple(plans))
    return await Running(fleet, scenario, seed, fleet.folder / f"{fault}-{seed}", _start).run()


async def _start(fleet: Fleet, folder: Path, seed: int) -> None:
    assert isinstance(fleet, StartedFleet)
    names = fleet.names
    await through(fleet, lambda client: rows.create(client, names.auto, auto_id=True))
    timeout_s = 10.0 if fleet.engine == "lite" else 20.0
    proxies = [{"cluster": [{"name": one.name, "endpoints": [one.uri]}]} for one in fleet.proxies]
    await fleet.start_load(
        folder,
        seed,
        {},
        timeout_s=timeout_s,
        configs=[fleet.config(), *proxies],
        module="tests.live.replication.churn",
    )


def violations(trial: Trial) -> str:
    """What was wrong, for a person; "" if nothing was."""
    assert trial.audit is not None
    return "\n".join([*([trial.error] if trial.error else []), *trial.audit.notes])
