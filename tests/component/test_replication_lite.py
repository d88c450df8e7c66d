"""Replicated writes over milvus-lite: servers, writers, links and logs fail, and nothing acknowledged is lost.

One short trial each; ``python -m tests.live.replication`` runs as many as there is time for.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from haclient.drill.servers import etcd
from tests.live.replication.faults import FAULTS
from tests.live.replication.fleet import Fleet, Log
from tests.live.replication.trial import trial

RUNS: dict[Log, tuple[str, ...]] = {
    "sqlite": ("kill-server", "stop-writer", "full-disk"),
    "etcd1": ("kill-writer",),
    "etcd3": ("stop-leader",),
}


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("log", RUNS)
async def test_nothing_acknowledged_is_lost(log: Log, tmp_path: Path) -> None:
    if log != "sqlite" and not etcd.available():
        pytest.skip("needs etcd (apt-get install etcd-server)")
    possible = [fault for fault in RUNS[log] if FAULTS[fault].fits(log)]
    async with Fleet(tmp_path, "lite", log, small_disk="full-disk" in possible) as fleet:
        for seed, fault in enumerate(possible):
            result = await trial(fleet, fault, seed, load_s=5.0)
            assert not result.violations, str(result)
            assert result.outcomes["ok"], str(result)
            assert result.outcomes["read"], str(result)
