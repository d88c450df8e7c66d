"""Question, documents, answer: a LlamaIndex query engine.

python examples/llama_index_rag.py --uri http://10.0.0.1:19530 --uri http://10.0.0.2:19530 "What does yield do?"
"""

from __future__ import annotations

import corpus
import llm
from llama_index.core.query_engine import CustomQueryEngine
from llama_index.core.retrievers import BaseRetriever

from haclient import MilvusClient
from haclient.integrations.llama_index import HAMilvusRetriever
from haclient.retrieval import Indexer, Retriever


class QueryEngine(CustomQueryEngine):
    """Nodes from a retriever, the answer from `llm`."""

    retriever: BaseRetriever

    def custom_query(self, query_str: str) -> str:
        """Answer one question."""
        nodes = self.retriever.retrieve(query_str)
        return llm.answer(query_str, [f"[{each.metadata['source']}] {each.text}" for each in nodes])


def main() -> None:
    """Index the corpus, and answer."""
    given = corpus.arguments("Ask the Python language reference.")
    embedder = corpus.make_embedder(given.model)
    with MilvusClient(given.uri) as client:
        # Only what is not there yet is embedded and written: all of it the first time, nothing later.
        Indexer(client, corpus.COLLECTION, embedder=embedder).add_sync(corpus.sources())
        retriever = HAMilvusRetriever(Retriever(client, corpus.COLLECTION, embedder=embedder), similarity_top_k=4)
        engine = QueryEngine(retriever=retriever)
        for question in corpus.questions(given.question):
            print(question, engine.query(question), "", sep="\n", flush=True)


if __name__ == "__main__":
    main()
