"""Backups of real milvus-lite servers and what is restored from them, by the commands an operator types."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path
from typing import Any

from pymilvus import DataType, Function, FunctionType, MilvusClient
from pymilvus.grpc_gen import milvus_pb2
from typer.testing import CliRunner

from haclient.cli import app
from haclient.milvus.batch import keys_of
from haclient.replication.log import MutationLog
from tests.servers import mirrored
from tests.servers.mirrored import Mirrored
from tests.servers.shared import LiteFactory, ToxicFactory

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
    one, empty = await lite_server(), await lite_server()
    fleet = Mirrored(tmp_path, {"a": one.uri})
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
            code, _, error = await alone.run("restore", place, "--at", str(seq), *names, "--json")
            assert (code, error) == (0, ""), error
            for name in ("docs", "texts"):
                wanted = await model(log, name, seq)
                assert await asyncio.to_thread(held, empty.uri, f"{name}{seq}") == wanted
                assert len(wanted) > 300


def typed(client: MilvusClient, name: str, key: str = "id") -> None:
    """A collection of what milvus-lite gives back otherwise than it takes it, and of what it computes itself."""
    schema = client.create_schema(enable_dynamic_field=True)
    schema.add_field(key, DataType.INT64, is_primary=True)
    schema.add_field("tenant", DataType.VARCHAR, max_length=16, is_partition_key=True)
    schema.add_field("text", DataType.VARCHAR, max_length=200, enable_analyzer=True)
    schema.add_field("note", DataType.VARCHAR, max_length=64, nullable=True)
    schema.add_field("amount", DataType.INT64, nullable=True)
    schema.add_field("words", DataType.ARRAY, element_type=DataType.VARCHAR, max_capacity=4, max_length=16)
    schema.add_field("doc", DataType.JSON)
    schema.add_field("sparse", DataType.SPARSE_FLOAT_VECTOR)
    schema.add_field("made", DataType.SPARSE_FLOAT_VECTOR)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=8)
    schema.add_function(Function("bm25", FunctionType.BM25, ["text"], ["made"]))
    params = client.prepare_index_params()
    params.add_index("sparse", index_type="SPARSE_INVERTED_INDEX", metric_type="IP")
    params.add_index("made", index_type="SPARSE_INVERTED_INDEX", metric_type="BM25")
    params.add_index("vector", index_type="FLAT", metric_type="L2")
    client.create_collection(name, schema=schema, index_params=params)
    client.insert(name, [typed_row(at, name, key) for at in range(120)])


def typed_row(at: int, name: str, key: str = "id") -> dict[str, Any]:
    made: dict[str, Any] = {
        key: at,
        "tenant": f"tenant {at % 5}",
        "text": f"{name} has the word{at} number {at}",
        "note": None if at % 2 else f"note {at}",
        "amount": None if at % 3 else at,
        "words": [f"w{i}" for i in range(at % 3)],
        "doc": {"b": [1, 2.5, None, {}], "a": {"n": at}},
        "sparse": {at: 0.5, at + 7: 1.5},
        "vector": [float(at), *[0.25] * 7],
    }
    return made | ({"extra": {"version": at}} if at % 4 else {})


def everything(uri: str, name: str, key: str = "id") -> list[dict[str, Any]]:
    client = MilvusClient(uri, dedicated=True, timeout=10)
    try:
        fields = [key, "tenant", "text", "note", "amount", "words", "doc", "sparse", "vector", "extra"]
        found = client.query(name, filter=f"{key} >= 0", output_fields=fields, limit=1_000)
        return sorted(({**row} for row in found), key=lambda row: row[key])
    finally:
        client.close()


async def test_what_servers_give_back_otherwise_survives_and_a_kill_costs_one_file(
    lite_server: LiteFactory, toxic: ToxicFactory, tmp_path: Path
) -> None:
    one, other = await lite_server(), await lite_server()
    place, names = str(tmp_path / "backups"), {"c1": "id", "c2": "id", "c3": "third_key"}
    client = MilvusClient(one.uri, dedicated=True, timeout=10)
    for name, key in names.items():
        typed(client, name, key)
    client.release_collection("c2")
    client.close()
    wanted = {name: everything(one.uri, name, key) for name, key in names.items() if name != "c2"}

    async def killed_at(words: bytes, port: int, *command: str) -> str:
        """Run a command, and kill it when it sends certain words."""
        proxy = await toxic(port)
        line = [sys.executable, "-c", "from haclient.cli import main; main()", *command, "--uri", proxy.uri]
        process = await asyncio.create_subprocess_exec(*line, "--workers", "1", stderr=asyncio.subprocess.PIPE)
        proxy.trip(words, process.kill)
        _, error = await process.communicate()
        assert process.returncode == -signal.SIGKILL, error
        await proxy.heal()
        return proxy.uri

    # The rows of c3 are asked for when c1 and c2 are whole.
    uri = await killed_at(b"third_key <= ", one.port, "backup", place)
    (begun,) = Path(place).iterdir()
    whole = {path: path.stat().st_mtime_ns for path in begun.rglob("*.parquet")}
    assert len(whole) == 2
    told = await run("backup", place, "--uri", uri, "--workers", "1", "--json")
    assert (told["id"], told["rows"], told["exact"]) == (begun.name, 360, True)
    assert {path: path.stat().st_mtime_ns for path in whole} == whole

    uri = await killed_at(b"c3 has the word", other.port, "restore", place)
    partly = {name for name in names if has_rows(other.uri, name)}
    assert partly == {"c1", "c2"}
    told = await run("restore", place, "--uri", uri, "--workers", "1", "--json")
    assert told["rows"] == 360
    for name, rows in wanted.items():
        assert everything(other.uri, name, names[name]) == rows
    direct = MilvusClient(other.uri, dedicated=True, timeout=10)
    assert str(direct.get_load_state("c2")["state"]) == "NotLoad"
    assert len(direct.list_indexes("c2")) == 3
    # What the server computes itself it has computed anew.
    (hits,) = direct.search("c1", ["word7"], anns_field="made", limit=1, output_fields=["text"])
    assert hits[0]["entity"]["text"] == "c1 has the word7 number 7"
    direct.close()
    assert (await run("backup", "verify", place, "--json"))["well"]


async def run(*command: str) -> Any:
    """Run a command that has to succeed; returns what it printed."""
    done = await asyncio.to_thread(CliRunner().invoke, app, list(command))
    assert done.exit_code == 0, (done.stderr, done.exception)
    return json.loads(done.stdout)


def has_rows(uri: str, name: str) -> bool:
    """Whether a server has the rows of a collection; it need not be loaded."""
    client = MilvusClient(uri, dedicated=True, timeout=10)
    try:
        client.flush(name)
        return int(client.get_collection_stats(name)["row_count"]) > 0
    finally:
        client.close()
