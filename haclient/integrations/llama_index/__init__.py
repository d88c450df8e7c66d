"""LlamaIndex: a retriever over `haclient.retrieval.Retriever`, and its own Milvus vector store over our clients.

The retriever needs the package ``llama-index-core`` only, the store ``llama-index-vector-stores-milvus`` too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from haclient.integrations.llama_index.retriever import HAMilvusRetriever, LlamaIndexEmbedder

if TYPE_CHECKING:
    from haclient.integrations.llama_index.store import HAMilvusVectorStore

__all__ = ["HAMilvusRetriever", "HAMilvusVectorStore", "LlamaIndexEmbedder"]


def __getattr__(name: str) -> Any:
    """Import the store, whose package asks for one version of pymilvus, only when it is wanted."""
    if name == "HAMilvusVectorStore":
        from haclient.integrations.llama_index.store import HAMilvusVectorStore  # noqa: PLC0415

        return HAMilvusVectorStore
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
