"""Replicated writes over real Milvus 2.3.5: a fault of each kind under load, and nothing acknowledged is lost.

One short trial each of some; ``python -m tests.live.replication`` runs all of them, as often as there is time for.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from haclient.drill.servers import etcd
from tests.live.replication.faults import FAULTS
from tests.live.replication.fleet import Engine, Fleet, Log
from tests.live.replication.trial import trial

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(600)]

RUNS: dict[str, tuple[Engine, Log, tuple[str, ...]]] = {
    "two, SQLite": ("milvus", "sqlite", ("kill-server", "stop-writer")),
    "two, etcd": ("milvus", "etcd3", ("kill-leader",)),
    "with two milvus-lite, SQLite": ("mixed", "sqlite", ("partition-server",)),
}


@pytest.mark.parametrize("run", RUNS)
async def test_nothing_acknowledged_is_lost(run: str, tmp_path: Path) -> None:
    engine, log, faults = RUNS[run]
    if log != "sqlite" and not etcd.available():
        pytest.skip("needs etcd (apt-get install etcd-server)")
    possible = [fault for fault in faults if FAULTS[fault].fits(log)]
    async with Fleet(tmp_path, engine, log, small_disk="full-disk" in possible) as fleet:
        for seed, fault in enumerate(possible):
            result = await trial(fleet, fault, seed)
            assert not result.violations, str(result)
            assert result.outcomes["ok"], str(result)
            assert result.outcomes["read"], str(result)
