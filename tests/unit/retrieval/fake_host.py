"""A client whose servers are a script: descriptions from a schema, searches from a list of outcomes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
from pymilvus.grpc_gen import milvus_pb2, schema_pb2

from haclient.call import Action, Attempt, Call, Reply
from haclient.errors import DeadlineExceeded, Unavailable
from haclient.events import Event, EventBus
from haclient.milvus.status import Flavour, classify
from haclient.retrieval.embed.embedder import Fingerprint

TYPES = schema_pb2.DataType
DIMENSION = 4


def description(**changes: Any) -> milvus_pb2.DescribeCollectionResponse:
    """A collection with text, a dense and a BM25 field."""
    fields = [
        {"name": "id", "is_primary_key": True, "data_type": TYPES.Int64},
        {"name": "text", "data_type": TYPES.VarChar},
        {"name": "lang", "data_type": TYPES.VarChar},
        {"name": "vector", "data_type": TYPES.FloatVector, "type_params": [{"key": "dim", "value": str(DIMENSION)}]},
        {"name": "sparse", "data_type": TYPES.SparseFloatVector},
    ]
    functions = [{"name": "bm25", "input_field_names": ["text"], "output_field_names": ["sparse"]}]
    schema = {"name": "docs", "fields": fields, "functions": functions, **changes}
    return milvus_pb2.DescribeCollectionResponse(schema=schema, collection_name="docs", consistency_level=2)


def indexes(**metrics: str) -> milvus_pb2.DescribeIndexResponse:
    described = [
        {"field_name": name, "params": [{"key": "metric_type", "value": metric}]} for name, metric in metrics.items()
    ]
    return milvus_pb2.DescribeIndexResponse(index_descriptions=described)


def hits(*texts: str, scores: Sequence[float] = (), questions: int = 1, vectors: Any = None) -> bytes:
    """A reply with one hit per text for every question."""
    count = len(texts)
    fields: list[Any] = [
        {"field_name": "text", "type": TYPES.VarChar, "scalars": {"string_data": {"data": texts * questions}}}
    ]
    if vectors is not None:
        data = np.asarray(vectors, np.float32)
        fields.append(
            {"field_name": "vector", "type": 101, "vectors": {"dim": DIMENSION, "float_vector": {"data": data.ravel()}}}
        )
    results = {
        "num_queries": questions,
        "fields_data": fields,
        "scores": (scores or [1.0 / (i + 1) for i in range(count)]) * questions,
        "ids": {"int_id": {"data": [*range(count)] * questions}},
        "topks": [count] * questions,
    }
    return milvus_pb2.SearchResults(results=results).SerializeToString()


def unavailable() -> Unavailable:
    return Unavailable("Search docs: no endpoint could answer.", [Attempt("a1", "a", 0.0, 0.1, Action.FAILOVER)])


def too_late() -> DeadlineExceeded:
    return DeadlineExceeded("Search docs: no endpoint answered before the deadline.")


class FakeHost:
    """Stands for `haclient.host.Host`.

    Attributes:
        script: What searches meet, in order; the last goes on for ever. Bytes are a reply, an exception is raised, a
            callable takes the request and returns one of the two.
        asked: Every search request, parsed.
        timeouts: What each was given, seconds.
    """

    def __init__(self, *script: Any) -> None:
        self.config = SimpleNamespace(timeouts=SimpleNamespace(read_s=10.0), database="")
        self.bus = EventBus()
        self.events: list[Event] = []
        self.bus.subscribe(self.events.append)
        self.described = description()
        self.indexed = indexes(vector="COSINE", sparse="BM25")
        self.script = list(script)
        self.asked: list[Any] = []
        self.timeouts: list[float | None] = []
        self.attempts: list[Attempt] = []
        self.looked = 0

    def is_here(self) -> bool:
        return True

    async def bring(self, work: Any) -> Any:
        return await work

    async def answer(
        self, method: Any, message: bytes, metadata: Any = (), timeout_s: Any = None, facts: Any = None
    ) -> Any:
        await asyncio.sleep(0)
        if method.name in ("DescribeCollection", "DescribeIndex"):
            self.looked += method.name == "DescribeCollection"
            found = self.described if method.name == "DescribeCollection" else self.indexed
            if isinstance(found, BaseException):
                raise found
            return self._reply(method, found if isinstance(found, Reply) else Reply(found.SerializeToString()))
        kind = milvus_pb2.HybridSearchRequest if method.name == "HybridSearch" else milvus_pb2.SearchRequest
        self.asked.append(kind.FromString(message))
        self.timeouts.append(timeout_s)
        step = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if isinstance(step, Callable):
            step = step(self.asked[-1])
        if isinstance(step, BaseException):
            raise step
        return self._reply(method, step if isinstance(step, Reply) else Reply(step))

    def _reply(self, method: Any, reply: Reply) -> tuple[Reply, Call]:
        call = Call(method, b"", (), 0.0, "docs")
        verdict = classify(method, reply, Flavour.REAL)
        last = Attempt("a1", "a", 0.0, 0.1, verdict.action, reply, reason=verdict.reason, code=verdict.code)
        call.attempts = self.attempts or [last]
        return reply, call


class FakeClient:
    _using = "fake"

    def __init__(self, *script: Any) -> None:
        self.host = FakeHost(*script)


class FakeEmbedder:
    """Vectors from a table; an entry may be an exception."""

    def __init__(self, **table: Any) -> None:
        self.table = table
        self.calls: list[list[str]] = []

    async def fingerprint(self) -> Fingerprint:
        return Fingerprint("fake", DIMENSION, True)

    async def embed(self, texts: Sequence[str], *, queries: bool = False) -> Any:
        assert queries
        self.calls.append(list(texts))
        rows = [self.table.get(text, [1.0, 0.0, 0.0, 0.0]) for text in texts]
        for row in rows:
            if isinstance(row, BaseException):
                raise row
        return np.array(rows, dtype=np.float32)

    async def aclose(self) -> None:
        pass
