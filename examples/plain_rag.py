"""Question, documents, answer: with haclient alone.

python examples/plain_rag.py --uri http://10.0.0.1:19530 --uri http://10.0.0.2:19530 "What does yield do?"
"""

from __future__ import annotations

import corpus
import llm

from haclient import MilvusClient
from haclient.retrieval import Indexer, Retriever


def main() -> None:
    """Index the corpus, and answer."""
    given = corpus.arguments("Ask the Python language reference.")
    embedder = corpus.make_embedder(given.model)
    with MilvusClient(given.uri) as client:
        # Only what is not there yet is embedded and written: all of it the first time, nothing later.
        Indexer(client, corpus.COLLECTION, embedder=embedder).add_sync(corpus.sources())
        retriever = Retriever(client, corpus.COLLECTION, embedder=embedder)
        for question in corpus.questions(given.question):
            documents = retriever.retrieve_sync(question, k=4)
            passages = [f"[{each.metadata['source']}] {each.text}" for each in documents]
            print(question, llm.answer(question, passages), "", sep="\n", flush=True)


if __name__ == "__main__":
    main()
