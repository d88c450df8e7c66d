"""Adapters for RAG frameworks: each module needs its framework's extra, and nothing else imports it."""
