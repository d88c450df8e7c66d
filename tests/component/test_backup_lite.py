"""Backups of real milvus-lite servers and what is restored from them, by the commands an operator types."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from pymilvus import MilvusClient
from pymilvus.grpc_gen import milvus_pb2

from haclient.milvus.batch import keys_of
from haclient.replication.log import MutationLog
from tests.servers import mirrored
from tests.servers.mirrored import Mirrored
from tests.servers.shared import LiteFactory

Model = dict[Any, str]


async def model(log: MutationLog, collection: str, through: int) -> Model:
    """What the log says that a collection holds: its texts by key."""
    rows: Model = {}
    after = 0
    while after < through:
        for entry in await log.read(after):
            after = entry.seq
            method, message = entry.mutation.method, entry.mutation.message
            if entry.mutation.stream != ("", collection) or after > through:
                continue
            if method == "Delete":
                for key in keys_of(method, message, "id"):
                    rows.pop(key, None)
            elif method in ("Upsert", "Insert"):
                told = milvus_pb2.UpsertRequest.FromString(message)
                texts = next(one.scalars.string_data.data for one in told.fields_data if one.field_name == "text")
                rows |= dict(zip(keys_of(method, message, "id"), texts, strict=True))
    return rows


def held(uri: str, collection: str) -> Model:
    """What a server holds, without haclient."""
    client = MilvusClient(uri, dedicated=True, timeout=10)
    try:
        pages = client.query_iterator(collection, batch_size=1_000, output_fields=["id", "text"])
        rows: Model = {}
        while page := pages.next():
            rows |= {row["id"]: row["text"] for row in page}
        pages.close()
        return rows
    finally:
        client.close()


async def test_a_backup_made_under_writes_is_what_the_fleet_held_at_one_entry(
    lite_server: LiteFactory, tmp_path: Path
) -> None:
    one, other, empty = await lite_server(), await lite_server(), await lite_server()
    fleet = Mirrored(tmp_path, {"a": one.uri, "b": other.uri})
    place = str(tmp_path / "backups")
    async with fleet.client() as client, fleet.reach() as (log, _):
        await mirrored.create(client, "docs")
        await mirrored.create(client, "texts", text_keys=True)
        await client.create_partition("docs", "p1")
        await mirrored.fill(client, "docs", range(1_500))
        await mirrored.fill(client, "docs", range(2_000, 2_300), partition_name="p1")
        await mirrored.fill(client, "texts", ["", 'q"uo\\te', "é", "line\nbreak", *(f"key {i}" for i in range(300))])
        await client.create_alias("docs", "latest")
        stop = asyncio.Event()

        async def write() -> None:
            turn = 0
            while not stop.is_set():
                turn += 1
                await client.upsert(
                    "docs", [mirrored.row(key, turn) for key in range(turn % 90 * 20, turn % 90 * 20 + 8)]
                )
                await client.delete("docs", ids=[turn % 1_500])

        writing = asyncio.create_task(write())
        code, full, error = await fleet.run("backup", place, "--json")
        assert (code, error) == (0, "")
        code, later, error = await fleet.run("backup", place, "--incremental", "--json")
        assert (code, error) == (0, "")
        stop.set()
        await writing
        assert full["rows"] > 1_500
        assert full["exact"]
        assert later["seq"] > full["seq"]
        # In the middle of the second one, and at both ends.
        alone = Mirrored(tmp_path, {"alone": empty.uri}, logged=False)
        for seq in (full["seq"], (full["seq"] + later["seq"]) // 2, later["seq"]):
            names = ["--collection", f"docs=docs{seq}", "--collection", f"texts=texts{seq}"]
            code, done, error = await alone.run("restore", place, "--at", str(seq), *names, "--json")
            assert (code, error) == (0, ""), error
            for name in ("docs", "texts"):
                wanted = await model(log, name, seq)
                assert await asyncio.to_thread(held, empty.uri, f"{name}{seq}") == wanted
                assert len(wanted) > 300
