"""Question, documents, answer: a LangChain chain.

python examples/langchain_rag.py --uri http://10.0.0.1:19530 --uri http://10.0.0.2:19530 "What does yield do?"
"""

from __future__ import annotations

from typing import Any

import corpus
import llm
from langchain_core.documents import Document
from langchain_core.runnables import RunnableLambda, RunnablePassthrough

from haclient import MilvusClient
from haclient.integrations.langchain import HAMilvusRetriever
from haclient.retrieval import Indexer, Retriever


def answer(found: dict[str, Any]) -> str:
    """Answer a question from the documents found."""
    documents: list[Document] = found["documents"]
    return llm.answer(found["question"], [f"[{each.metadata['source']}] {each.page_content}" for each in documents])


def main() -> None:
    """Index the corpus, and answer."""
    given = corpus.arguments("Ask the Python language reference.")
    embedder = corpus.make_embedder(given.model)
    with MilvusClient(given.uri) as client:
        # Only what is not there yet is embedded and written: all of it the first time, nothing later.
        Indexer(client, corpus.COLLECTION, embedder=embedder).add_sync(corpus.sources())
        retriever = HAMilvusRetriever(retriever=Retriever(client, corpus.COLLECTION, embedder=embedder), k=4)
        chain = {"question": RunnablePassthrough(), "documents": retriever} | RunnableLambda(answer)
        for question in corpus.questions(given.question):
            print(question, chain.invoke(question), "", sep="\n", flush=True)


if __name__ == "__main__":
    main()
