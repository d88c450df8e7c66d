"""Retrieval for RAG pipelines: a question in, documents out, whatever happens behind."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from haclient.retrieval.cache import AnswerCache
from haclient.retrieval.chunks import Source
from haclient.retrieval.document import Document, Documents, Freshness, Rung
from haclient.retrieval.embed import (
    Embedder,
    Fingerprint,
    HashingEmbedder,
    QueryMemo,
    SentenceTransformerEmbedder,
    Vectors,
)

if TYPE_CHECKING:
    from haclient.retrieval.embed import HTTPEmbedder
    from haclient.retrieval.indexer import Indexer, IndexReport
    from haclient.retrieval.ladder import Relax
    from haclient.retrieval.options import RRF, Query, Weighted
    from haclient.retrieval.plan import SparseEmbedder
    from haclient.retrieval.retriever import Rerank, Retriever

__all__ = [
    "RRF",
    "AnswerCache",
    "Document",
    "Documents",
    "Embedder",
    "Fingerprint",
    "Freshness",
    "HTTPEmbedder",
    "HashingEmbedder",
    "IndexReport",
    "Indexer",
    "Query",
    "QueryMemo",
    "Relax",
    "Rerank",
    "Retriever",
    "Rung",
    "SentenceTransformerEmbedder",
    "Source",
    "SparseEmbedder",
    "Vectors",
    "Weighted",
]

#: What needs pymilvus, which takes a second to import, and where it is.
_LATER = {
    "HTTPEmbedder": "embed",
    "IndexReport": "indexer",
    "Indexer": "indexer",
    "RRF": "options",
    "Query": "options",
    "Relax": "ladder",
    "Rerank": "retriever",
    "Retriever": "retriever",
    "SparseEmbedder": "plan",
    "Weighted": "options",
}


def __getattr__(name: str) -> Any:
    """Import the rest only when it is wanted."""
    if name in _LATER:
        return getattr(import_module(f"haclient.retrieval.{_LATER[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
