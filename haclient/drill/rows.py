"""What a trial writes: two collections, their rows, and the names of everything in the history.

Decision made here: a row is a function of its version and its *place* (its key; where haclient makes the keys, the
version again), and no version is written twice. So what a cluster holds says who wrote it, and whether it is whole. The
vector is the place's, far from all others, and the index is exact: nearest to a place's vector is the row there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, final

import numpy as np
from pymilvus import DataType, MilvusClient

from haclient.drill.checker import Contents

DIMENSION: Final = 16
#: Keys that are there before the load begins, and that every process of it writes.
KEYS: Final = range(200)
#: Keys that are there and that nobody writes.
CANARIES: Final = range(900, 905)
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


def vector(place: int, dimension: int = DIMENSION) -> list[float]:
    """The unit vector of a place: pseudo-random, the same in every process.

    Random directions in many dimensions are about 90 degrees apart.
    """
    raw = np.random.default_rng(place).standard_normal(dimension)
    return [float(x) for x in (raw / np.linalg.norm(raw)).astype(np.float32)]


def row(version: int, place: int, **more: Any) -> dict[str, Any]:
    """A row of that version at that place; ``more`` is its key and its tag."""
    return {"version": version, "text": f"text of {version}", "vector": vector(place), **more}


def first_rows() -> list[dict[str, Any]]:
    """What is there before the load begins."""
    return [row(key + 1, key, id=key, tag="first") for key in (*KEYS, *CANARIES)]


def connect(uri: str, token: str = "") -> MilvusClient:
    """A client of its own: pymilvus would otherwise share one connection per address, also a broken one."""
    return MilvusClient(uri, token=token, dedicated=True, timeout=10)


def create(client: MilvusClient, name: str, *, auto_id: bool = False) -> None:
    """Create a collection, indexed and loaded."""
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
    """The schema of both collections."""
    made = MilvusClient.create_schema(auto_id=auto_id)
    made.add_field("id", DataType.INT64, is_primary=True)
    made.add_field("version", DataType.INT64)
    made.add_field("tag", DataType.VARCHAR, max_length=64)
    made.add_field("text", DataType.VARCHAR, max_length=64)
    made.add_field("vector", DataType.FLOAT_VECTOR, dim=DIMENSION)
    return made


def load_all(client: MilvusClient) -> None:
    """Load every collection that has an index."""
    for name in client.list_collections():
        if client.list_indexes(name):
            client.load_collection(name)


def contents(client: MilvusClient, names: Names) -> Contents:
    """Read everything of a trial from one cluster, strongly and directly."""
    found = Contents()
    for collection in (names.own, names.auto):
        if client.has_collection(collection):
            client.load_collection(collection, timeout=60)
            _read(client, collection, collection == names.auto, found)
    for collection in client.list_collections():
        if collection.startswith(names.prefix) and collection not in (names.own, names.auto):
            _definition(client, collection, found)
    return found


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
        if problem := damage(one, one["version"] if auto else one["id"]):
            found.damaged.append(f"{name}: {problem}")


def damage(found: Mapping[str, Any], place: int) -> str:
    """Say what is wrong with a row that was found, as far as its fields tell; "" if nothing is."""
    wanted = row(found["version"], place)
    if found["text"] != wanted["text"]:
        return f"its text is {found['text']!r}"
    if "vector" in found and any(
        abs(a - b) > _TOLERANCE for a, b in zip(found["vector"], wanted["vector"], strict=True)
    ):
        return f"its vector is {found['vector']}"
    return ""


def _definition(client: MilvusClient, collection: str, found: Contents) -> None:
    found.registers[f"collection/{collection}"] = 1
    for partition in client.list_partitions(collection):
        if partition != "_default":
            found.registers[f"partition/{collection}/{partition}"] = 1
    for alias in client.list_aliases(collection)["aliases"]:
        found.registers[f"alias/{alias}"] = collection
