"""The same rows on each server, with vectors so far apart that the true nearest neighbour is known."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import grpc
from pymilvus import DataType, MilvusClient, MilvusException

from haclient.drill.rows import connect
from haclient.drill.rows import vector as unit_vector

COLLECTION = "docs"
DIMENSION = 32


def vector(key: int, dimension: int = DIMENSION) -> list[float]:
    """The unit vector of a row; the nearest to a row's own vector is that row."""
    return unit_vector(key, dimension)


def row(key: int, dimension: int = DIMENSION) -> dict[str, Any]:
    return {"id": key, "text": f"text of {key}", "vector": vector(key, dimension)}


def fill(
    uris: Iterable[str],
    *,
    collection: str = COLLECTION,
    rows: int = 1000,
    dimension: int = DIMENSION,
    index: str = "FLAT",
    metric: str = "COSINE",
    replicas: int = 1,
    token: str = "",
) -> None:
    """Create the collection anew on each server, insert rows 0..rows-1, flush, index, load, and read it back."""
    data = [row(key, dimension) for key in range(rows)]
    for uri in uris:
        client = connect(uri, token)
        try:
            if client.has_collection(collection):
                client.drop_collection(collection)
            schema = client.create_schema(auto_id=False)
            schema.add_field("id", DataType.INT64, is_primary=True)
            schema.add_field("text", DataType.VARCHAR, max_length=512)
            schema.add_field("vector", DataType.FLOAT_VECTOR, dim=dimension)
            client.create_collection(collection, schema=schema)
            for start in range(0, rows, 1000):
                client.insert(collection, data[start : start + 1000])
            client.flush(collection)
            params = client.prepare_index_params()
            params.add_index("vector", index_type=index, metric_type=metric)
            client.create_index(collection, params)
            client.load_collection(collection, replica_number=replicas)
        finally:
            client.close()
        wait_readable(uri, collection=collection, rows=rows, token=token)


def wait_readable(
    uri: str, *, collection: str = COLLECTION, rows: int = 1, token: str = "", timeout_s: float = 60, load: bool = False
) -> None:
    """Wait until a count of the collection on this server shows all rows; with ``load`` load it first."""

    def readable(client: MilvusClient) -> bool:
        if load:
            client.load_collection(collection, timeout=30)
        answer = client.query(collection, output_fields=["count(*)"], consistency_level="Strong", timeout=10)
        return int(answer[0]["count(*)"]) >= rows

    poll(uri, readable, token=token, timeout_s=timeout_s)


def count(uri: str, *, collection: str = COLLECTION, token: str = "", timeout_s: float = 60) -> int:
    """Load the collection and count its rows, as soon as the server can; 0 if it does not exist."""
    rows = 0

    def counted(client: MilvusClient) -> bool:
        nonlocal rows
        if client.has_collection(collection, timeout=10):
            client.load_collection(collection, timeout=30)
            answer = client.query(collection, output_fields=["count(*)"], consistency_level="Strong", timeout=10)
            rows = int(answer[0]["count(*)"])
        return True

    poll(uri, counted, token=token, timeout_s=timeout_s)
    return rows


def wait_settled(
    uris: Sequence[str], *, collection: str = COLLECTION, rows: int, token: str = "", timeout_s: float = 120
) -> None:
    """Wait until every replica behind these proxies answers rightly again.

    One good answer proves one replica: after a query node came back, some answers are still errors or incomplete.
    """
    keys = range(0, rows, max(1, rows // 5))

    def settled(client: MilvusClient) -> bool:
        for _ in range(10):
            hits = client.search(collection, data=[vector(key) for key in keys], limit=1, timeout=10)
            found = [answer[0]["id"] if answer else None for answer in hits]
            if found != list(keys):
                return False
        return True

    for uri in uris:
        wait_readable(uri, collection=collection, rows=rows, token=token, timeout_s=timeout_s)
        poll(uri, settled, token=token, timeout_s=timeout_s)


def poll(uri: str, done: Callable[[MilvusClient], bool], *, token: str = "", timeout_s: float = 60) -> None:
    """Ask one server until ``done``; errors count as not yet (pymilvus passes a time-out on as gRPC's own)."""
    deadline = time.monotonic() + timeout_s
    last: Exception | None = None
    while time.monotonic() < deadline:
        try:
            client = connect(uri, token)
            try:
                if done(client):
                    return
            finally:
                client.close()
        except (MilvusException, grpc.RpcError) as error:
            last = error
        time.sleep(0.1)
    raise TimeoutError(f"{uri}: not within {timeout_s:g} s; last: {last!r}")


def found(uri: str, keys: Sequence[int], *, collection: str = COLLECTION, token: str = "") -> list[int]:
    """The nearest row to each key's vector, which is the key itself."""
    client = connect(uri, token)
    try:
        hits = client.search(collection, data=[vector(key) for key in keys], limit=1, timeout=10)
        return [int(answer[0]["id"]) for answer in hits]
    finally:
        client.close()
