"""`HAMilvusVectorStore`: LlamaIndex' own Milvus vector store whose reads survive the failure of any single server.

Decision made here: LlamaIndex' store stays the store; only what has to differ does. It has our clients, and a node is
known by its id: added twice, it is replaced.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from os import PathLike
from typing import Any, final

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.vector_stores.types import VectorStoreQuery
from llama_index.vector_stores.milvus import MilvusVectorStore

from haclient.config import Config
from haclient.integrations.clients import SharedAsyncClient, with_names
from haclient.integrations.llama_index.retriever import HAMilvusRetriever, LlamaIndexEmbedder
from haclient.retrieval.retriever import Retriever
from haclient.sync import MilvusClient

#: ``MilvusVectorStore.__init__`` with our sync client, and none for async code yet.
_init_store = with_names(MilvusVectorStore.__init__, MilvusClient=MilvusClient, AsyncMilvusClient=lambda **_: None)


@final
class HAMilvusVectorStore(MilvusVectorStore):  # type: ignore[misc]
    """A LlamaIndex vector store in Milvus.

    Reads go to whichever server answers. Writes go to the one cluster there is; with several, and nothing that says how
    to write to them, they raise `haclient.WriteRefused`.

    Args:
        uri: One URI or several, as for `haclient.MilvusClient`; without it and ``config``: ``HACLIENT_URI`` or
            ``HACLIENT_CONFIG``.
        token: Token, for every cluster.
        config: Path of a TOML file, or a mapping of the same shape.
        upsert_mode: Whether a node that is added again replaces the one with its id, as LlamaIndex' store does only if
            it is told to; False leaves both there.
        options: Others of ``MilvusVectorStore``: ``collection_name``, ``dim``, ...

    Raises:
        ConfigError: Address or configuration are wrong.
        CallError: No server could answer.
    """

    def __init__(
        self,
        uri: str | Sequence[str] | None = None,
        token: str = "",
        *,
        config: str | PathLike[str] | Mapping[str, Any] | Config | None = None,
        upsert_mode: bool = True,
        **options: Any,
    ) -> None:
        _init_store(self, uri, token, config=config, upsert_mode=upsert_mode, **options)
        self._async_milvusclient = SharedAsyncClient(self.client)

    @classmethod
    def class_name(cls) -> str:
        """Return the name that LlamaIndex knows it by."""
        return "HAMilvusVectorStore"

    def as_ha_retriever(self, embed_model: BaseEmbedding | None = None, **options: Any) -> HAMilvusRetriever:
        """Make a retriever that shares this store's client.

        Args:
            embed_model: Turns questions into vectors; not needed in ``sparse`` mode.
            options: `HAMilvusRetriever`'s.
        """
        retriever = Retriever(
            self.client,
            self.collection_name,
            embedder=LlamaIndexEmbedder(embed_model) if embed_model is not None else None,
            text_field=self.text_key,
            vector_field=self.embedding_field if self.enable_dense else "",
            sparse_field=self.sparse_embedding_field if self.enable_sparse else "",
        )
        return HAMilvusRetriever(retriever, **options)

    def delete(self, ref_doc_id: str, **options: Any) -> None:
        """Delete the nodes of a document."""
        super().delete(_quotable(ref_doc_id), **options)

    async def adelete(self, ref_doc_id: str, **options: Any) -> None:
        """Delete the nodes of a document."""
        await super().adelete(_quotable(ref_doc_id), **options)

    def _prepare_before_search(self, query: VectorStoreQuery, **options: Any) -> tuple[str, list[str]]:
        doc_ids, node_ids = (list(map(_quotable, ids or ())) for ids in (query.doc_ids, query.node_ids))
        prepared: tuple[str, list[str]] = super()._prepare_before_search(
            replace(query, doc_ids=doc_ids, node_ids=node_ids), **options
        )
        return prepared

    def close(self) -> None:
        """Close the clients."""
        self.client.close()


def _quotable(text: str) -> str:
    """Return a text as it stands between quotes in Milvus' expressions, which LlamaIndex puts around it."""
    return json.dumps(text, ensure_ascii=False)[1:-1]
