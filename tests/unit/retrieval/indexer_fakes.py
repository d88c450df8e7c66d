"""A Milvus in memory, as far as an `Indexer` uses one, and an embedder that can be told to fail."""

from __future__ import annotations

import asyncio
import json
import zlib
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pymilvus.grpc_gen import common_pb2, milvus_pb2

from haclient.retrieval import indexer
from haclient.retrieval.embed.embedder import Fingerprint, Vectors

DIMENSION = 8


class FakeEmbedder:
    """Vectors from the text's checksum; ``before`` is called with the texts, and may raise or wait."""

    def __init__(self, model: str = "fake", dimension: int = DIMENSION) -> None:
        self.print = Fingerprint(model, dimension, normalised=True)
        self.embedded: list[str] = []
        self.before: Callable[[Sequence[str]], Any] | None = None
        self.spoil: Callable[[Vectors], Any] = lambda rows: rows

    async def fingerprint(self) -> Fingerprint:
        return self.print

    async def embed(self, texts: Sequence[str], *, queries: bool = False) -> Vectors:
        if self.before is not None and (waiting := self.before(texts)) is not None:
            await waiting
        self.embedded += texts
        rows = [np.random.default_rng(zlib.crc32(t.encode())).standard_normal(self.print.dimension) for t in texts]
        return self.spoil(np.array(rows, dtype=np.float32).reshape(len(texts), self.print.dimension))

    async def aclose(self) -> None:
        pass


class FakeMilvus:
    """One collection's rows and description; ``log`` has what was done, in order."""

    def __init__(self) -> None:
        self.description: dict[str, Any] | None = None
        self.knows_bm25 = True
        self.indexes: dict[str, dict[str, Any]] = {}
        self.loaded = False
        self.rows: dict[str, dict[str, Any]] = {}
        self.log: list[str] = []
        self.writing = 0
        self.refuse: Callable[[str], Exception | None] = lambda step: None
        self._async_stub = self

    def _step(self, step: str) -> None:
        self.log.append(step)
        if error := self.refuse(step):
            raise error

    # pymilvus' handler.

    async def describe_collection(self, name: str) -> Any:
        return self.description

    async def create_collection(self, name: str, schema: Any, properties: dict[str, str]) -> None:
        self._step("create")
        described = schema.to_dict()
        self.description = {**described, "collection_name": name, "properties": dict(properties)}
        if not self.knows_bm25:
            self.description["functions"] = []

    async def drop_collection(self, name: str) -> None:
        self._step("drop")
        self.description = None

    async def alter_collection_properties(self, name: str, properties: dict[str, str]) -> None:
        self._step("alter")
        assert self.description is not None
        self.description["properties"].update(properties)

    async def load_collection(self, name: str) -> None:
        self._step("load")
        self.loaded = True

    async def query(self, name: str, expr: str, output_fields: list[str], consistency_level: str) -> Any:
        assert consistency_level == "Strong", "rows of a run before would be missed"
        self._step("query")
        field, _, values = expr.partition(" in ")
        return [{f: row[f] for f in output_fields} for row in self.rows.values() if row[field] in json.loads(values)]

    async def upsert_rows(self, name: str, rows: list[dict[str, Any]]) -> None:
        assert not self.writing, "two writes at a time"
        self.writing += 1
        try:
            await asyncio.sleep(0)
            self._step(f"upsert {len(rows)}")
            self.rows.update({row["id"]: row for row in rows})
        finally:
            self.writing -= 1

    async def delete(self, name: str, expr: str) -> None:
        field, _, values = expr.partition(" in ")
        assert field == "id", "only deletes by key can be repeated"
        numbers = json.loads(values)
        self._step(f"delete {len(numbers)}")
        for number in numbers:
            del self.rows[number]

    # Its stub.

    async def HasCollection(self, request: Any) -> Any:
        return milvus_pb2.BoolResponse(value=self.description is not None)

    async def DescribeIndex(self, request: Any) -> Any:
        return milvus_pb2.DescribeIndexResponse(
            index_descriptions=[milvus_pb2.IndexDescription(field_name=field) for field in self.indexes]
        )

    async def CreateIndex(self, request: Any) -> Any:
        self._step(f"index {request.field_name}")
        self.indexes[request.field_name] = {pair.key: pair.value for pair in request.extra_params}
        return common_pb2.Status()

    async def GetLoadState(self, request: Any) -> Any:
        state = common_pb2.LoadStateLoaded if self.loaded else common_pb2.LoadStateNotLoad
        return milvus_pb2.GetLoadStateResponse(state=state)

    async def GetVersion(self, request: Any) -> Any:
        return milvus_pb2.GetVersionResponse(version="v2.3.5")


class FakeHost:
    """Runs work on the loop at hand, as an async client's host does."""

    request = None

    def __init__(self) -> None:
        endpoint = SimpleNamespace(name="10.0.0.1:19530")
        self.config = SimpleNamespace(database="", clusters=[SimpleNamespace(endpoints=[endpoint])])

    async def bring(self, work: Any) -> Any:
        return await work


def make_indexer(monkeypatch: pytest.MonkeyPatch, milvus: FakeMilvus, embedder: FakeEmbedder, **options: Any) -> Any:
    """An `Indexer` on a fake Milvus; its splitter cuts at blank lines unless told otherwise."""
    monkeypatch.setattr(indexer, "make_handler", lambda *_: milvus)
    client: Any = SimpleNamespace(host=FakeHost(), _using="fake")
    options = {"splitter": lambda text: text.split("\n\n"), **options}
    return indexer.Indexer(client, "docs", embedder=embedder, **options)
