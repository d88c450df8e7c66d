"""Requests that crash real servers: each kills one more than itself at most, and readers are not hurt."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from pymilvus import DataType
from pymilvus.grpc_gen import milvus_pb2, schema_pb2

from haclient import AsyncMilvusClient, CallError, PoisonedCall, WriteNotConfirmed
from haclient.drill.servers.milvus import StandaloneServer
from haclient.events import AttemptFinished, CallFinished, CallQuarantined, EndpointChanged
from tests.live.steady_load import Load, eventually, opened, searching, until_up
from tests.servers import fill
from tests.servers.milvus_cluster import DistributedMilvus, Role
from tests.servers.shared import ROWS, StandalonePair

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

COLLECTION = "arrays"


def create(uri: str, *, auto_id: bool = False) -> None:
    """A collection with an ARRAY field."""
    client = fill.connect(uri)
    try:
        schema = client.create_schema(auto_id=auto_id)
        schema.add_field("id", DataType.INT64, is_primary=True)
        schema.add_field("numbers", DataType.ARRAY, element_type=DataType.INT64, max_capacity=8)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=4)
        client.create_collection(COLLECTION, schema=schema)
    finally:
        client.close()


def drop(uri: str) -> None:
    client = fill.connect(uri)
    try:
        client.drop_collection(COLLECTION)
    finally:
        client.close()


def poison(kind: Any = milvus_pb2.UpsertRequest, key: int = 1) -> Any:
    """One row whose array has no type: what Query returns for an empty array, sent back as it is."""
    array = schema_pb2.ArrayArray(data=[schema_pb2.ScalarField()], element_type=schema_pb2.DataType.Int64)
    vector = schema_pb2.VectorField(dim=4, float_vector=schema_pb2.FloatArray(data=[1, 2, 3, 4]))
    scalar = schema_pb2.ScalarField
    fields = [
        schema_pb2.FieldData(
            type=DataType.INT64, field_name="id", scalars=scalar(long_data=schema_pb2.LongArray(data=[key]))
        ),
        schema_pb2.FieldData(type=DataType.ARRAY, field_name="numbers", scalars=scalar(array_data=array)),
        schema_pb2.FieldData(type=DataType.FLOAT_VECTOR, field_name="vector", vectors=vector),
    ]
    return kind(collection_name=COLLECTION, fields_data=fields, hash_keys=[key], num_rows=1)


async def send(client: AsyncMilvusClient, request: Any) -> Any:
    """Send it as it is, by the drop-in's own channel."""
    stub = client._handler._async_stub
    return await getattr(stub, type(request).__name__.removesuffix("Request"))(request)


@pytest.fixture
async def three(distributed: DistributedMilvus) -> AsyncIterator[list[Role]]:
    """Three proxies of one cluster with the collection."""
    third = Role(distributed, "proxy_c", "proxy")
    await asyncio.to_thread(create, distributed.uris[0])
    try:
        await third.start()
        yield [*distributed.proxies, third]
        await distributed.heal()
        await asyncio.to_thread(drop, distributed.uris[0])
    finally:
        await third.close()


@pytest.mark.cluster
class TestThreeProxies:
    """One cluster of three proxies; the request crashes the proxy that reads it."""

    @contextlib.asynccontextmanager
    async def watched(self, three: list[Role]) -> AsyncIterator[tuple[AsyncMilvusClient, Any, Load]]:
        config = {"cluster": [{"name": "one", "endpoints": [proxy.uri for proxy in three]}]}
        async with opened(config=config) as (client, watch):
            await until_up(client, *(proxy.address for proxy in three))
            # Its key must be known, or the upsert does not count as repeatable.
            await client.describe_collection(COLLECTION)
            async with Load(searching(client, consistency_level="Eventually")) as load:
                await load.more(30)
                yield client, watch, load
                await load.more(30)
            load.assert_all_right()

    async def test_repeatable(self, three: list[Role]) -> None:
        """A repeatable upsert kills two; then it is refused, and the third proxy serves on."""
        async with self.watched(three) as (client, watch, load):
            with pytest.raises(PoisonedCall) as caught:
                await send(client, poison())
            assert len(caught.value.attempts) == 2
            assert len({attempt.endpoint for attempt in caught.value.attempts}) == 2
            await eventually(lambda: sum(proxy.alive for proxy in three) == 1, "two proxies dead")
            assert len(watch.of(CallQuarantined, collection=COLLECTION)) == 1
            mark = watch.mark()
            for _ in range(5):
                with pytest.raises(PoisonedCall):
                    await send(client, poison())
            assert not watch.of(AttemptFinished, after_number=mark, method="Upsert"), "nothing was sent"
            await load.more(40)
            assert sum(proxy.alive for proxy in three) == 1
            for proxy in three:
                await proxy.start()
            await until_up(client, *(proxy.address for proxy in three))
            with pytest.raises(PoisonedCall):
                await send(client, poison())
            assert all(proxy.alive for proxy in three)

    async def test_not_repeatable(self, three: list[Role]) -> None:
        """A partial upsert may not be repeated: it kills one, and is not confirmed."""
        async with self.watched(three) as (client, watch, load):
            request = poison(key=2)
            request.partial_update = True
            with pytest.raises(WriteNotConfirmed) as caught:
                await send(client, request)
            assert len(caught.value.attempts) == 1
            await eventually(lambda: sum(proxy.alive for proxy in three) == 2, "one proxy dead")
            dead = next(proxy for proxy in three if not proxy.alive)
            await watch.until(EndpointChanged, endpoint=dead.address, after="down")
            await load.more(40)
            # The application repeats it all the same: that costs one more, and no third.
            with pytest.raises(PoisonedCall):
                await send(client, request)
            await eventually(lambda: sum(proxy.alive for proxy in three) == 1, "two proxies dead")
            for _ in range(3):
                with pytest.raises(PoisonedCall):
                    await send(client, request)
            await load.more(20)
            assert sum(proxy.alive for proxy in three) == 1


