"""A real Milvus 2.3.5 backed up while it is written to, and restored beside what it holds, and to milvus-lite."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from pymilvus import DataType, MilvusClient

from haclient.drill.servers.milvus import StandaloneServer
from tests.servers import mirrored
from tests.servers.mirrored import Mirrored
from tests.servers.shared import LiteFactory

pytestmark = [pytest.mark.live, pytest.mark.slow]


def rows(uri: str, name: str) -> list[dict[str, Any]]:
    client = MilvusClient(uri, dedicated=True, timeout=30)
    try:
        fields = ["id", "text", "flag", "small", "share", "doc", "numbers", "vector", "extra"]
        pages = client.query_iterator(
            name, batch_size=1_000, filter="id > -100", output_fields=fields, consistency_level="Strong"
        )
        found: list[dict[str, Any]] = []
        while page := pages.next():
            found += [{**row} for row in page]
        pages.close()
        return sorted(found, key=lambda row: row["id"])
    finally:
        client.close()


@pytest.mark.timeout(400)
async def test_a_real_milvus_is_restored_beside_itself_and_to_lite(lite_server: LiteFactory, tmp_path: Path) -> None:
    lite, real = await lite_server(), StandaloneServer(tmp_path / "real")
    place = str(tmp_path / "backups")
    try:
        await real.start()
        fleet = Mirrored(tmp_path, {"real": real.uri}, {"apply_timeout_s": 10.0})
        async with fleet.client() as client:
            await mirrored.create(client, "docs")
            await client.create_partition("docs", "p1")
            await mirrored.fill(client, "docs", [-5, *range(2_000)])
            await mirrored.fill(client, "docs", range(3_000, 3_400), partition_name="p1")
            await client.create_alias("docs", "latest")
            writing = asyncio.create_task(write(client))
            code, full, error = await fleet.run("backup", place, "--json")
            assert (code, error) == (0, "")
            await writing
            await client.upsert("docs", [mirrored.row(1, 99)])
            code, later, error = await fleet.run("backup", place, "--incremental", "--json")
            assert (code, error) == (0, "")
            assert full["source"] == {"real": "milvus 2.3.5"}
            # Empty arrays kill this server if they come back as it gave them out.
            names = ("--collection", "docs=copied", "--json")
            code, done, error = await fleet.run("restore", place, *names)
            assert (code, error, done["rows"]) == (0, "", 2_381)
            wanted = await asyncio.to_thread(rows, real.uri, "docs")
            assert len(wanted) == 2_381
            assert await asyncio.to_thread(rows, real.uri, "copied") == wanted
            assert await client.list_partitions("copied") == ["_default", "p1"]
        alone = Mirrored(tmp_path, {"lite": lite.uri}, logged=False)
        code, done, error = await alone.run("restore", place, "--json")
        assert (code, error, done["rows"]) == (0, "", 2_381)
        assert later["seq"] > full["seq"]
        await keys_of_the_server(real, tmp_path)
    finally:
        await real.close()


async def write(client: Any) -> None:
    for turn in range(20):
        await client.upsert("docs", [mirrored.row(key, turn) for key in range(turn * 60, turn * 60 + 40)])
        await client.delete("docs", ids=[turn * 60 + 50])


async def keys_of_the_server(real: StandaloneServer, tmp_path: Path) -> None:
    """A collection whose keys 2.3.5 has made is refused, or becomes one with the same keys given."""
    direct = MilvusClient(real.uri, dedicated=True, timeout=30)
    schema = direct.create_schema(auto_id=True)
    schema.add_field("id", DataType.INT64, is_primary=True)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=4)
    params = direct.prepare_index_params()
    params.add_index("vector", index_type="FLAT", metric_type="L2")
    direct.create_collection("made", schema=schema, index_params=params)
    direct.insert("made", [{"vector": [float(i)] * 4} for i in range(50)])
    alone, place = Mirrored(tmp_path, {"real": real.uri}, logged=False), str(tmp_path / "made")
    assert (await alone.run("backup", place, "--collection", "made", "--json"))[0] == 0
    code, _, error = await alone.run("restore", place, "--collection", "made=again", "--json")
    assert code == 2
    assert "the servers made its keys" in error
    code, _, error = await alone.run("restore", place, "--collection", "made=again", "--given-keys", "--json")
    assert (code, error) == (0, "")
    keys = [
        sorted(row["id"] for row in direct.query(name, filter="id > 0", consistency_level="Strong"))
        for name in ("made", "again")
    ]
    assert keys[0] == keys[1]
    assert len(keys[0]) == 50
    direct.close()
