"""`HAMilvusRetriever`: `haclient.retrieval.Retriever` as a LlamaIndex retriever.

Decision made here: a document becomes the node it was. What LlamaIndex' own vector store has written is read back as
it would read it; any other row is a text node with its fields as metadata.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, final

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.schema import BaseNode, NodeWithScore, QueryBundle, TextNode
from llama_index.core.vector_stores.utils import metadata_dict_to_node

from haclient.integrations.embedding import ModelEmbedder, Rows
from haclient.integrations.origin import ORIGIN, origin_of
from haclient.retrieval.document import Document, Documents
from haclient.retrieval.options import Query
from haclient.retrieval.retriever import Retriever


@final
class HAMilvusRetriever(BaseRetriever):  # type: ignore[misc]
    """Finds nodes whatever happens to the servers.

    Each node's ``metadata["haclient"]`` says how it was come by: ``score`` (higher is better), ``source``
    (``cluster/endpoint``), ``rung`` of the ladder, ``consistency``, ``age_s`` and ``stale``. Language models and
    embedding models do not get to see it.

    Args:
        retriever: What finds them; `HAMilvusVectorStore.as_ha_retriever` makes one from a store. A question that comes
            with an embedding needs no embedder.
        similarity_top_k: Number of nodes.
        options: Others of `Retriever.retrieve`, for every question: ``filter``, ``mode``, ``threshold``, ...
    """

    def __init__(self, retriever: Retriever, *, similarity_top_k: int = 4, **options: Any) -> None:
        super().__init__()
        self._retriever = retriever
        self._options = {"k": similarity_top_k, **options}

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return _nodes(self._retriever.retrieve_sync(_question(query_bundle), **self._options))

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return _nodes(await self._retriever.retrieve(_question(query_bundle), **self._options))


def _question(bundle: QueryBundle) -> Query:
    query: Query = bundle.query_str if bundle.embedding is None else bundle.embedding
    return query


def _nodes(found: Documents) -> list[NodeWithScore]:
    return [NodeWithScore(node=_node(each, found), score=each.score) for each in found]


def _node(document: Document, found: Documents) -> BaseNode:
    fields = dict(document.metadata)
    if "_node_content" in fields:
        node = metadata_dict_to_node(fields, text=document.text)
    else:
        node = TextNode(id_=str(document.id), text=document.text, metadata=fields)
    # Past validation, which would make a plain dictionary of it.
    node.__dict__["metadata"] = _Metadata(node.metadata, **{ORIGIN: origin_of(document, found)})
    node.excluded_llm_metadata_keys.append(ORIGIN)
    node.excluded_embed_metadata_keys.append(ORIGIN)
    return node


class _Metadata(dict[str, Any]):
    """Metadata whose text does not say where a node came from.

    LlamaIndex knows a node by a hash of that text, so it has to be the same whoever found the node, and for whichever
    question: retrievers whose answers are fused would otherwise return it twice.
    """

    def __repr__(self) -> str:
        return repr({key: value for key, value in self.items() if key != ORIGIN})


@final
class LlamaIndexEmbedder(ModelEmbedder):
    """A LlamaIndex embedding model as a `haclient.retrieval.embed.Embedder`.

    Its blocking methods run in threads: the asynchronous ones of many models block the event loop, and those of others
    belong to one.

    Args:
        model: The model.
    """

    def __init__(self, model: BaseEmbedding) -> None:
        super().__init__(model.model_name)
        self._blocking = model

    async def _questions(self, texts: Sequence[str]) -> Rows:
        ask = self._blocking.get_query_embedding
        return list(await asyncio.gather(*(asyncio.to_thread(ask, text) for text in texts)))

    async def _passages(self, texts: Sequence[str]) -> Rows:
        rows: Rows = await asyncio.to_thread(self._blocking.get_text_embedding_batch, list(texts))
        return rows
