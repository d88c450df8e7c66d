"""`HAMilvusDocumentStore`: milvus-haystack's document store whose reads survive the failure of any single server.

Decision made here: milvus-haystack's store stays the store; only what has to differ does. It has our client, keeps
Haystack's promises about duplicates and filters, and knows a document by its id: written twice, it is there once.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar, final

from haystack import Document
from haystack.document_stores.errors import DuplicateDocumentError
from haystack.document_stores.types import DuplicatePolicy
from milvus_haystack import MilvusDocumentStore
from milvus_haystack.document_store import MAX_LIMIT_SIZE

from haclient.integrations.clients import with_names
from haclient.integrations.haystack.filters import expression
from haclient.integrations.haystack.secrets import check_address
from haclient.sync import MilvusClient

T = TypeVar("T")

_init_store = with_names(MilvusDocumentStore.__init__, MilvusClient=MilvusClient, DEFAULT_MILVUS_CONNECTION={})

#: Ids asked for in one query.
_BATCH = 1000


def _with_condition(search: Callable[..., Any]) -> Callable[..., list[Document]]:
    """Make one of milvus-haystack's searches understand all filters, and those of a store with other field names."""
    copy = with_names(search, parse_filters=str)

    @functools.wraps(search)
    def call(
        self: HAMilvusDocumentStore, *, filters: Mapping[str, Any] | None = None, **options: Any
    ) -> list[Document]:
        found: list[Document] = copy(self, filters=self._condition(filters), **options)
        return found

    return call


def _in_thread(method: Callable[..., T]) -> Callable[..., Coroutine[Any, Any, T]]:
    """Make the asynchronous method that Haystack expects beside a blocking one."""

    @functools.wraps(method)
    async def call(*arguments: Any, **options: Any) -> T:
        return await asyncio.to_thread(method, *arguments, **options)

    return call


