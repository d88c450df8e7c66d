"""A small server of an OpenAI-compatible ``/v1/embeddings``, with faults that can be switched on.

Decision made here: it runs on the test's own event loop and speaks HTTP/1.1 by hand, so that it can also do what no
framework lets it do: hang up in the middle, answer nothing, or answer nonsense. Its vectors are the test's to compute
too (`vectors`).
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable
from typing import Any

import numpy as np

from haclient.drill.servers.process import HOST
from haclient.retrieval.embed import HashingEmbedder, Vectors

#: What a fault makes of a good answer.
GARBAGE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "NaN": lambda answer: _with_vector(answer, lambda vector: [float("nan"), *vector[1:]]),
    "infinity in base64": lambda answer: _with_vector(answer, lambda vector: _packed([float("inf"), *vector[1:]])),
    "zeros": lambda answer: _with_vector(answer, lambda vector: [0.0] * len(vector)),
    "no vector": lambda answer: _with_vector(answer, lambda vector: []),
    "wrong length": lambda answer: answer | {"data": [d | {"embedding": d["embedding"][:-1]} for d in answer["data"]]},
    "text for numbers": lambda answer: _with_vector(answer, lambda vector: "not base64!"),
    "too few": lambda answer: answer | {"data": answer["data"][1:]},
    "too many": lambda answer: answer | {"data": [*answer["data"], answer["data"][0]]},
    "wrong index": lambda answer: answer | {"data": [d | {"index": 7} for d in answer["data"]]},
    "wrong model": lambda answer: answer | {"model": "another"},
    "no data": lambda answer: {"object": "list"},
    "a list": lambda answer: [answer],
}

Request = tuple[str, str, dict[str, str], bytes]


class EmbeddingServer:
    """One server; see the module.

    Args:
        model: What it says its model is.
        dimension: Numbers in its vectors.

    Attributes:
        fault: ``hang``, ``reset`` (it hangs up without an answer), ``html``, an HTTP status, one of `GARBAGE`, or "".
        delay_s: Time that computing vectors takes.
        numbers: It answers with numbers although base64 is asked for, as older servers do.
        text: What it says when it refuses.
        asked: The bodies of all requests for vectors.
        headers: The headers of the last request.
        in_flight: Requests for vectors under way.
        busiest: The most there ever were.
    """

    def __init__(self, *, model: str = "small", dimension: int = 16) -> None:
        self.model = model
        self.fault: str | int = ""
        self.delay_s = 0.0
        self.numbers = False
        self.text = "refused on purpose"
        self.asked: list[dict[str, Any]] = []
        self.headers: dict[str, str] = {}
        self.in_flight = self.busiest = 0
        self.port = 0
        self._embedder = HashingEmbedder(dimension)
        self._server: asyncio.Server | None = None
        self._connections: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    @property
    def url(self) -> str:
        """The base URL."""
        return f"http://{HOST}:{self.port}/v1"

    @property
    def connections(self) -> int:
        """Connections that are open."""
        return len(self._connections)

    def vectors(self, texts: list[str]) -> Vectors:
        """What it answers, when it is well."""
        return self._embedder.vectors(texts)

    async def start(self) -> None:
        """Listen, on the same port as before if there was one."""
        self._server = await asyncio.start_server(self._connected, HOST, self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def kill(self) -> None:
        """Listen no more, and reset every connection."""
        if self._server is not None:
            self._server.close()
        for task, writer in list(self._connections.items()):
            writer.transport.abort()
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections[task] = writer
        try:
            while True:
                await self._serve(await _read(reader), reader, writer)
        except (ConnectionError, EOFError, asyncio.CancelledError):
            pass
        finally:
            self._connections.pop(task, None)
            writer.transport.abort()

    async def _serve(self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        method, path, self.headers, body = request
        if self.fault == "hang":
            await reader.read()  # until the client gives up
            return
        if method == "GET":
            _write(writer, 200 if path == "/v1/models" else 404, json.dumps({"object": "list", "data": []}))
            return
        assert path == "/v1/embeddings"
        self.in_flight += 1
        self.busiest = max(self.busiest, self.in_flight)
        try:
            await self._embed(json.loads(body), writer)
        finally:
            self.in_flight -= 1

    async def _embed(self, asked: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        self.asked.append(asked)
        fault = self.fault
        await asyncio.sleep(self.delay_s)
        if isinstance(fault, int):
            _write(writer, fault, json.dumps({"error": {"message": self.text, "type": "test"}}))
        elif fault == "reset":
            writer.transport.abort()
        elif fault == "html":
            _write(writer, 200, "<html>It works!</html>")
        else:
            answer = self._answer(asked)
            if fault:
                answer = GARBAGE[fault](answer)
            elif not self.numbers and asked.get("encoding_format") == "base64":
                answer["data"] = [d | {"embedding": _packed(d["embedding"])} for d in answer["data"]]
            _write(writer, 200, json.dumps(answer))

    def _answer(self, asked: dict[str, Any]) -> dict[str, Any]:
        rows = self.vectors(asked["input"])[:, : asked.get("dimensions")]
        data = [{"object": "embedding", "index": i, "embedding": row.tolist()} for i, row in enumerate(rows)]
        return {"object": "list", "model": self.model, "data": data[::-1]}  # whoever minds the order must sort


def _with_vector(answer: dict[str, Any], change: Callable[[list[float]], object]) -> dict[str, Any]:
    first, *rest = answer["data"]
    return answer | {"data": [first | {"embedding": change(first["embedding"])}, *rest]}


def _packed(vector: list[float]) -> str:
    return base64.b64encode(np.asarray(vector, "<f4").tobytes()).decode()


async def _read(reader: asyncio.StreamReader) -> Request:
    head = await reader.readuntil(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").splitlines()
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    method, path, _ = first.split(" ")
    return method, path, headers, body


def _write(writer: asyncio.StreamWriter, status: int, body: str) -> None:
    raw = body.encode()
    writer.write(f"HTTP/1.1 {status} Status\r\ncontent-length: {len(raw)}\r\n\r\n".encode() + raw)
