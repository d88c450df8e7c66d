"""`HAMilvusRetriever`: `haclient.retrieval.Retriever` as a LangChain retriever.

Decision made here: a question asked by ``ainvoke`` is embedded on the asker's own event loop, since async models keep
connections that belong to a loop; one asked by ``invoke`` in a thread, by the model's blocking methods.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from typing import Any, final

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.retrievers import BaseRetriever

from haclient.integrations.embedding import ModelEmbedder, Rows
from haclient.integrations.origin import ORIGIN, origin_of
from haclient.retrieval.document import Documents
from haclient.retrieval.retriever import Retriever

#: The event loop that a question is asked on, None for a blocking one; the core may live on another.
_asker: ContextVar[asyncio.AbstractEventLoop | None] = ContextVar("_asker", default=None)


class HAMilvusRetriever(BaseRetriever):
    """Finds documents whatever happens to the servers.

    Each document's ``metadata["haclient"]`` says how it was come by: ``score`` (higher is better), ``source``
    (``cluster/endpoint``), ``rung`` of the ladder, ``consistency``, ``age_s`` and ``stale``.

    Attributes:
        retriever: What finds them; `HAMilvusVectorStore.as_ha_retriever` makes one from a store.
        k: Number of documents.
        filter: Milvus expression, "" for none.
        threshold: Lowest score, None for any.
        mode: ``dense``, ``sparse`` or ``hybrid``; "" for the retriever's own.

    All but the first, and every other option of `Retriever.retrieve`, can be given with a question too:
    ``invoke(question, k=3, partitions=["en"])``.
    """

    retriever: Retriever
    k: int = 4
    filter: str = ""
    threshold: float | None = None
    mode: str = ""

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, **options: Any
    ) -> list[Document]:
        return _as_langchain(self.retriever.retrieve_sync(query, **self._options(options)))

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, **options: Any
    ) -> list[Document]:
        token = _asker.set(asyncio.get_running_loop())
        try:
            return _as_langchain(await self.retriever.retrieve(query, **self._options(options)))
        finally:
            _asker.reset(token)

    def _options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        return {"k": self.k, "filter": self.filter, "threshold": self.threshold, "mode": self.mode, **given}


def _as_langchain(found: Documents) -> list[Document]:
    return [
        Document(id=str(each.id), page_content=each.text, metadata={**each.metadata, ORIGIN: origin_of(each, found)})
        for each in found
    ]


@final
class LangChainEmbedder(ModelEmbedder):
    """A LangChain embedding model as a `haclient.retrieval.embed.Embedder`.

    Args:
        embeddings: The model.
        model: Its name, for the fingerprint; default its ``model`` or ``model_name``, then its class.
    """

    def __init__(self, embeddings: Embeddings, model: str = "") -> None:
        super().__init__(model or model_name(embeddings) or type(embeddings).__name__)
        self._embeddings = embeddings

    async def _questions(self, texts: Sequence[str]) -> Rows:
        return await asyncio.gather(*map(self._question, texts))

    async def _question(self, text: str) -> Sequence[float]:
        loop = _asker.get()
        if loop is None:
            return await asyncio.to_thread(self._embeddings.embed_query, text)
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._embeddings.aembed_query(text), loop))

    async def _passages(self, texts: Sequence[str]) -> Rows:
        return await asyncio.to_thread(self._embeddings.embed_documents, list(texts))


def model_name(embeddings: Embeddings) -> str:
    """Return which model LangChain embeddings run, "" if they do not say."""
    names = (getattr(embeddings, name, None) for name in ("model", "model_name"))
    return next((name for name in names if isinstance(name, str)), "")
