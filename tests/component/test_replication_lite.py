"""Replicated writes over milvus-lite: servers, writers, links and logs fail, and nothing acknowledged is lost.

One short trial of each log; ``HACLIENT_THOROUGH=1`` adds others, and ``python -m tests.live.replication`` runs as many
as there is time for.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from haclient.drill.servers import etcd
from tests.live.replication.trials import fleet, possible, trial, violations

RUNS = {"sqlite": ("kill-server",), "etcd3": ("stop-leader",)}
if os.environ.get("HACLIENT_THOROUGH"):
    RUNS = {
        "sqlite": ("kill-server", "stop-writer", "full-disk"),
        "etcd1": ("kill-writer", "kill-log"),
        "etcd3": ("stop-leader", "kill-leader", "partition-log"),
    }


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("log", RUNS)
async def test_nothing_acknowledged_is_lost(log: str, tmp_path: Path) -> None:
    if log != "sqlite" and not etcd.available():
        pytest.skip("needs etcd (apt-get install etcd-server)")
    faults = [fault for fault in RUNS[log] if possible(fault, log)]
    async with fleet(tmp_path, "lite", log, full_disk="full-disk" in faults) as started:
        for seed, fault in enumerate(faults):
            result = await trial(started, fault, seed, load_s=5.0)
            assert not violations(result), violations(result)
            assert {"read", "upsert"} <= {op.kind for op in result.operations if op.outcome == "ok"}