@pytest.mark.live
async def test_one_server(tmp_path: Path) -> None:
    """A single server: it dies once, after its restart once more, and then the request is refused."""
    async with StandaloneServer(tmp_path) as server:
        await asyncio.to_thread(create, server.uri)
        async with opened(server.uri, retry={"quarantine_s": 600.0}) as (client, watch):
            await client.describe_collection(COLLECTION)
            with pytest.raises(CallError) as caught:
                await send(client, poison())
            assert not isinstance(caught.value, PoisonedCall)
            assert server.address in str(caught.value)
            await eventually(lambda: not server.alive)
            await server.start()
            await until_up(client, server.address)
            with pytest.raises(PoisonedCall):
                await send(client, poison())
            await eventually(lambda: not server.alive)
            await server.start()
            await until_up(client, server.address)
            mark = watch.mark()
            with pytest.raises(PoisonedCall, match="refused"):
                await send(client, poison())
            assert not watch.of(AttemptFinished, after_number=mark, method="Upsert")
            assert await client.has_collection(COLLECTION), "other calls are served"
            assert server.alive


@pytest.fixture
def flapping(tmp_path: Path) -> StandaloneServer:
    return StandaloneServer(tmp_path, name="flapping")


def plant(uri: str) -> None:
    """Write a row with a field of a type that 2.3.5 does not know: it panics at the flush, and after each restart."""
    client = fill.connect(uri)
    try:
        schema = client.create_schema(auto_id=False)
        schema.add_field("id", DataType.INT64, is_primary=True)
        schema.add_field("moment", DataType.TIMESTAMPTZ)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=4)
        client.create_collection("moments", schema=schema)
        client.insert("moments", [{"id": 1, "moment": "2026-01-01T00:00:00Z", "vector": [1.0, 2.0, 3.0, 4.0]}])
        with contextlib.suppress(Exception):
            client.flush("moments", timeout=10)
    finally:
        client.close()


async def restarted_for_ever(server: StandaloneServer, deaths: list[int | None]) -> None:
    """Start a server anew whenever it has died, as a supervisor does; note how each life ended."""
    while True:
        while server.alive:
            await asyncio.sleep(0.02)
        deaths.append(server.exit_code)
        server.launch()


@pytest.mark.live
async def test_flapping_server(standalone_pair: StandalonePair, flapping: StandaloneServer) -> None:
    """A server that crashes again soon after each restart costs its readers nothing, life after life."""
    steady = standalone_pair.b.address
    async with flapping:
        await asyncio.to_thread(fill.fill, [flapping.uri], rows=ROWS)
        async with opened([flapping.uri, standalone_pair.b.uri]) as (client, watch):
            await until_up(client, flapping.address, steady)
            async with Load(searching(client)) as load:
                await load.more(40)
                assert watch.of(CallFinished, endpoint=flapping.address, outcome="ok")
                deaths: list[int | None] = []
                supervisor = asyncio.create_task(restarted_for_ever(flapping, deaths))
                try:
                    await asyncio.to_thread(plant, flapping.uri)
                    for lives in range(1, 5):
                        await eventually(lambda lives=lives: len(deaths) >= lives, "it crashes again")  # type: ignore[misc]
                        await load.more(20)
                        load.assert_all_right()
                finally:
                    supervisor.cancel()
            load.assert_all_right()
            assert watch.of(EndpointChanged, endpoint=flapping.address, after="down")
            assert not watch.of(EndpointChanged, endpoint=steady, after="down")
