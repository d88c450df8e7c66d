"""Trials that never happened: drawn from a seed, so that every figure is known beforehand."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable

from haclient.drill.record import Audit, FaultMark, Kind, Operation, Outcome, Trial
from haclient.drill.report import About, Result, Results
from haclient.drill.scenario import Expectation, FaultPlan, Scenario

ABOUT = About(
    engine="milvus-lite 3.2.2",
    started="2025-11-25T16:00:00+00:00",
    haclient="0.1.0",
    python="3.11.9",
    machine="Linux 6.1, x86_64, 2 cores",
)
#: What a fault does to a call that was due so many seconds after it began: its outcome, and seconds added to it.
Effect = Callable[[random.Random, Kind, float], tuple[Outcome, float]]


def unharmed(rng: random.Random, kind: Kind, since: float) -> tuple[Outcome, float]:
    return "ok", 0.0


def hedged(rng: random.Random, kind: Kind, since: float) -> tuple[Outcome, float]:
    """Reads are hedged until the breaker opens; writes wait for the fault to be noticed."""
    if not 0 <= since < 0.4 or rng.random() < 0.5:
        return "ok", 0.0
    return "ok", rng.uniform(0.02, 0.3) if kind in ("search", "query") else 0.4 - since + rng.random() * 0.3


def outage(length: float, *, write: Outcome = "unknown", wrong: float = 0.0) -> Effect:
    """Everything fails for so long, some reads only after a while; a share of them is answered wrongly."""

    def effect(rng: random.Random, kind: Kind, since: float) -> tuple[Outcome, float]:
        if not -0.02 <= since < length:
            return "ok", 0.0
        if kind in ("upsert", "delete"):
            return write, rng.uniform(0.0, 2.0)
        return ("wrong", 0.0) if rng.random() < wrong else ("failed", rng.choice([0.0, 0.001, 1.0]))

    return effect


def scenario(
    name: str = "crash", title: str = "Kill -9 of one cluster", *, faults: int = 1, **expect: object
) -> Scenario:
    return Scenario(
        name=name,
        title=title,
        about="A process of one of three clusters is killed and started again 4 s later. Nobody may notice.",
        fault=tuple(FaultPlan(kind=name) for _ in range(faults)),
        expect=Expectation.model_validate(expect),
    )


def trial(
    seed: int = 1,
    effect: Effect = unharmed,
    *,
    name: str = "crash",
    rate: float = 40,
    faults: int = 1,
    lasts: float | None = 4.0,
    noticed: bool = True,
    audit: Audit | None = None,
) -> Trial:
    """Draw a trial of 20 s. Its faults begin between 5 and 7 s, and after that 5 s apart."""
    rng = random.Random(seed)
    first = rng.uniform(5, 7)
    begins = [first + 5 * number for number in range(faults)]
    calls = []
    for number in range(int(20 * rate)):
        due = number / rate
        kind: Kind = rng.choices(("search", "query", "upsert", "delete"), (10, 6, 3, 1))[0]
        usual = rng.lognormvariate(-5.2, 0.35) if kind in ("search", "query") else rng.lognormvariate(-4.4, 0.4)
        since = due - max((begin for begin in begins if begin <= due + 0.02), default=1e9)
        outcome, extra = effect(rng, kind, since)
        error = "" if outcome in ("ok", "wrong", "stale") else "Unavailable: every endpoint refused"
        calls.append(Operation(kind, due, due + usual + extra, outcome, "load-0", 1 + (extra > 0), error))
    marks = [
        FaultMark(
            name,
            f"cluster {rng.choice('abc')}",
            begin,
            lasts and begin + lasts,
            begin + rng.lognormvariate(-1.5, 0.5) if noticed else None,
        )
        for begin in begins
    ]
    written = sum(call.outcome == "ok" and call.kind in ("upsert", "delete") for call in calls)
    found = Audit(acknowledged=written, caught_up_s=rng.uniform(0.1, 0.8)) if audit is None else audit
    return Trial(
        scenario=name, engine="lite", seed=seed, seconds=20, rate=rate, operations=calls, faults=marks, audit=found
    )


@functools.cache
def results() -> Results:
    """One of each kind: kept, broken in several ways, cut off."""
    lossy = Audit(acknowledged=160, lost=3, duplicates=1, differing=2, caught_up_s=None, notes=("key 7 is gone",))
    made = [
        Result(scenario(), [trial(seed, hedged) for seed in range(59)]),
        Result(
            scenario("hang", "One cluster stops answering", availability=0.999),
            [trial(seed, outage(0.2 * (seed % 5)), name="hang") for seed in range(20)],
        ),
        Result(
            scenario("flapping", "One cluster comes and goes", faults=3),
            [trial(seed, outage(0.6, wrong=0.3), name="flapping", faults=3, lasts=2.0) for seed in range(3)],
        ),
        Result(
            scenario("dark", "All clusters are gone, for good", read_rto_s=5),
            [trial(0, outage(60), name="dark", lasts=None, noticed=False, audit=lossy)],
        ),
        Result(
            scenario("etcd", "The log's <leader> & its disk are lost"),
            [trial(1), Trial(scenario="etcd", engine="lite", seed=2, seconds=20, rate=40, error="etcd did not start")],
        ),
        Result(scenario("nothing", "Nothing is done", faults=0), []),
    ]
    return Results(ABOUT, made)
