"""`Retriever`: a question in, documents out, whatever happens behind."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import numpy.typing as npt

from haclient.retrieval.document import Document, Documents
from haclient.retrieval.embed.embedder import Embedder

#: A question: a text, or the vector of one.
Query = str | Sequence[float] | npt.NDArray[Any]
Rerank = Callable[[str, Sequence[Document]], Sequence[Document]]


@final
class Retriever:
    """See the module; work in progress."""

    def __init__(
        self,
        client: Any,
        collection: str,
        *,
        embedder: Embedder | None = None,
        text_field: str = "text",
        vector_field: str = "",
        sparse_field: str = "",
        output_fields: Sequence[str] | None = None,
        search_params: Mapping[str, Any] | None = None,
        consistency: str = "",
        timeout_s: float | None = None,
    ) -> None:
        raise NotImplementedError

    async def retrieve(
        self,
        query: Query,
        k: int = 4,
        *,
        filter: str = "",
        mode: str = "",
        output_fields: Sequence[str] | None = None,
        partitions: Sequence[str] = (),
        threshold: float | None = None,
        timeout_s: float | None = None,
    ) -> Documents:
        """Find the k best documents."""
        raise NotImplementedError

    async def retrieve_many(self, queries: Sequence[Query], k: int = 4, **options: Any) -> list[Documents]:
        """Find the k best documents of each question, in one request."""
        raise NotImplementedError

    def retrieve_sync(self, query: Query, k: int = 4, **options: Any) -> Documents:
        """Block until `retrieve` has answered."""
        raise NotImplementedError
