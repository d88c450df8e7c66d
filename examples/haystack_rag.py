"""Question, documents, answer: a Haystack pipeline.

python examples/haystack_rag.py --uri http://10.0.0.1:19530 --uri http://10.0.0.2:19530 "What does yield do?"
"""

from __future__ import annotations

import corpus
import llm
from haystack import Document, Pipeline, component

from haclient import MilvusClient
from haclient.integrations.haystack import HAMilvusRetriever
from haclient.portal import portal
from haclient.retrieval import Embedder, Indexer


@component
class TextEmbedder:
    """One of haclient's embedders as a component."""

    def __init__(self, embedder: Embedder) -> None:
        self.embedder = embedder

    @component.output_types(embedding=list[float])
    def run(self, text: str) -> dict[str, list[float]]:
        """Embed a question."""
        return {"embedding": portal().run(self.embedder.embed([text], queries=True))[0].tolist()}


@component
class Generator:
    """The answer from `llm`."""

    @component.output_types(reply=str)
    def run(self, question: str, documents: list[Document]) -> dict[str, str]:
        """Answer one question."""
        return {"reply": llm.answer(question, [f"[{each.meta['source']}] {each.content}" for each in documents])}


def main() -> None:
    """Index the corpus, and answer."""
    given = corpus.arguments("Ask the Python language reference.")
    embedder = corpus.make_embedder(given.model)
    with MilvusClient(given.uri) as client:
        # Only what is not there yet is embedded and written: all of it the first time, nothing later.
        Indexer(client, corpus.COLLECTION, embedder=embedder).add_sync(corpus.sources())
    retriever = HAMilvusRetriever(corpus.COLLECTION, given.uri, top_k=4)
    pipeline = Pipeline()
    pipeline.add_component("embedder", TextEmbedder(embedder))
    pipeline.add_component("retriever", retriever)
    pipeline.add_component("generator", Generator())
    pipeline.connect("embedder.embedding", "retriever.query_embedding")
    pipeline.connect("retriever.documents", "generator.documents")
    for question in corpus.questions(given.question):
        asked = {"embedder": {"text": question}, "generator": {"question": question}}
        print(question, pipeline.run(asked)["generator"]["reply"], "", sep="\n", flush=True)
    retriever.close()


if __name__ == "__main__":
    main()
