"""Every type that milvus-lite takes, from one server to another one by way of a backup."""

from __future__ import annotations

from pathlib import Path

from pymilvus import DataType, Function, FunctionType, MilvusClient

from haclient.recovery.check import verify
from haclient.recovery.store import open_store
from tests.servers import typed
from tests.servers.mirrored import Mirrored
from tests.servers.shared import LiteFactory

VECTORS = {"floats": DataType.FLOAT_VECTOR, "sparse": DataType.SPARSE_FLOAT_VECTOR}


async def test_every_type_of_lite_comes_back(lite_server: LiteFactory, tmp_path: Path) -> None:
    one, other = await lite_server(), await lite_server()
    place = str(tmp_path / "backups")
    before, after = (MilvusClient(server.uri, dedicated=True, timeout=30) for server in (one, other))
    try:
        typed.create(before, "typed", VECTORS)
        typed.create(before, "holes", VECTORS, nullable=True)
        computed(before)
        source = Mirrored(tmp_path, {"alone": one.uri}, logged=False)
        code, made, error = await source.run("backup", place, "--json")
        assert code == 0, error
        assert verify(open_store(place), made["id"]).well
        target = Mirrored(tmp_path, {"alone": other.uri}, logged=False)
        code, _, error = await target.run("restore", place, "--json")
        assert code == 0, error
        for name in ("typed", "holes"):
            rows = typed.held(before, name)
            assert len(rows) == typed.ROWS
            assert typed.held(after, name) == rows
        hits = [client.search("texts", ["brown fox"], anns_field="words", limit=2)[0] for client in (before, after)]
        assert [hit["id"] for hit in hits[0]] == [hit["id"] for hit in hits[1]] == [1, 2]
    finally:
        before.close()
        after.close()


def computed(client: MilvusClient) -> None:
    """Make a collection with a column that the server computes: it is not backed up, but computed again."""
    schema = client.create_schema(auto_id=False)
    schema.add_field("id", DataType.INT64, is_primary=True)
    schema.add_field("text", DataType.VARCHAR, max_length=100, enable_analyzer=True)
    schema.add_field("words", DataType.SPARSE_FLOAT_VECTOR)
    schema.add_function(
        Function(name="bm25", function_type=FunctionType.BM25, input_field_names=["text"], output_field_names=["words"])
    )
    index = client.prepare_index_params()
    index.add_index("words", index_type="SPARSE_INVERTED_INDEX", metric_type="BM25")
    client.create_collection("texts", schema=schema, index_params=index)
    client.insert(
        "texts", [{"id": 1, "text": "a quick brown fox"}, {"id": 2, "text": "brown"}, {"id": 3, "text": "dog"}]
    )
    client.load_collection("texts")
