"""A fleet in memory, for what copies and compares clusters: real request bytes in, real replies out.

Decision made here: it answers as the simulation's Milvus does, and knows what that one need not: pages of rows (with
fewer rows than the limit, as 2.3.5 does), load states, indexes told, statistics. Every request takes one step of the
loop's time; a hook sees each before it is carried out, and may change what becomes of it.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, final

from pymilvus.grpc_gen import common_pb2, milvus_pb2, schema_pb2

from haclient.call import Method
from haclient.errors import CallError, Unavailable
from haclient.milvus.status import Flavour
from haclient.replication.clusters import Delivery, Member, Outcome
from tests.simulation.replication import milvus

#: Sees (cluster, method, message) before a change is carried out; returns what to answer instead, or None.
Hook = Callable[[str, str, bytes], Awaitable[Delivery | None]]
_STEP_S = 0.001


class PagedMilvus(milvus.Milvus):
    """A Milvus whose rows are read by pages."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.rng = random.Random(seed)

    def answer(self, name: str, message: bytes, database: str) -> bytes:
        own = getattr(self, f"answer_{name}", None)
        if own is None:
            return self.execute(name, message, database)
        request = getattr(milvus_pb2, f"{name}Request").FromString(message)
        where = request.db_name if "db_name" in request.DESCRIPTOR.fields_by_name else ""
        reply: bytes = own(where or database or "default", request).SerializeToString()
        return reply

    def answer_Query(self, database: str, request: Any) -> Any:
        found = self.find(database, request.collection_name)
        if list(request.output_fields) == ["count(*)"]:
            reply = milvus_pb2.QueryResults()
            column = reply.fields_data.add(field_name="count(*)", type=schema_pb2.Int64)
            column.scalars.long_data.data.append(sum(len(rows) for rows in found.rows.values()))
            return reply
        params = {pair.key: pair.value for pair in request.query_params}
        if "iterator" in params:
            fewer = self.rng.randint(1, int(params["limit"]))
            next(pair for pair in request.query_params if pair.key == "limit").value = str(fewer)
        return milvus_pb2.QueryResults.FromString(self._query(database, request, b""))

    def answer_GetLoadState(self, database: str, request: Any) -> Any:
        loaded = self.find(database, request.collection_name).loaded
        state = common_pb2.LoadStateLoaded if loaded else common_pb2.LoadStateNotLoad
        return milvus_pb2.GetLoadStateResponse(state=state)

    def answer_ListAliases(self, database: str, request: Any) -> Any:
        self.find(database, request.collection_name)
        named_so = [a for (d, a), target in self.aliases.items() if (d, target) == (database, request.collection_name)]
        return milvus_pb2.ListAliasesResponse(aliases=named_so)

    def answer_ShowPartitions(self, database: str, request: Any) -> Any:
        self.find(database, request.collection_name)
        return milvus_pb2.ShowPartitionsResponse(partition_names=["_default"])

    def answer_DescribeIndex(self, database: str, request: Any) -> Any:
        reply = milvus_pb2.DescribeIndexResponse()
        for field, params in self.find(database, request.collection_name).indexes.items():
            index = reply.index_descriptions.add(index_name=field, field_name=field)
            for key, value in eval(params.decode()):
                index.params.add(key=key, value=value)
        return reply

    def answer_Flush(self, database: str, request: Any) -> Any:
        return milvus_pb2.FlushResponse()

    def answer_GetCollectionStatistics(self, database: str, request: Any) -> Any:
        reply = milvus_pb2.GetCollectionStatisticsResponse()
        reply.stats.add(key="row_count", value=str(len(self.find(database, request.collection_name).rows)))
        return reply

    def answer_AllocTimestamp(self, database: str, request: Any) -> Any:
        return milvus_pb2.AllocTimestampResponse(timestamp=self.clock)

    def answer_GetReplicas(self, database: str, request: Any) -> Any:
        return milvus_pb2.GetReplicasResponse(replicas=[milvus_pb2.ReplicaInfo()])

    def answer_ListCredUsers(self, database: str, request: Any) -> Any:
        raise milvus.Refused(12, "unimplemented")