@final
class HAMilvusDocumentStore(MilvusDocumentStore):  # type: ignore[misc]
    """A Haystack document store in Milvus.

    Reads go to whichever server answers. Writes go to the one cluster there is; with several, and nothing that says how
    to write to them, they raise `haclient.WriteRefused`.

    Args:
        arguments: All of ``milvus_haystack.MilvusDocumentStore``; ``connection_args`` are those of
            `haclient.MilvusClient`: ``uri`` may be a list, ``config`` is the path of a TOML file, and nothing at all
            means ``HACLIENT_URI`` or ``HACLIENT_CONFIG``. ``token`` and ``password`` must be ``Secret``s.

    Raises:
        ConfigError: The connection arguments are wrong, or hold a secret in plain text.
        CallError: No server could answer.
    """

    @functools.wraps(MilvusDocumentStore.__init__)  # type: ignore[misc]
    def __init__(self, *arguments: Any, **options: Any) -> None:
        given = inspect.signature(MilvusDocumentStore.__init__).bind(self, *arguments, **options).arguments
        check_address(given.get("connection_args") or {})
        # The first write creates the collection.
        self._writing = threading.Lock()
        self._exists = False
        _init_store(self, *arguments, **options)

    def close(self) -> None:
        """Close the client."""
        self.client.close()

    @property
    def _collection_exists(self) -> bool:
        # milvus-haystack looks once: a store made before its collection would find nothing for ever.
        if not self._exists and self.client.has_collection(self.collection_name):
            self._exists = True
            self._init(timeout=self.timeout)
        return self._exists

    @_collection_exists.setter
    def _collection_exists(self, exists: bool) -> None:
        self._exists = exists

    # Reading.

    def filter_documents(self, filters: Mapping[str, Any] | None = None) -> list[Document]:
        """Return the documents that match, 10,000 at most.

        Raises:
            FilterError: The filters are wrong.
            CallError: No server could answer.
        """
        return [self._parse_document(row) for row in self._rows(self._condition(filters), self._get_output_fields())]

    def count_documents_by_filter(self, filters: Mapping[str, Any]) -> int:
        """Count the documents that match."""
        if not self._collection_exists:
            return 0
        rows = self.client.query(
            self.collection_name,
            filter=self._condition(filters),
            output_fields=["count(*)"],
            partition_names=self.partition_names,
        )
        return int(rows[0]["count(*)"])

    # What milvus-haystack's retrievers call.
    _embedding_retrieval = _with_condition(MilvusDocumentStore._embedding_retrieval)
    _sparse_embedding_retrieval = _with_condition(MilvusDocumentStore._sparse_embedding_retrieval)
    _hybrid_retrieval = _with_condition(MilvusDocumentStore._hybrid_retrieval)

    def _condition(self, filters: Mapping[str, Any] | None) -> str:
        return expression(filters, text_field=self._text_field, key_field=self._primary_field)

    def _rows(self, condition: str, fields: list[str]) -> list[dict[str, Any]]:
        if not self._collection_exists:
            return []
        rows: list[dict[str, Any]] = self.client.query(
            self.collection_name,
            filter=condition,
            output_fields=fields,
            limit=MAX_LIMIT_SIZE,
            partition_names=self.partition_names,
        )
        return rows

    # Writing.

    def write_documents(self, documents: list[Document], policy: DuplicatePolicy = DuplicatePolicy.NONE) -> int:
        """Write documents.

        Args:
            documents: The documents.
            policy: What to do with one whose id is there already, or comes twice: ``SKIP`` keeps the first, ``FAIL``
                raises, and ``OVERWRITE``, which is also the default, keeps the last.

        Returns:
            How many were written.

        Raises:
            DuplicateDocumentError: The policy is ``FAIL``, and some are there; nothing was written.
            ValueError: These are no documents.
            WriteRefused: There are several clusters, and nothing says how to write to them.
            CallError: The write failed, or may have.
        """
        if not all(isinstance(each, Document) for each in documents):
            raise ValueError("documents must be a list of haystack.Document")
        with self._writing:
            last = {each.id: each for each in documents}
            if policy in (DuplicatePolicy.FAIL, DuplicatePolicy.SKIP):
                known = self._known(list(last))
                if policy is DuplicatePolicy.FAIL and (known or len(last) < len(documents)):
                    what = ", ".join(sorted(known)[:3]) or "one of these, which comes twice"
                    raise DuplicateDocumentError(f"documents are there already, and nothing was written: {what}")
                last = {each.id: each for each in reversed(documents) if each.id not in known}
            return int(super().write_documents(list(last.values()), DuplicatePolicy.OVERWRITE))

    def _known(self, ids: Sequence[str]) -> set[str]:
        """Return which of these ids are there."""
        known: set[str] = set()
        for start in range(0, len(ids), _BATCH):
            condition = expression(
                {"field": self._primary_field, "operator": "in", "value": ids[start : start + _BATCH]}
            )
            known.update(row[self._primary_field] for row in self._rows(condition, [self._primary_field]))
        return known

    def update_by_filter(self, filters: Mapping[str, Any], meta: Mapping[str, Any]) -> int:
        """Set fields of the metadata of the documents that match, 10,000 at most; returns how many."""
        found = self.filter_documents(filters)
        changed = [replace(each, meta={**each.meta, **meta}) for each in found]
        return self.write_documents(changed, DuplicatePolicy.OVERWRITE)

    def delete_by_filter(self, filters: Mapping[str, Any]) -> int:
        """Delete the documents that match; returns how many did."""
        count = self.count_documents_by_filter(filters)
        if count:
            self.client.delete(self.collection_name, filter=self._condition(filters))
        return count

    def delete_all_documents(self) -> None:
        """Delete every document; the collection stays."""
        if self._collection_exists:
            self.client.delete(self.collection_name, filter=f'{self._primary_field} != ""')

    count_documents_async = _in_thread(MilvusDocumentStore.count_documents)
    filter_documents_async = _in_thread(filter_documents)
    count_documents_by_filter_async = _in_thread(count_documents_by_filter)
    write_documents_async = _in_thread(write_documents)
    update_by_filter_async = _in_thread(update_by_filter)
    delete_documents_async = _in_thread(MilvusDocumentStore.delete_documents)
    delete_by_filter_async = _in_thread(delete_by_filter)
    delete_all_documents_async = _in_thread(delete_all_documents)
