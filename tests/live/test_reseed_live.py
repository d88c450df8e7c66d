"""Reseed and verify between a real Milvus 2.3.5 and milvus-lite, both ways, while writes go on."""

from __future__ import annotations

import asyncio
import random
import shutil
from pathlib import Path

import pytest
from pymilvus import DataType, MilvusClient

from haclient import AsyncMilvusClient
from haclient.config import Config
from haclient.config.replication import Replication
from haclient.drill.servers.milvus import StandaloneServer
from haclient.events import EventBus
from haclient.host import Host
from haclient.replication.access import copy_access
from haclient.replication.audit import audit
from haclient.replication.reseed import reseed
from haclient.replication.site import Site
from tests.servers import mirrored
from tests.servers.mirrored import Mirrored
from tests.servers.shared import LiteFactory, StandalonePair

pytestmark = [pytest.mark.live, pytest.mark.slow]


async def divided(client: AsyncMilvusClient) -> None:
    """A collection whose rows the servers put into partitions."""
    schema = client.create_schema(auto_id=False)
    schema.add_field("id", DataType.INT64, is_primary=True)
    schema.add_field("tenant", DataType.VARCHAR, max_length=32, is_partition_key=True)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=4)
    await client.create_collection("divided", schema=schema, num_partitions=4)
    await mirrored.index(client, "divided")
    await client.load_collection("divided")
    rows = [{"id": key, "tenant": f"tenant {key % 9}", "vector": [float(key)] * 4} for key in range(500)]
    await client.upsert("divided", rows)


@pytest.mark.timeout(400)
async def test_each_kind_of_server_is_filled_from_the_other(lite_server: LiteFactory, tmp_path: Path) -> None:
    lite = await lite_server()
    real = StandaloneServer(tmp_path / "real")
    try:
        await real.start()
        fleet = Mirrored(tmp_path, {"real": real.uri, "lite": lite.uri}, {"apply_timeout_s": 10.0})
        async with fleet.client() as client, fleet.reach() as (log, clusters):
            await mirrored.create(client, "docs")
            await mirrored.create(client, "texts", text_keys=True)
            await divided(client)
            await client.create_partition("docs", "p1")
            await mirrored.fill(client, "docs", [-(2**63) + 1, -5, *range(3_000)])
            await mirrored.fill(client, "docs", range(4_000, 4_500), partition_name="p1")
            await mirrored.fill(client, "texts", ["", 'q"uo\\te', "line\nbreak", *(f"k{i}" for i in range(500))])
            await client.create_alias("docs", "latest")
            await client.delete("docs", ids=list(range(100, 150)))
            await fleet.in_sync(log)
            for donor, target, server in (("real", "lite", lite), ("lite", "real", real)):
                await server.kill()
                shutil.rmtree(server.folder / "data")
                await server.start()
                writing = asyncio.create_task(write(client))
                done = await reseed(log, clusters, fleet.config.replication, target, donor=donor, **fleet.options())
                await writing
                assert done.rows >= 4_400, done
                await fleet.in_sync(log)
                report = await audit(clusters, fleet.config.replication, log, **fleet.options())
                assert report.well, report.as_json()
                assert {one.found.collection for one in report.collections} == {"docs", "texts", "divided"}
                assert await client.search("latest", [mirrored.row(7)["vector"]], limit=1)
    finally:
        await real.close()


@pytest.mark.timeout(300)
async def test_roles_are_copied_and_users_named(standalone_pair: StandalonePair) -> None:
    servers = [standalone_pair.a, standalone_pair.b]
    token = "root:Milvus"
    config = Config.load([server.uri for server in servers], token=token)
    one, other = (MilvusClient(server.uri, token=token, dedicated=True) for server in servers)
    host = Host(config, lambda: config, EventBus())
    try:
        for client, user in ((one, "ann"), (one, "bob"), (other, "ann")):
            client.create_user(user, "Passw0rd!")
        one.create_role("reader")
        one.grant_privilege("reader", "Collection", "Search", "docs")
        one.grant_role("ann", "reader")
        one.grant_role("bob", "reader")
        other.create_role("old")
        other.grant_privilege("old", "Collection", "Query", "docs")
        other.grant_role("ann", "old")
        core = await host.enter()
        await core.refresh()
        loop, rng = asyncio.get_running_loop(), random.Random(1)
        donor, target = (Site(core.clusters, one.name, Replication(), rng, loop) for one in config.clusters)
        for _ in range(2):
            (note,) = await copy_access(donor, target)
            assert "user bob is missing" in note
            assert "with the roles reader" in note
        assert other.list_roles() == ["admin", "public", "reader"]
        assert [one["privilege"] for one in other.describe_role("reader")["privileges"]] == ["Search"]
        assert other.describe_user("ann")["roles"] == ("reader",)
    finally:
        await host.aclose()
        for client in (one, other):
            for user in ("ann", "bob"):
                client.drop_user(user)
            for role in ("reader", "old"):
                if role in client.list_roles():
                    for one in client.describe_role(role)["privileges"]:
                        client.revoke_privilege(role, one["object_type"], one["privilege"], one["object_name"])
                    client.drop_role(role)
            client.close()


async def write(client: AsyncMilvusClient) -> None:
    for turn in range(20):
        await client.upsert("docs", [mirrored.row(key, turn) for key in range(turn * 60, turn * 60 + 40)])
        await client.delete("docs", ids=[turn * 60 + 50, 3_000 - turn])
