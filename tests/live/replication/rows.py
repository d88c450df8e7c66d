"""What a trial writes: two collections, their rows, and the names of everything in the history.

Decision made here: a row is a function of its version, and no version is written twice. So what a cluster holds says
who wrote it, and whether it is whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, final

from pymilvus import DataType, MilvusClient

from tests.live.replication.checker import Contents
from tests.servers import fill

DIMENSION: Final = 8
#: Keys that every process writes.
SHARED: Final = range(20)
#: Versions of one process.
_VERSIONS: Final = 1_000_000
#: Rows that one query may return.
_MOST: Final = 16_384
_TOLERANCE: Final = 1e-6


@final
class Names:
    """The collections of one trial.

    Args:
        trial: What all their names begin with.
    """

    def __init__(self, trial: str) -> None:
        self.trial = trial
        self.prefix = f"{trial}_"
        self.own = f"{trial}_own"
        self.auto = f"{trial}_auto"

    def extra(self, worker: int, number: int) -> str:
        """A collection that one process creates and drops."""
        return f"{self.prefix}extra_{worker}_{number}"


def versions(worker: int) -> Iterator[int]:
    """Versions that only this process writes."""
    return iter(range(worker * _VERSIONS + 1, (worker + 1) * _VERSIONS))


def private(worker: int) -> range:
    """Keys that only this process writes."""
    return range(1_000 * worker, 1_000 * worker + 10)


def row(version: int, **more: Any) -> dict[str, Any]:
    """A row of that version; ``more`` is its key and its tag."""
    return {"version": version, "text": f"text of {version}", "vector": fill.vector(version, DIMENSION), **more}


def create(client: MilvusClient, names: Names) -> None:
    """Create both collections, indexed and loaded."""
    for name, auto_id in ((names.own, False), (names.auto, True)):
        indexes = client.prepare_index_params()
        indexes.add_index("vector", index_type="FLAT", metric_type="L2")
        client.create_collection(name, schema=schema(auto_id), index_params=indexes)


def drop(client: MilvusClient, names: Names) -> None:
    """Drop everything of a trial."""
    for name in client.list_collections():
        if name.startswith(names.prefix):
            for alias in client.list_aliases(name)["aliases"]:
                client.drop_alias(alias)
            client.drop_collection(name)


def schema(auto_id: bool) -> Any:
    made = MilvusClient.create_schema(auto_id=auto_id)
    made.add_field("id", DataType.INT64, is_primary=True)
    made.add_field("version", DataType.INT64)
    made.add_field("tag", DataType.VARCHAR, max_length=64)
    made.add_field("text", DataType.VARCHAR, max_length=64)
    made.add_field("vector", DataType.FLOAT_VECTOR, dim=DIMENSION)
    return made


def load_all(uri: str) -> None:
    """Load every collection that has an index."""
    client = fill.connect(uri)
    try:
        for name in client.list_collections():
            if client.list_indexes(name):
                client.load_collection(name)
    finally:
        client.close()


def contents(uri: str, names: Names) -> Contents:
    """Read everything of a trial from one cluster, strongly and directly."""
    client = fill.connect(uri)
    try:
        found = Contents()
        for collection in (names.own, names.auto):
            if client.has_collection(collection):
                client.load_collection(collection, timeout=60)
                _read(client, collection, collection == names.auto, found)
        for collection in client.list_collections():
            if collection.startswith(names.prefix) and collection not in (names.own, names.auto):
                _definition(client, collection, found)
        return found
    finally:
        client.close()


def _read(client: MilvusClient, collection: str, auto: bool, found: Contents) -> None:
    fields = ["id", "version", "text", "vector"]
    (count,) = client.query(collection, output_fields=["count(*)"], consistency_level="Strong", timeout=30)
    assert count["count(*)"] < _MOST, f"{collection} has {count}: more than one query may return"
    rows = client.query(
        collection, filter="id >= 0", limit=_MOST, output_fields=fields, consistency_level="Strong", timeout=30
    )
    if count["count(*)"] != len(rows):
        found.duplicates.append(f"{collection}: {len(rows)} rows, count(*) says {count['count(*)']}")
    for one in rows:
        name = f"auto/{one['version']}" if auto else f"own/{one['id']}"
        if name in found.registers:
            found.duplicates.append(f"{name}: {one['id']}")
        found.registers[name] = 1 if auto else one["version"]
        if auto:
            found.keys[name] = one["id"]
        if problem := _damage(one):
            found.damaged.append(f"{name}: {problem}")


def _damage(found: Mapping[str, Any]) -> str:
    wanted = row(found["version"])
    if found["text"] != wanted["text"]:
        return f"its text is {found['text']!r}"
    if any(abs(a - b) > _TOLERANCE for a, b in zip(found["vector"], wanted["vector"], strict=True)):
        return f"its vector is {found['vector']}"
    return ""


def _definition(client: MilvusClient, collection: str, found: Contents) -> None:
    found.registers[f"collection/{collection}"] = 1
    for partition in client.list_partitions(collection):
        if partition != "_default":
            found.registers[f"partition/{collection}/{partition}"] = 1
    for alias in client.list_aliases(collection)["aliases"]:
        found.registers[f"alias/{alias}"] = collection
