"""Retrieval for RAG pipelines."""
