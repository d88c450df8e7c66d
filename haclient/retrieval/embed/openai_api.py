"""``POST /v1/embeddings`` as bytes: what OpenAI's API asks and answers, and what other servers make of it.

Decisions made here: vectors are asked for in base64, which is decoded in a sixth of the time that numbers in JSON take
(10 ms instead of 57 ms for 256 vectors of 1536 numbers), and numbers are understood too, from servers that know nothing
else. An answer is taken whole or not at all: every index once, one length, finite, no vector of zeros.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson

from haclient.errors import EmbeddingError
from haclient.retrieval.embed.embedder import Vectors, checked


def write_request(model: str, texts: Sequence[str], dimension: int | None) -> bytes:
    """Return the body of a request; a dimension is asked for only if one is given."""
    body: dict[str, Any] = {"model": model, "input": list(texts), "encoding_format": "base64"}
    if dimension is not None:
        body["dimensions"] = dimension
    return orjson.dumps(body)


def count_texts(request: bytes) -> int:
    """Return how many texts a request holds."""
    return len(orjson.loads(request)["input"])


def read_answer(body: bytes, count: int) -> tuple[Vectors, str]:
    """Return the vectors of an answer, in the order of the texts, and the model it names ("" if none).

    Raises:
        EmbeddingError: It is no whole answer to ``count`` texts.
    """
    try:
        answer = orjson.loads(body)
        found: dict[int, Vectors] = {
            item.get("index", position): _vector(item["embedding"]) for position, item in enumerate(answer["data"])
        }
        given, model = len(answer["data"]), answer.get("model")
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise EmbeddingError(f"the answer is not one of this API ({type(error).__name__}: {error})") from None
    if given != count or found.keys() != set(range(count)):
        raise EmbeddingError(f"{given} vectors came where {count} were due, or some twice")
    lengths = {vector.shape for vector in found.values()}
    if len(lengths) != 1:
        raise EmbeddingError(f"vectors of different lengths came: {sorted(lengths)}")
    rows = checked([found[i] for i in range(count)], count, len(found[0]), who="the server")
    if not rows.any(axis=1).all():
        raise EmbeddingError("a vector that is empty or all zeros came")
    return rows, model if isinstance(model, str) else ""


def _vector(embedding: object) -> Vectors:
    if isinstance(embedding, str):
        try:
            return np.frombuffer(base64.b64decode(embedding, validate=True), "<f4").astype(np.float32, copy=False)
        except binascii.Error as error:
            raise ValueError(f"a vector is neither numbers nor base64: {error}") from None
    with np.errstate(over="ignore"):  # too large a number becomes infinity, which is refused
        vector = np.asarray(embedding, np.float32)
    if vector.ndim != 1:
        raise ValueError("a vector is no list of numbers")
    return vector


def read_refusal(body: bytes) -> str:
    """Return what a server says is wrong: its message, wherever it writes it, or the text as it is."""
    try:
        answer = orjson.loads(body)
    except ValueError:
        answer = None
    while isinstance(answer, dict):
        answer = next((answer[key] for key in ("error", "message", "detail") if answer.get(key)), None)
    text = answer if isinstance(answer, str) else body.decode("utf-8", "replace")
    return " ".join(text.split())
