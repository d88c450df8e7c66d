"""Replicated writes over real Milvus 2.3.5: a fault of each kind under load, and nothing acknowledged is lost.

One short trial; ``HACLIENT_THOROUGH=1`` adds others, and ``python -m tests.live.replication`` runs all of them,
as often as there is time for.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from haclient.drill.servers import etcd
from haclient.drill.started import Engine
from tests.live.replication.trials import fleet, possible, trial, violations

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(600)]

RUNS: dict[str, tuple[Engine, int, str, tuple[str, ...]]] = {
    "two, SQLite": ("milvus", 2, "sqlite", ("kill-server",)),
}
if os.environ.get("HACLIENT_THOROUGH"):
    RUNS["two, SQLite"] = ("milvus", 2, "sqlite", ("kill-server", "stop-server", "stop-writer", "kill-writer"))
    RUNS["two, etcd"] = ("milvus", 2, "etcd3", ("kill-leader", "partition-log"))
    RUNS["with two milvus-lite, etcd"] = ("mixed", 3, "etcd3", ("kill-leader",))
    RUNS["with two milvus-lite, SQLite"] = ("mixed", 3, "sqlite", ("partition-server", "empty-server"))


@pytest.mark.parametrize("run", RUNS)
async def test_nothing_acknowledged_is_lost(run: str, tmp_path: Path) -> None:
    engine, clusters, log, faults = RUNS[run]
    if log != "sqlite" and not etcd.available():
        pytest.skip("needs etcd (apt-get install etcd-server)")
    async with fleet(tmp_path, engine, log, clusters=clusters) as started:
        for seed, fault in enumerate(fault for fault in faults if possible(fault, log)):
            result = await trial(started, fault, seed)
            assert not violations(result), violations(result)
            assert {"read", "upsert"} <= {op.kind for op in result.operations if op.outcome == "ok"}
