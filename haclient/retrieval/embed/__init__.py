"""From text to vectors."""

from haclient.retrieval.embed.hashing import Embedder, HashingEmbedder, SentenceTransformerEmbedder, Vectors

__all__ = ["Embedder", "HashingEmbedder", "SentenceTransformerEmbedder", "Vectors"]
