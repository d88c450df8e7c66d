"""LangChain: langchain-milvus' vector store over our clients, and a retriever over `haclient.retrieval.Retriever`."""

from __future__ import annotations

from haclient.integrations.langchain.retriever import HAMilvusRetriever, LangChainEmbedder
from haclient.integrations.langchain.store import HAMilvusVectorStore

__all__ = ["HAMilvusRetriever", "HAMilvusVectorStore", "LangChainEmbedder"]
