"""A main site of two milvus-lite servers and a third one far away: lag, failover of both kinds, and the way back."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pymilvus import MilvusClient

from haclient import AsyncMilvusClient, acknowledged
from haclient.errors import WriteNotConfirmed, WriteRefused
from haclient.events import AsyncLagging, Event, SiteChanged
from haclient.replication.audit import audit
from haclient.replication.hold import position_of
from haclient.replication.log import MutationLog
from haclient.replication.position import Standing
from tests.servers import mirrored
from tests.servers.mirrored import Mirrored
from tests.servers.shared import LiteFactory, ToxicFactory

FAR_S = 0.2
SETTINGS = {"watermark_s": 0.2, "apply_timeout_s": 2.0, "lease_s": 0.5, "max_lag_s": 0.3}
PATIENCE_S = 60


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            found = condition()
            if await found if asyncio.iscoroutine(found) else found:
                return
            await asyncio.sleep(0.05)


async def marked(log: MutationLog, cluster: str) -> bool:
    """Whether a cluster has everything and says so itself."""
    head, position = (await log.bounds()).head, await position_of(log, cluster)
    return position.standing is Standing.IN_SYNC and position.low == position.marked == head


def keys_on(uri: str) -> set[int]:
    """The keys that a server holds, asked directly."""
    client = MilvusClient(uri, dedicated=True, timeout=10)
    try:
        client.load_collection("docs")
        return {row["id"] for row in client.query("docs", filter="id >= 0", output_fields=["id"], limit=16_384)}
    finally:
        client.close()


def listen(client: AsyncMilvusClient) -> list[Event]:
    heard: list[Event] = []
    client.subscribe(heard.append)
    return heard


async def write(client: AsyncMilvusClient, keys: range) -> list[float]:
    """Upsert rows one by one; returns how long each took, seconds."""
    loop, took = asyncio.get_running_loop(), []
    for key in keys:
        began = loop.time()
        await client.upsert("docs", [mirrored.row(key)])
        took.append(loop.time() - began)
    return sorted(took)


async def test_the_main_site_is_lost_with_its_log_and_comes_back(
    lite_server: LiteFactory, toxic: ToxicFactory, tmp_path: Path
) -> None:
    a, b, far = await lite_server(), await lite_server(), await lite_server()
    link = await toxic(far.port)
    link.delay(FAR_S)
    main_folder, other_folder = tmp_path / "main", tmp_path / "other"
    for folder in (main_folder, other_folder):
        folder.mkdir()
    main = Mirrored(main_folder, {"a": a.uri, "b": b.uri, "far": link.uri}, SETTINGS, asynchronous=["far"])
    async with main.reach() as (log, _), main.client() as client:
        heard = listen(client)
        await mirrored.create(client, "docs")
        await mirrored.fill(client, "docs", range(300))
        with acknowledged("all"):
            took = await write(client, range(300, 340))
        assert took[len(took) // 2] < FAR_S, "a write waits for nobody who is far away"
        await until(lambda: marked(log, "far"))
        known = (await log.bounds()).head
        link.black_hole()
        with acknowledged("all"):
            await write(client, range(1_000, 1_030))
        await until(lambda: any(isinstance(one, AsyncLagging) and one.lagging for one in heard))
        shown = {cluster.name: cluster for cluster in client.fleet.clusters}
        assert (shown["far"].asynchronous, shown["far"].lag) == (True, 30)
        assert shown["far"].lag_s is not None
        assert not shown["a"].asynchronous
        code, listed, _ = await main.run("failover", "--list", "--json")
        roles = {one["name"]: one for one in listed["clusters"]}
        assert (code, roles["far"]["counts"], roles["far"]["entries"], roles["a"]["counts"]) == (0, False, 30, True)
        everything = keys_on(a.uri)
        await a.kill()
        await b.kill()
    shutil.move(main_folder / "mutations.log", tmp_path / "lost.log")
    for side in ("-wal", "-shm"):
        (main_folder / f"mutations.log{side}").unlink(missing_ok=True)
    await link.heal()
    link.delay(0.0)

    # The other site has nothing but its cluster.
    uris = {"a": a.uri, "b": b.uri, "far": far.uri}
    other = Mirrored(other_folder, uris, SETTINGS, asynchronous=["far"])
    code, _, text = await other.run("failover", "far", "--yes")
    assert (code, "--force" in text) == (2, True), text
    code, done, text = await other.run("failover", "far", "--force", "--yes", "--json")
    assert code == 0, text
    missing = everything - keys_on(far.uri)
    assert missing == set(range(1_000, 1_030))
    assert done["loss"]["through"] == known, "up to there it has everything: one entry for each row that is missing"
    assert done["loss"]["age_s"] > 0
    assert done["loss"]["unseen"] == ["a", "b"]
    async with other.client() as client, other.reach() as (log, _):
        with acknowledged("all"):
            await write(client, range(2_000, 2_005))
        found = await client.query("docs", filter="id >= 2000", output_fields=["id"], consistency_level="Strong")
        assert len(found) == 5

        # The former site is back: its processes find out that they are no longer the ones that write.
        await a.start()
        await b.start()
        (main_folder / "mutations.log").unlink(missing_ok=True)
        shutil.move(tmp_path / "lost.log", main_folder / "mutations.log")
        async with main.client() as stale:
            await stale.list_collections()
            await until(lambda: _is_refused(stale))
        assert missing.isdisjoint(keys_on(far.uri)), "nothing that was lost comes back behind the new log's back"
        assert (await position_of(log, "a")).standing is Standing.NEEDS_RESEED
        for name in ("a", "b"):
            assert (await other.run("failover", name, "--yes"))[0] == 1, "it is not whole"
            assert (await other.run("reseed", name, "--yes"))[0] == 0
        await other.in_sync(log)
        code, done, text = await other.run("failover", "a", "b", "--yes", "--json")
        assert (code, done["counted"], done["following"]) == (0, ["a", "b"], ["far"]), text
        with acknowledged("all"):
            await write(client, range(3_000, 3_005))
        assert keys_on(a.uri) == keys_on(b.uri) >= set(range(3_000, 3_005))
        await other.in_sync(log)
        async with other.reach() as (_, clusters):
            report = await audit(clusters, other.config.replication, log, **other.options())
            assert report.well, report.as_json()


async def _is_refused(client: AsyncMilvusClient) -> bool:
    try:
        await client.upsert("docs", [mirrored.row(9_999)], timeout=2)
    except WriteRefused as error:
        return "later log" in str(error)
    except WriteNotConfirmed:
        pass  # it does not know yet, but has nobody who would take it
    return False


async def test_a_planned_failover_under_writes_loses_nothing(
    lite_server: LiteFactory, toxic: ToxicFactory, tmp_path: Path
) -> None:
    a, b, far = await lite_server(), await lite_server(), await lite_server()
    link = await toxic(far.port)
    link.delay(FAR_S)
    fleet = Mirrored(tmp_path, {"a": a.uri, "b": b.uri, "far": link.uri}, SETTINGS, asynchronous=["far"])
    async with fleet.client() as client, fleet.reach() as (log, _):
        heard = listen(client)
        await mirrored.create(client, "docs")
        written: list[int] = []

        async def keep_writing() -> None:
            for key in range(10_000):
                await client.upsert("docs", [mirrored.row(key)])
                written.append(key)

        writing = asyncio.create_task(keep_writing())
        for names in (["far"], ["a", "b"]):
            count = len(written) + 10
            await until(lambda most=count: len(written) > most)
            code, done, text = await fleet.run("failover", *names, "--yes", "--json")
            assert (code, done["counted"], done["lost_entries"]) == (0, names, 0), text
            await until(lambda wanted=tuple(names): _switched(heard, wanted))
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing
        await fleet.in_sync(log)
        assert keys_on(far.uri) == keys_on(a.uri) == keys_on(b.uri) >= set(written)


def _switched(heard: list[Event], counted: tuple[str, ...]) -> bool:
    return any(isinstance(one, SiteChanged) and one.counted == counted for one in heard)
