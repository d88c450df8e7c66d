"""Haystack: a retriever component over `haclient.retrieval.Retriever`, and milvus-haystack's store over our clients.

The retriever needs the package ``haystack-ai`` only, the store ``milvus-haystack`` too. To load a saved pipeline, tell
Haystack that this package may be imported: ``Pipeline.load(..., allowed_modules=["haclient.*"])``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from haclient.integrations.haystack.retriever import HAMilvusRetriever

if TYPE_CHECKING:
    from haclient.integrations.haystack.store import HAMilvusDocumentStore

__all__ = ["HAMilvusDocumentStore", "HAMilvusRetriever"]


def __getattr__(name: str) -> Any:
    """Import the store only when it is wanted: it needs a package that the retriever does not."""
    if name == "HAMilvusDocumentStore":
        from haclient.integrations.haystack.store import HAMilvusDocumentStore  # noqa: PLC0415

        return HAMilvusDocumentStore
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
