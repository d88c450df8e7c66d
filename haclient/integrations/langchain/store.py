"""`HAMilvusVectorStore`: langchain-milvus' `Milvus` whose reads survive the failure of any single server.

Decision made here: langchain-milvus stays the vector store; only what has to differ does. A row is known by its id
(added twice, it is replaced), documents carry their ids, metadata of any shape is kept, what a collection is like is
read from the collection, and errors are raised where langchain-milvus answers with False or nothing.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Self, cast, final

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import VectorStore
from langchain_milvus import BM25BuiltInFunction, Milvus
from pymilvus import DataType
from pymilvus.client.types import LoadState

from haclient.integrations.clients import SharedAsyncClient, with_names
from haclient.integrations.embedding import fingerprint_of
from haclient.integrations.langchain.retriever import HAMilvusRetriever, LangChainEmbedder, model_name
from haclient.integrations.langchain.rows import check_metadata, whole_ids
from haclient.retrieval.retriever import Retriever
from haclient.retrieval.schema import FINGERPRINT_PROPERTY
from haclient.sync import MilvusClient

Row = dict[str, Any]

# Without connection_args our client looks for its endpoints where it always does.
_construct = with_names(
    Milvus.__init__, MilvusClient=MilvusClient, AsyncMilvusClient=lambda **_: None, DEFAULT_MILVUS_CONNECTION={}
)


@final
class HAMilvusVectorStore(Milvus):
    """A LangChain vector store in Milvus.

    Reads go to whichever server answers. Writes go to the one cluster there is; with several, and nothing that says how
    to write to them, they raise `haclient.WriteRefused`.

    A new collection has the consistency level ``Session``: the store sees at once what it wrote itself, sync or async,
    and what others wrote as soon as the server gets to it. ``consistency_level="Strong"`` waits for that too (about
    200 ms a read on Milvus 2.3).

    Args:
        arguments: All of ``langchain_milvus.Milvus``, with these differences: ``connection_args`` are those of
            `haclient.MilvusClient` (``uri`` may be a list; ``config`` is a file or a mapping; nothing at all means
            ``HACLIENT_URI`` or ``HACLIENT_CONFIG``), and ``enable_dynamic_field`` is on for new collections unless
            ``metadata_field`` or ``metadata_schema`` is given.
        options: See ``arguments``.

    Raises:
        ConfigError: The connection arguments are wrong.
        CallError: No server could answer.
    """

    client: MilvusClient

    def __init__(self, *arguments: Any, **options: Any) -> None:
        options.setdefault(
            "enable_dynamic_field", not (options.get("metadata_field") or options.get("metadata_schema"))
        )
        self._creating = threading.Lock()
        self._integer_keys = False
        _construct(self, *arguments, **options)
        self._async_milvus_client = SharedAsyncClient(self.client)

    @classmethod
    def from_texts(  # type: ignore[override]  # options by name only
        cls,
        texts: list[str],
        embedding: Embeddings,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        **options: Any,
    ) -> Self:
        """Make a store of these texts; ``options`` are the constructor's."""
        store = cls(embedding, **options)
        store.add_texts(texts, metadatas, ids=ids)
        return store

    @classmethod
    async def afrom_texts(  # type: ignore[override]  # options by name only
        cls,
        texts: list[str],
        embedding: Embeddings,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        **options: Any,
    ) -> Self:
        """Make a store of these texts; ``options`` are the constructor's."""
        store = await asyncio.to_thread(cls, embedding, **options)
        await store.aadd_texts(texts, metadatas, ids=ids)
        return store

    def as_ha_retriever(
        self, *, k: int = 4, filter: str = "", threshold: float | None = None, **options: Any
    ) -> HAMilvusRetriever:
        """Make a retriever over this store's client, model and fields.

        Args:
            k: See `HAMilvusRetriever`.
            filter: See `HAMilvusRetriever`.
            threshold: See `HAMilvusRetriever`.
            options: Those of `haclient.retrieval.Retriever` (``rerank``, ``cache``, ``relax`` ...). ``mode`` is
                ``hybrid`` if the store has both a model and BM25.
        """
        functions = zip(self._vector_fields_from_function, self._as_list(self.builtin_func), strict=True)
        models = zip(self._vector_fields_from_embedding, self._models, strict=True)
        sparse = next((field for field, function in functions if isinstance(function, BM25BuiltInFunction)), "")
        dense, model = next((pair for pair in models if isinstance(pair[1], Embeddings)), ("", None))
        found = {
            "embedder": LangChainEmbedder(model) if model is not None else None,
            "text_field": self._text_field,
            "vector_field": dense,
            "sparse_field": sparse,
            "mode": "hybrid" if dense and sparse else "sparse" if sparse else "dense",
            "timeout_s": self.timeout,
        }
        retriever = Retriever(self.client, self.collection_name, **{**found, **options})
        return HAMilvusRetriever(retriever=retriever, k=k, filter=filter, threshold=threshold)

    @property
    def _models(self) -> list[Any]:
        return self._as_list(cast(Any, self.embeddings))

    # What a collection is like.

    def _create_collection(self, embeddings: list[Any], metadatas: list[dict[str, Any]] | None = None) -> None:
        super()._create_collection(embeddings, metadatas)
        # Nothing is said of a model without a name: it could not be recognised.
        models = self._models
        if len(models) == 1 and isinstance(models[0], Embeddings) and (model := model_name(models[0])):
            mark = {FINGERPRINT_PROPERTY: str(fingerprint_of(embeddings[0], model))}
            self.client.alter_collection_properties(self.collection_name, mark)

    def _extract_fields(self) -> None:
        super()._extract_fields()
        if self.fields:
            found = self.client.describe_collection(self.collection_name)
            self.enable_dynamic_field = found["enable_dynamic_field"]
            self.auto_id = found["auto_id"]
            self._integer_keys = any(x.get("is_primary") and x["type"] == DataType.INT64 for x in found["fields"])

    def _load(
        self, partition_names: list[str] | None = None, replica_number: int = 1, timeout: float | None = None
    ) -> None:
        # To load again is a write to Milvus, and a store that only reads makes none.
        if self.col is not None:
            states = (self.client.get_load_state(self.collection_name, part) for part in partition_names or ("",))
            if all(found["state"] == LoadState.Loaded for found in states):
                return
        super()._load(partition_names, replica_number, timeout)

    # Writing.

    def add_documents(self, documents: list[Document], **options: Any) -> list[str]:
        """Add documents, with their ids; see `add_texts`."""
        return VectorStore.add_documents(self, documents, **options)

    async def aadd_documents(self, documents: list[Document], **options: Any) -> list[str]:
        """Add documents, with their ids; see `add_texts`."""
        return await VectorStore.aadd_documents(self, documents, **options)

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        timeout: float | None = None,
        batch_size: int = 1000,
        *,
        ids: list[str] | None = None,
        **options: Any,
    ) -> list[str]:
        """Embed texts and add them; a row whose id is there already is replaced.

        Args:
            texts: The texts.
            metadatas: One for each.
            timeout: Per batch, seconds.
            batch_size: Rows written at once.
            ids: One for each; a missing one (None) is made.
            options: Passed on to the client.

        Returns:
            The ids.

        Raises:
            ValueError: The arguments do not fit together.
            TypeError: An id is no text.
            WriteRefused: There are several clusters, and nothing says how to write to them.
            CallError: The write failed, or may have.
        """
        texts = list(texts)
        if not texts:
            return []
        keys = None if self.auto_id else whole_ids(ids, len(texts))
        return super().add_texts(texts, metadatas, timeout, batch_size, ids=keys, **options)

    async def aadd_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - langchain-milvus' name
        batch_size: int = 1000,
        *,
        ids: list[str] | None = None,
        **options: Any,
    ) -> list[str]:
        """Embed texts and add them; see `add_texts`."""
        texts = list(texts)
        if not texts:
            return []
        keys = None if self.auto_id else whole_ids(ids, len(texts))
        return await super().aadd_texts(texts, metadatas, timeout, batch_size, ids=keys, **options)

    def add_embeddings(
        self,
        texts: list[str],
        embeddings: list[Any],
        metadatas: list[dict[str, Any]] | None = None,
        timeout: float | None = None,
        batch_size: int = 1000,
        *,
        ids: list[str] | None = None,
        **options: Any,
    ) -> list[str]:
        """Add texts whose vectors are known; see `add_texts`."""
        check_metadata(metadatas, len(texts), {self._primary_field, self._text_field, *self.vector_fields})
        if self.auto_id:
            added = super().add_embeddings(texts, embeddings, metadatas, timeout, batch_size, ids=ids, **options)
            return [str(key) for key in added]
        keys = whole_ids(ids, len(texts))
        for rows in _batches(self._rows(texts, embeddings, metadatas, keys), batch_size):
            self.client.upsert(self.collection_name, rows, timeout=self.timeout or timeout, **options)
        return keys

    async def aadd_embeddings(
        self,
        texts: list[str],
        embeddings: list[Any],
        metadatas: list[dict[str, Any]] | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - langchain-milvus' name
        batch_size: int = 1000,
        *,
        ids: list[str] | None = None,
        **options: Any,
    ) -> list[str]:
        """Add texts whose vectors are known; see `add_texts`."""
        check_metadata(metadatas, len(texts), {self._primary_field, self._text_field, *self.vector_fields})
        if self.auto_id:
            added = await super().aadd_embeddings(texts, embeddings, metadatas, timeout, batch_size, ids=ids, **options)
            return [str(key) for key in added]
        keys = whole_ids(ids, len(texts))
        # The first rows create the collection, which blocks for seconds.
        found = await asyncio.to_thread(self._rows, texts, embeddings, metadatas, keys)
        for rows in _batches(found, batch_size):
            await self.aclient.upsert(self.collection_name, rows, timeout=self.timeout or timeout, **options)
        return keys

    def _rows(
        self, texts: list[str], embeddings: list[Any], metadatas: list[dict[str, Any]] | None, keys: list[str]
    ) -> list[Row]:
        """Put rows together; create the collection for the first ones."""
        if not texts:
            return []
        if self._is_multi_embedding:
            columns = [list(column) for column in zip(*embeddings, strict=True)]
        else:
            columns = [embeddings] if embeddings else []
        with self._creating:
            if self.col is None:
                self._init(columns, metadatas, self.partition_names, self.replica_number, self.timeout)
        return self._prepare_insert_list(texts, columns, metadatas, keys)

    def delete(self, ids: list[str] | None = None, expr: str | None = None, **options: Any) -> bool:
        """Delete by ids, or else by a Milvus expression; what is not there is no error.

        Raises:
            ValueError: Neither is given.
            WriteRefused: There are several clusters, and nothing says how to write to them.
            CallError: It failed, or may have.
        """
        condition = self._condition(ids, expr)
        if condition and self.col is not None:
            self.client.delete(self.collection_name, filter=condition, **options)
            self.client.query(self.collection_name, filter=condition, **self._fresh())
        return True

    async def adelete(self, ids: list[str] | None = None, expr: str | None = None, **options: Any) -> bool:
        """Delete by ids, or else by a Milvus expression; see `delete`."""
        condition = self._condition(ids, expr)
        if condition and self.col is not None:
            await self.aclient.delete(self.collection_name, filter=condition, **options)
            await self.aclient.query(self.collection_name, filter=condition, **self._fresh())
        return True

    def _fresh(self) -> Mapping[str, Any]:
        """Return the options of a read that waits until all is seen.

        Milvus 2.3 does not say when it deleted something (its reply has the timestamp 0), so without such a read the
        next ones would still find it for some tenths of a second, ``Session`` or not.
        """
        key = [self._primary_field]
        return {"output_fields": key, "limit": 1, "timeout": self.timeout, "consistency_level": "Strong"}

    # Reading.

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """Return the documents with these ids, in this order, without those that are not there."""
        condition = self._condition(ids)
        if not condition or self.col is None:
            return []
        rows = self.client.query(self.collection_name, filter=condition, **self._reading())
        return self._ordered(ids, rows)

    async def aget_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """Return the documents with these ids; see `get_by_ids`."""
        condition = self._condition(ids)
        if not condition or self.col is None:
            return []
        rows = await self.aclient.query(self.collection_name, filter=condition, **self._reading())
        return self._ordered(ids, rows)

    def search_by_metadata(self, expr: str, fields: list[str] | None = None, limit: int = 10) -> list[Document]:
        """Return documents that match a Milvus expression.

        Args:
            expr: The expression.
            fields: Names of metadata fields, default all.
            limit: How many at most.
        """
        if self.col is None:
            return []
        rows = self.client.query(self.collection_name, filter=expr, limit=limit, **self._reading(fields))
        return [self._parse_document(row) for row in rows]

    async def asearch_by_metadata(self, expr: str, fields: list[str] | None = None, limit: int = 10) -> list[Document]:
        """Return documents that match a Milvus expression; see `search_by_metadata`."""
        if self.col is None:
            return []
        rows = await self.aclient.query(self.collection_name, filter=expr, limit=limit, **self._reading(fields))
        return [self._parse_document(row) for row in rows]

    def _parse_document(self, data: Row) -> Document:
        key = data.pop(self._primary_field)
        document = super()._parse_document(data)
        document.id = str(key)
        return document

    def _reading(self, fields: Sequence[str] | None = None) -> Mapping[str, Any]:
        wanted = self._remove_forbidden_fields(self.fields) if fields is None else list(fields)
        dynamic = ["$meta"] if self.enable_dynamic_field and fields is None else []
        own = [self._text_field, self._primary_field]
        return {"output_fields": list(dict.fromkeys([*wanted, *dynamic, *own])), "timeout": self.timeout}

    def _condition(self, ids: Sequence[str] | None, expr: str | None = None) -> str:
        """Return the expression that these rows match; "" if there are none."""
        if ids is not None:
            keys = [int(key) for key in ids if _is_integer(key)] if self._integer_keys else list(ids)
            # JSON's quoting is Milvus' too.
            return f"{self._primary_field} in {json.dumps(keys, ensure_ascii=False)}" if keys else ""
        if not expr:
            raise ValueError("give ids, or an expression as expr='lang == \"en\"'")
        return expr

    def _ordered(self, ids: Sequence[str], rows: Iterable[Row]) -> list[Document]:
        found = {document.id: document for document in map(self._parse_document, rows)}
        return [found[key] for key in dict.fromkeys(ids) if key in found]


def _is_integer(key: str) -> bool:
    return key.removeprefix("-").isdecimal()


def _batches(rows: list[Row], size: int) -> Iterator[list[Row]]:
    return (rows[start : start + size] for start in range(0, len(rows), size))
