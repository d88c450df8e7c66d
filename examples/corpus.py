"""What all examples share: their arguments, their embedder, and a corpus that every Python carries."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable

from haclient.drill.corpus import read_documents
from haclient.retrieval import Embedder, HashingEmbedder, SentenceTransformerEmbedder, Source

COLLECTION = "python_reference"


def arguments(description: str) -> Namespace:
    """Read the command line. Without ``--uri``, HACLIENT_URI or HACLIENT_CONFIG say where the servers are."""
    parser = ArgumentParser(description=description)
    parser.add_argument("--uri", action="append", help="a Milvus, or a .db file for milvus-lite; may be repeated")
    parser.add_argument("--model", default="sentence-transformers/all-MiniLM-L6-v2", help="name, folder, or: hashing")
    parser.add_argument("question", nargs="*", help="without any, they are read from standard input, one a line")
    return parser.parse_args()


def questions(given: list[str]) -> Iterable[str]:
    """Return the questions of the command line, else the lines of standard input."""
    return given or filter(None, map(str.strip, sys.stdin))


def make_embedder(model: str) -> Embedder:
    """Make an embedder; ``hashing`` needs no model, and knows words but not what they mean."""
    return HashingEmbedder() if model == "hashing" else SentenceTransformerEmbedder(model)


def sources() -> list[Source]:
    """Return the Python language reference, one document a topic."""
    return [Source(topic, text) for topic, text in read_documents().items()]
