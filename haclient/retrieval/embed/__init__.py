"""From text to vectors.

`HTTPEmbedder` is imported when it is asked for, since the client core behind it takes a second.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from haclient.retrieval.embed.embedder import Embedder, Fingerprint, Vectors
from haclient.retrieval.embed.hashing import HashingEmbedder
from haclient.retrieval.embed.local import SentenceTransformerEmbedder
from haclient.retrieval.embed.memo import QueryMemo

if TYPE_CHECKING:
    from haclient.retrieval.embed.remote import HTTPEmbedder

__all__ = [
    "Embedder",
    "Fingerprint",
    "HTTPEmbedder",
    "HashingEmbedder",
    "QueryMemo",
    "SentenceTransformerEmbedder",
    "Vectors",
]


def __getattr__(name: str) -> Any:
    if name == "HTTPEmbedder":
        from haclient.retrieval.embed.remote import HTTPEmbedder  # noqa: PLC0415

        return HTTPEmbedder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
