"""Question, documents, answer: a service. POST /ask {"question": "What does yield do?"}, GET /fleet.

python examples/fastapi_service.py --uri http://10.0.0.1:19530 --uri http://10.0.0.2:19530
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import corpus
import llm
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from haclient import AsyncMilvusClient, CallError
from haclient.errors import BadQuery
from haclient.retrieval import Indexer, Retriever

given = corpus.arguments("Serve answers from the Python language reference; PORT is 8000 unless set.")


class Question(BaseModel):
    """What is asked."""

    question: str
    k: int = 4


class Answer(BaseModel):
    """What is answered, from which documents, by which server; and whether that may be out of date."""

    answer: str
    sources: list[str]
    server: str
    rung: str
    stale: bool


@asynccontextmanager
async def life(app: FastAPI) -> AsyncIterator[None]:
    """Index the corpus, and keep one client and one retriever as long as the service runs."""
    embedder = corpus.make_embedder(given.model)
    async with AsyncMilvusClient(given.uri) as client:
        # Only what is not there yet is embedded and written: all of it the first time, nothing later.
        await Indexer(client, corpus.COLLECTION, embedder=embedder).add(corpus.sources())
        app.state.client = client
        app.state.retriever = Retriever(client, corpus.COLLECTION, embedder=embedder)
        yield
    await embedder.aclose()


app = FastAPI(lifespan=life)


@app.post("/ask")
async def ask(asked: Question) -> Answer:
    """Answer one question."""
    documents = await app.state.retriever.retrieve(asked.question, k=asked.k)
    passages = [f"[{each.metadata['source']}] {each.text}" for each in documents]
    return Answer(
        answer=await asyncio.to_thread(llm.answer, asked.question, passages),
        sources=[each.metadata["source"] for each in documents],
        server=documents.source,
        rung=documents.rung.value,
        stale=documents.freshness.stale,
    )


@app.get("/fleet")
async def fleet() -> dict[str, str]:
    """Say how each server is."""
    return {endpoint.name: endpoint.state for endpoint in app.state.client.fleet.endpoints}


@app.exception_handler(BadQuery)
@app.exception_handler(CallError)
async def failed(request: Request, error: Exception) -> JSONResponse:
    """Tell the caller whose fault it was: his own (422), or nobody could answer (503)."""
    return JSONResponse({"detail": str(error)}, 422 if isinstance(error, BadQuery) else 503)


if __name__ == "__main__":
    uvicorn.run(app, port=int(os.environ.get("PORT", "8000")))