@final
class MemoryClusters:
    """Implements `haclient.replication.clusters.Clusters`.

    Attributes:
        servers: By name.
        down: Those that do not answer.
        asynchronous: Those that are configured to follow the others.
        hook: See `Hook`.
        asked: Sees (cluster, method) of a read before it is answered.
        sent: Every change that was delivered: cluster and method.
        step_s: Time that a request takes.
    """

    def __init__(self, *names: str) -> None:
        self.servers = {name: PagedMilvus(i) for i, name in enumerate(names)}
        self.drained: set[str] = set()
        self.asynchronous: set[str] = set()
        self.down: set[str] = set()
        self.hook: Hook | None = None
        self.asked: Callable[[str, str], Awaitable[None]] | None = None
        self.sent: list[tuple[str, str]] = []
        self.step_s = _STEP_S

    def members(self) -> Sequence[Member]:
        return [
            Member(name, name in self.drained, Flavour.REAL, "2.3.5", name in self.asynchronous)
            for name in self.servers
        ]

    async def deliver(self, cluster: str, method: Method, message: bytes, database: str, timeout_s: float) -> Delivery:
        await asyncio.sleep(self.step_s)
        self.sent.append((cluster, method.name))
        if cluster in self.down:
            return Delivery(Outcome.LATER, reason="nobody listens", sent=False)
        if self.hook is not None:
            instead = await self.hook(cluster, method.name, message)
            if instead is not None:
                return instead
        return self.carry_out(cluster, method.name, message, database)

    def carry_out(self, cluster: str, name: str, message: bytes, database: str = "") -> Delivery:
        try:
            return Delivery(Outcome.DONE, self.servers[cluster].answer(name, message, database))
        except milvus.Refused as error:
            reply = milvus.failure(name, error.code, error.reason, error.error_code)
            return Delivery(Outcome.REFUSED, reply, error.reason, error.code, sent=False)

    async def ask(self, cluster: str, method: Method, message: bytes, database: str, timeout_s: float) -> bytes:
        await asyncio.sleep(self.step_s)
        if cluster in self.down:
            await asyncio.sleep(timeout_s)
            raise Unavailable(f"{cluster}: no answer")
        if self.asked is not None:
            await self.asked(cluster, method.name)
        try:
            return self.servers[cluster].answer(method.name, message, database)
        except milvus.Refused as error:
            raise CallError(error.reason, code=error.code) from None


def collection(name: str, *, text_keys: bool = False, auto_id: bool = False, column: str = "text") -> bytes:
    """A CreateCollectionRequest: ``id``, a text and a vector of two."""
    schema = schema_pb2.CollectionSchema(name=name)
    key = schema.fields.add(name="id", is_primary_key=True, autoID=auto_id)
    key.data_type = schema_pb2.VarChar if text_keys else schema_pb2.Int64
    if text_keys:
        key.type_params.add(key="max_length", value="64")
    schema.fields.add(name=column, data_type=schema_pb2.VarChar).type_params.add(key="max_length", value="64")
    schema.fields.add(name="vector", data_type=schema_pb2.FloatVector).type_params.add(key="dim", value="2")
    message = milvus_pb2.CreateCollectionRequest(collection_name=name, schema=schema.SerializeToString())
    return bytes(message.SerializeToString())


def index(name: str) -> bytes:
    message = milvus_pb2.CreateIndexRequest(collection_name=name, field_name="vector", index_name="vector")
    message.extra_params.add(key="index_type", value="FLAT")
    message.extra_params.add(key="metric_type", value="L2")
    return bytes(message.SerializeToString())


def load(name: str) -> bytes:
    return bytes(milvus_pb2.LoadCollectionRequest(collection_name=name).SerializeToString())


def rows(name: str, values: dict[Any, str], *, auto_id: bool = False, column: str = "text") -> bytes:
    """An UpsertRequest (an InsertRequest is the same bytes) of rows by key, without the keys if haclient makes them."""
    message = milvus_pb2.UpsertRequest(collection_name=name, num_rows=len(values))
    text_keys = any(isinstance(key, str) for key in values)
    if not auto_id:
        keys = message.fields_data.add(field_name="id", type=schema_pb2.VarChar if text_keys else schema_pb2.Int64)
        (keys.scalars.string_data if text_keys else keys.scalars.long_data).data.extend(values)
    texts = message.fields_data.add(field_name=column, type=schema_pb2.VarChar)
    texts.scalars.string_data.data.extend(values.values())
    vectors = message.fields_data.add(field_name="vector", type=schema_pb2.FloatVector)
    vectors.vectors.dim = 2
    vectors.vectors.float_vector.data.extend(float(i) for i in range(2 * len(values)))
    return bytes(message.SerializeToString())


def delete(name: str, keys: Sequence[Any]) -> bytes:
    listed = ", ".join(f'"{key}"' if isinstance(key, str) else str(key) for key in keys)
    message = milvus_pb2.DeleteRequest(collection_name=name, expr=f"id in [{listed}]")
    return bytes(message.SerializeToString())


def make(clusters: MemoryClusters, name: str, on: Sequence[str], values: dict[Any, str]) -> None:
    """Create a collection, index it, load it and fill it on some clusters."""
    text_keys = any(isinstance(key, str) for key in values)
    for cluster in on:
        server = clusters.servers[cluster]
        server.answer("CreateCollection", collection(name, text_keys=text_keys), "")
        server.answer("CreateIndex", index(name), "")
        server.answer("LoadCollection", load(name), "")
        if values:
            server.answer("Upsert", rows(name, values), "")
