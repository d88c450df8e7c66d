"""Retrieval for RAG pipelines: a question in, documents out, whatever happens behind."""

from haclient.retrieval.cache import AnswerCache
from haclient.retrieval.document import Document, Documents, Freshness, Rung
from haclient.retrieval.embed import (
    Embedder,
    Fingerprint,
    HashingEmbedder,
    HTTPEmbedder,
    QueryMemo,
    SentenceTransformerEmbedder,
    Vectors,
)
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
    "Query",
    "QueryMemo",
    "Relax",
    "Rerank",
    "Retriever",
    "Rung",
    "SentenceTransformerEmbedder",
    "SparseEmbedder",
    "Vectors",
    "Weighted",
]
