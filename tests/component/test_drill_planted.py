"""Bugs planted in haclient: each is found by a shipped scenario, or the drill would prove nothing.

One by default; ``HACLIENT_THOROUGH=1 pytest tests/component/test_drill_planted.py`` plants all.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import pytest

from haclient.drill.run import Plan, run, started
from haclient.drill.scenario import load, shipped
from haclient.drill.verdict import Verdict
from tests.component.drill_plants import planted

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


class Found(NamedTuple):
    """Which scenario finds a bug, and by which of its expectations."""

    scenario: str
    expectations: frozenset[str]


_READS = frozenset({"failed or wrong reads", "reads back after a fault", "stale reads"})
_WRITES = frozenset({"failed or unconfirmed writes", "writes back after a fault"})
_ROWS = frozenset({"acknowledged writes lost", "keys that differ between clusters", "clusters the same in the end"})

BUGS = {
    "takes_a_failure_for_done": Found("crash", _ROWS),
    "tries_everything_once": Found("reset", _READS),
    "skips_an_entry_behind_a_batch": Found("crash", _ROWS),
    "answers_before_the_append": Found("full-disk", _ROWS),
    "reads_from_whichever_cluster": Found("empty-disk", _READS),
    "has_no_quarantine": Found("poisoned-request", _READS | _WRITES),
    "never_asks_the_canary": Found("wrong-data", _READS),
    "asks_for_the_lease_only_once": Found("writer-killed", _WRITES),
}
BY_DEFAULT = next(iter(BUGS))


async def verdict(bug: str, folder: Path) -> Verdict:
    """What the drill says of haclient with a bug; the load is as short as can be."""
    scenario = load(shipped()[BUGS[bug].scenario])
    faults = [fault.model_copy(update={"at": (2.0, 3.0)}) for fault in scenario.fault]
    short = scenario.load.model_copy(update={"seconds": 10.0})
    scenario = scenario.model_copy(update={"fault": tuple(faults), "load": short})
    make = started("lite", (f"tests.component.drill_plants:{bug}",))
    plan = Plan(scenarios=[scenario], trials=1, seed=1, folder=folder, engine="lite", make=make)
    # The request that kills is sent by a client in this process.
    with planted(bug):
        results = await run(plan)
    (result,) = results.results
    assert not result.trials[0].error
    return result.verdict()


@pytest.mark.parametrize("bug", BUGS)
async def test_is_found(bug: str, tmp_path: Path) -> None:
    if bug != BY_DEFAULT and not os.environ.get("HACLIENT_THOROUGH"):
        pytest.skip("takes half a minute; HACLIENT_THOROUGH=1 runs it")
    missed = {finding.name for finding in (await verdict(bug, tmp_path)).findings if not finding.kept}
    assert missed & BUGS[bug].expectations, missed
