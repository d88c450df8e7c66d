"""Reseed, verify and repair of real milvus-lite servers, by the commands an operator types."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest
from pymilvus import MilvusClient

from haclient.replication.audit import audit
from haclient.replication.reseed import reseed
from tests.servers import mirrored
from tests.servers.mirrored import Mirrored
from tests.servers.shared import LiteFactory


def direct(uri: str) -> MilvusClient:
    """A client of one server, behind the log's back."""
    return MilvusClient(uri, dedicated=True, timeout=10)


async def test_a_new_server_is_filled_while_writes_go_on_and_is_then_the_same(
    lite_server: LiteFactory, tmp_path: Path
) -> None:
    one, other = await lite_server(), await lite_server()
    fleet = Mirrored(tmp_path, {"a": one.uri, "b": other.uri})
    async with fleet.client() as client, fleet.reach() as (log, clusters):
        await mirrored.create(client, "docs")
        await mirrored.create(client, "texts", text_keys=True)
        await client.create_partition("docs", "p1")
        await mirrored.fill(client, "docs", range(1_500))
        await mirrored.fill(client, "docs", range(2_000, 2_300), partition_name="p1")
        keys = ["", 'q"uo\\te', "é", "line\nbreak", "z😀", *(f"key {i}" for i in range(300))]
        await mirrored.fill(client, "texts", keys)
        await client.create_alias("docs", "latest")
        await fleet.in_sync(log)
        await other.kill()
        shutil.rmtree(other.folder / "data")
        await other.start()
        stray = direct(other.uri)
        stray.create_collection("stray", dimension=4)
        stray.close()

        async def write() -> None:
            for turn in range(20):
                await client.upsert("docs", [mirrored.row(key, 1) for key in range(turn * 70, turn * 70 + 40)])
                await client.delete("docs", ids=[turn * 70 + 50])

        writing = asyncio.create_task(write())
        done = await reseed(log, clusters, fleet.config.replication, "b", donor="a", **fleet.options())
        await writing
        assert done.donor == "a"
        assert done.rows >= 2_000
        await fleet.in_sync(log)
        report = await audit(clusters, fleet.config.replication, log, **fleet.options())
        assert report.well, report.as_json()
        assert {one.found.collection for one in report.collections} == {"docs", "texts"}
        behind = direct(other.uri)
        assert behind.list_aliases("docs")["aliases"] == ["latest"]
        assert behind.query("docs", filter="id == 10", output_fields=["text"])[0]["text"] == mirrored.row(10, 1)["text"]
        behind.close()


async def test_what_differs_is_shown_and_mended_by_what_the_log_says(lite_server: LiteFactory, tmp_path: Path) -> None:
    one, other = await lite_server(), await lite_server()
    fleet = Mirrored(tmp_path, {"a": one.uri, "b": other.uri})
    async with fleet.client() as client, fleet.reach() as (log, _):
        await mirrored.create(client, "docs")
        await mirrored.fill(client, "docs", range(400))
        await fleet.in_sync(log)
        assert (await fleet.run("verify", "--json"))[0] == 0
        behind = direct(other.uri)
        behind.delete("docs", ids=[1, 2])
        behind.upsert("docs", [mirrored.row(3, 7), mirrored.row(900)])
        behind.close()
        code, report, _ = await fleet.run("verify", "docs", "--json")
        assert code == 1
        told = report["collections"][0]["found"]["differing"]["b"]
        assert told["keys"] == {"missing": [1, 2], "extra": [900], "other": [3]}
        code, report, error = await fleet.run("verify", "docs", "--repair", "--json")
        # The log knows nothing of row 900, and two clusters are no majority.
        assert (code, error) == (1, "")
        assert report["collections"][0]["repaired"]["undecided"] == [900]
        code, report, error = await fleet.run("verify", "docs", "--repair", "--from", "a", "--json")
        assert (code, error, report["well"]) == (0, "", True)
        await fleet.in_sync(log)


async def test_the_commands_say_what_is_wrong_with_what_was_typed(lite_server: LiteFactory, tmp_path: Path) -> None:
    server = await lite_server()
    fleet = Mirrored(tmp_path, {"a": server.uri})
    async with fleet.client() as client:
        await mirrored.create(client, "docs")
        code, _, error = await fleet.run("reseed", "nowhere", "--yes")
        assert (code, error) == (2, "haclient: there is no cluster 'nowhere'; write one of a\n")
        code, _, error = await fleet.run("reseed", "a", "--yes")
        assert code == 1
        assert "no cluster to copy a from" in error
        code, _, error = await fleet.run("verify", "none")
        assert (code, error) == (2, "haclient: no cluster has a collection 'none'\n")
        code, view, _ = await fleet.run("log", "show", "--json")
        assert (code, view["clusters"][0]["standing"]) == (0, "in_sync")
        code, views, error = await fleet.run("log", "inspect", "1", "--json")
        assert code == 0, error
        assert (views[0]["method"], views[0]["stream"]) == ("CreateCollection", "default.docs")
        code, _, error = await fleet.run("log", "skip", "a", "1")
        assert code == 2
        assert "nothing has stopped there" in error


async def test_a_collection_that_was_there_before_is_adopted_once_it_is_the_same(
    lite_server: LiteFactory, tmp_path: Path
) -> None:
    one, other = await lite_server(), await lite_server()
    fleet = Mirrored(tmp_path, {"a": one.uri, "b": other.uri})
    for server in (one, other):
        async with Mirrored(tmp_path, {"alone": server.uri}, logged=False).client() as client:
            await mirrored.create(client, "old")
            await mirrored.fill(client, "old", range(50 if server is one else 49))
    fleet = Mirrored(tmp_path, {"a": one.uri, "b": other.uri})
    async with fleet.client() as client, fleet.reach() as (log, _):
        await mirrored.create(client, "other")
        code, report, _ = await fleet.run("verify", "old", "--adopt", "--json")
        assert code == 1
        assert "1 missing" in report["collections"][0]["failure"]
        code, report, error = await fleet.run("verify", "old", "--repair", "--from", "a", "--adopt", "--json")
        assert (code, error, report["collections"][0]["adopted"]) == (0, "", True)
        await client.upsert("old", [mirrored.row(3, 9)])
        await fleet.in_sync(log)
        assert (await fleet.run("verify", "--json"))[0] == 0


@pytest.mark.parametrize("logged", [True, False])
async def test_clusters_are_compared_without_a_log_too(lite_server: LiteFactory, tmp_path: Path, logged: bool) -> None:
    one, other = await lite_server(), await lite_server()
    for server in (one, other):
        async with Mirrored(tmp_path, {"alone": server.uri}, logged=False).client() as client:
            await mirrored.create(client, "old")
            await mirrored.fill(client, "old", range(30))
    fleet = Mirrored(tmp_path, {"a": one.uri, "b": other.uri}, logged=logged)
    code, report, error = await fleet.run("verify", "--json")
    assert (code, error, report["collections"][0]["found"]["equal"]) == (0, "", 30)
