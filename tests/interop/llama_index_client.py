"""LlamaIndex' stock vector store on two servers and on a proxy in front of them; says so as it goes on.

    python llama_index_client.py URI_A URI_B URI_OF_THE_PROXY

Prints a line once the proxy has answered as the servers do, and another one when 100 more questions are answered.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from llama_index.core.schema import TextNode
from llama_index.core.vector_stores.types import MetadataFilter, MetadataFilters, VectorStoreQuery
from llama_index.vector_stores.milvus import MilvusVectorStore

NODES = [
    TextNode(id_=f"n{key}", text=f"text of {key}", metadata={"number": key}, embedding=[float(key), 1.0, 0.0, 0.5])
    for key in range(8)
]


def open_store(uri: str, **options: Any) -> MilvusVectorStore:
    return MilvusVectorStore(uri=uri, collection_name="stock", dim=4, similarity_metric="L2", **options)


def asked(key: int, **options: Any) -> VectorStoreQuery:
    return VectorStoreQuery(query_embedding=[key + 0.1, 1.0, 0.0, 0.5], similarity_top_k=3, **options)


def told(found: Any) -> list[Any]:
    return [found.ids, found.similarities, [(node.node_id, node.text, node.metadata) for node in found.nodes]]


async def answers(store: MilvusVectorStore) -> list[Any]:
    """What it answers to all sorts of questions, blocking and async."""
    few = MetadataFilters(filters=[MetadataFilter(key="number", operator="<", value=4)])
    return [
        *[told(store.query(asked(key))) for key in range(8)],
        told(store.query(asked(6, filters=few))),
        told(await store.aquery(asked(3))),
        [node.text for node in store.get_nodes(["n1", "n2"])],
    ]


async def main(*uris: str) -> None:
    for uri in uris[:2]:
        open_store(uri, overwrite=True).add(NODES)
    *direct, proxied = [open_store(uri) for uri in uris]
    for store in direct:
        assert await answers(proxied) == await answers(store)
    print("the same", flush=True)
    for number in range(100):
        key = number % 8
        found = proxied.query(asked(key)) if number % 2 else await proxied.aquery(asked(key))
        assert found.ids[0] == f"n{key}"
        if number == 20:
            print("under way", flush=True)
            sys.stdin.readline()
    print("all answered", flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
