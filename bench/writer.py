"""One client that writes, in a process of its own, for `write_cost.py`.

    python bench/writer.py pymilvus '["http://...", ...]'      each batch into each server, one after the other
    python bench/writer.py haclient '{"cluster": [...], ...}'  the configuration

Commands on stdin, see `main`. Both are pymilvus' asynchronous client to the application, so both pay the same for
turning rows into messages; the rows are made before the clock starts.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import sys
import time
from typing import Any

import numpy as np
from harness import commands, run, say

DIMENSION = 384


def schema(client: Any, auto_id: bool) -> Any:
    from pymilvus import DataType

    made = client.create_schema(auto_id=auto_id)
    made.add_field("id", DataType.INT64, is_primary=True)
    made.add_field("text", DataType.VARCHAR, max_length=512)
    made.add_field("vector", DataType.FLOAT_VECTOR, dim=DIMENSION)
    return made


def create(client: Any, name: str, auto_id: bool) -> None:
    """Create an indexed and loaded collection; by a synchronous client, which makes indexes on milvus-lite too."""
    indexes = client.prepare_index_params()
    indexes.add_index("vector", index_type="FLAT", metric_type="L2")
    client.create_collection(name, schema=schema(client, auto_id), index_params=indexes)
    client.close()


def batches(first: int, batch: int, count: int, auto_id: bool) -> list[list[dict[str, Any]]]:
    """Rows of several batches, with consecutive keys; the numbers in a vector are as good as any."""
    vectors = np.random.default_rng(first).random((batch, DIMENSION), np.float32).tolist()
    made = []
    for start in range(first, first + batch * count, batch):
        keys = [{} if auto_id else {"id": start + n} for n in range(batch)]
        made.append([{**key, "text": f"passage {start}", "vector": v} for key, v in zip(keys, vectors, strict=True)])
    return made


class PyMilvus:
    def __init__(self, uris: list[str]) -> None:
        from pymilvus import AsyncMilvusClient

        self._uris = uris
        self._clients = [AsyncMilvusClient(uri) for uri in uris]

    def create(self, name: str, auto_id: bool) -> None:
        from pymilvus import MilvusClient

        for uri in self._uris:
            create(MilvusClient(uri, dedicated=True), name, auto_id)

    async def insert(self, collection: str, data: list[dict[str, Any]], ack: str) -> None:
        for client in self._clients:
            await client.insert(collection, data, timeout=120)

    async def close(self) -> None:
        for client in self._clients:
            await client.close()


class HAClient:
    def __init__(self, config: dict[str, Any]) -> None:
        from haclient import AsyncMilvusClient, acknowledged

        self._config = config
        self._acknowledged = acknowledged
        self._client = AsyncMilvusClient(config=config)
        self.close = self._client.close

    def create(self, name: str, auto_id: bool) -> None:
        from haclient import MilvusClient

        create(MilvusClient(config=self._config), name, auto_id)

    async def insert(self, collection: str, data: list[dict[str, Any]], ack: str) -> None:
        with self._acknowledged(ack):
            await self._client.insert(collection, data, timeout=120)


async def insert(client: PyMilvus | HAClient, order: dict[str, Any]) -> dict[str, Any]:
    """Write batches one after the other; the seconds they took, and each one's milliseconds."""
    made = batches(order["first"], order["batch"], order["count"], order["auto_id"])
    gc.collect()
    begun, cpu = time.monotonic(), time.process_time()
    latencies = []
    for rows in made:
        start = time.monotonic()
        await client.insert(order["collection"], rows, order["ack"])
        latencies.append((time.monotonic() - start) * 1e3)
    return {"s": time.monotonic() - begun, "cpu_s": time.process_time() - cpu, "latencies_ms": latencies}


async def main() -> None:
    """Obey: ``create`` makes a collection, ``insert`` writes to it."""
    kind, config = sys.argv[1], json.loads(sys.argv[2])
    client = PyMilvus(config) if kind == "pymilvus" else HAClient(config)
    logging.getLogger("pymilvus").setLevel(logging.CRITICAL)
    orders = await commands()
    say("ready")
    while line := await orders.readline():
        order = json.loads(line)
        if order["do"] == "create":
            await asyncio.to_thread(client.create, order["collection"], order["auto_id"])
            say("created")
        else:
            say(await insert(client, order))
    await client.close()


if __name__ == "__main__":
    run(main())
