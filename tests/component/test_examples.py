"""Every example answers every question while a server is killed: two milvus-lite with the same rows, a process each."""

from __future__ import annotations

import asyncio
import importlib.util
import itertools
import json
import os
import re
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest

from haclient import MilvusClient
from haclient.drill.corpus import read_documents
from haclient.drill.servers.lite import LiteServer
from haclient.portal import portal
from haclient.retrieval import Indexer, Source
from tests.quality.models import make_embedder, model_folder
from tests.quality.questions import QUESTIONS
from tests.servers import fill

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
COLLECTION = "python_reference"
MODEL = model_folder() or "hashing"
K = 4
COMPLAINTS = "stderr"
#: After so many answers a server is killed.
KILL_AFTER = 10

Start = Callable[..., Awaitable[asyncio.subprocess.Process]]

#: All that need the model stay with one worker, which loads it once.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.xdist_group("model")]


@dataclass(frozen=True)
class Corpus:
    """Two servers, and what plain pymilvus finds on each: sources and texts, by question.

    Passages with the same score come in any order, and not in the same one on both.
    """

    a: LiteServer
    b: LiteServer
    expected: dict[str, tuple[list[tuple[str, str]], ...]]

    @property
    def uris(self) -> list[str]:
        return [self.a.uri, self.b.uri]


@pytest.fixture(scope="module")
def filled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Corpus]:
    embedder = make_embedder("minilm" if model_folder() else "hashing", request.config.cache.mkdir("embedded"))
    folder = tmp_path_factory.mktemp("examples")
    servers = [LiteServer(folder / name, name=name) for name in "ab"]
    sources = [Source(topic, text) for topic, text in read_documents().items()]
    questions = [question.text for question in QUESTIONS]
    try:
        for server in servers:
            asyncio.run(server.start())
            with MilvusClient(server.uri) as client:
                assert Indexer(client, COLLECTION, embedder=embedder).add_sync(sources).failed == ()
                client.flush(COLLECTION)
        vectors = portal().run(embedder.embed(questions, queries=True)).tolist()
        hits = [_hits(server.uri, vectors) for server in servers]
        yield Corpus(*servers, dict(zip(questions, zip(*hits, strict=True), strict=True)))
    finally:
        for server in servers:
            asyncio.run(server.close())
        portal().run(embedder.aclose())


def _hits(uri: str, vectors: list[list[float]]) -> list[list[tuple[str, str]]]:
    plain = fill.connect(uri)
    found = plain.search(COLLECTION, data=vectors, limit=K, output_fields=["source", "text"])
    plain.close()
    return [[(hit["entity"]["source"], hit["entity"]["text"]) for hit in answer] for answer in found]


@pytest.fixture
async def corpus(filled: Corpus) -> Corpus:
    """Both servers up, whatever the last test did to them."""
    for server in (filled.a, filled.b):
        await server.start()
        await asyncio.to_thread(fill.wait_readable, server.uri, collection=COLLECTION, load=True)
    return filled


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    """Runs an example without a language model and without the network; what it complains of is in `complaints`."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("HACLIENT_", "OPENAI_"))}
    offline = {"HF_HUB_OFFLINE": "1", "HAYSTACK_TELEMETRY_ENABLED": "False"}
    processes: list[asyncio.subprocess.Process] = []

    async def run(name: str, *arguments: str, **environment: str) -> asyncio.subprocess.Process:
        with (tmp_path / COMPLAINTS).open("ab") as errors:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                str(EXAMPLES / f"{name}.py"),
                *arguments,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
                env={**inherited, **offline, **environment},
            )
        processes.append(process)
        return process

    yield run
    for process in processes:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def read_answer(process: asyncio.subprocess.Process) -> list[str]:
    """Read the lines up to the blank one after an answer."""
    assert process.stdout is not None
    lines = []
    while line := (await process.stdout.readline()).decode().rstrip("\n"):
        lines.append(line)
    return lines


def shown(lines: list[str]) -> list[tuple[str, str]]:
    """The sources and the beginnings of the texts that were printed."""
    found = [re.fullmatch(r"\d\. \[([^\]]+)\] (.*?)(?: \[\.\.\.\])?", line) for line in lines]
    assert all(found), lines
    return [(match[1], match[2]) for match in found if match]


def fits(found: list[tuple[str, str]], expected: list[tuple[str, str]]) -> bool:
    """Whether what was printed is this answer."""
    texts = [" ".join(text.split()) for _, text in expected]
    begins = all(text.startswith(begin) for (_, begin), text in zip(found, texts, strict=True))
    return begins and [source for source, _ in found] == [source for source, _ in expected]


def needs(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"needs the package {package}")


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("plain_rag", "arguments"),
        pytest.param("langchain_rag", "HACLIENT_URI", marks=needs("langchain_milvus")),
        pytest.param("llama_index_rag", "HACLIENT_CONFIG", marks=needs("llama_index")),
        pytest.param("haystack_rag", "arguments", marks=needs("haystack")),
    ],
)
async def test_every_question_is_answered_rightly_while_a_server_is_killed(
    corpus: Corpus, start: Start, name: str, address: str, tmp_path: Path
) -> None:
    file = tmp_path / "haclient.toml"
    clusters = [f'[[cluster]]\nname = "{s.name}"\nendpoints = ["{s.uri}"]\n' for s in (corpus.a, corpus.b)]
    file.write_text("\n".join(clusters))
    given = {"HACLIENT_URI": ",".join(corpus.uris), "HACLIENT_CONFIG": str(file)}
    environment = {key: value for key, value in given.items() if key == address}
    arguments = [] if environment else [f"--uri={uri}" for uri in corpus.uris]
    process = await start(name, *arguments, f"--model={MODEL}", **environment)
    complaints = tmp_path / COMPLAINTS
    assert process.stdin is not None
    questions = list(corpus.expected.items())
    for first, end in itertools.pairwise((0, KILL_AFTER, 2 * KILL_AFTER, len(questions))):
        process.stdin.write("".join(f"{question}\n" for question, _ in questions[first:end]).encode())
        if first == KILL_AFTER:
            await corpus.a.kill()
        for question, expected in questions[first:end]:
            lines = await read_answer(process)
            assert lines[:1] == [question], complaints.read_text()
            found = shown(lines[1:])
            assert any(fits(found, one) for one in expected), question
    process.stdin.write_eof()
    assert await process.wait() == 0, complaints.read_text()
    assert "Traceback" not in complaints.read_text()


@needs("fastapi")
@needs("uvicorn")
async def test_the_service_answers_every_question_while_a_server_is_killed(
    corpus: Corpus, start: Start, tmp_path: Path
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = await start("fastapi_service", *(f"--uri={u}" for u in corpus.uris), f"--model={MODEL}", PORT=str(port))
    complaints = tmp_path / COMPLAINTS
    slots = asyncio.Semaphore(4)
    by_port = {server.port: server for server in (corpus.a, corpus.b)}
    answers: list[dict[str, Any]] = []
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as http:
        while not await is_up(http):
            assert process.returncode is None, complaints.read_text()
            await asyncio.sleep(0.1)

        async def ask(question: str, expected: tuple[list[tuple[str, str]], ...]) -> None:
            async with slots:
                reply = await http.post("/ask", json={"question": question, "k": K})
            assert reply.status_code == 200, reply.text
            answer = reply.json()
            assert answer["sources"] in [[source for source, _ in one] for one in expected]
            assert not answer["stale"]
            answers.append(answer)
            if len(answers) == KILL_AFTER:
                await by_port.pop(int(answer["server"].rpartition(":")[2])).kill()

        await asyncio.gather(*(ask(*pair) for pair in corpus.expected.items()))
        [alive] = by_port
        assert answers[-1]["server"].endswith(f":{alive}")
        assert (await http.post("/ask", json={"question": " "})).status_code == 422
    process.terminate()
    await process.wait()
    assert "Traceback" not in complaints.read_text()


async def is_up(http: httpx.AsyncClient) -> bool:
    try:
        return (await http.get("/fleet")).status_code == 200
    except httpx.TransportError:
        return False


async def test_the_first_use_fills_an_empty_server_and_the_second_writes_nothing(start: Start, tmp_path: Path) -> None:
    async with LiteServer(tmp_path / "server") as server:
        counts = []
        for _ in range(2):
            process = await start("plain_rag", f"--uri={server.uri}", "--model=hashing", "What does str.partition do?")
            out, _ = await process.communicate()
            assert process.returncode == 0, (tmp_path / COMPLAINTS).read_text()
            assert "[string-methods] str.partition()" in out.decode()
            counts.append(await asyncio.to_thread(fill.count, server.uri, collection=COLLECTION))
        assert counts[0] == counts[1] > 400


def test_a_language_model_gets_question_passages_and_key(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str, Any]] = []

    class Model(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            asked.append((self.path, self.headers["authorization"], body))
            reply = json.dumps({"choices": [{"message": {"content": "Forty-two."}}]}).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(reply)))
            self.end_headers()
            self.wfile.write(reply)

        def log_message(self, *_: Any) -> None:
            pass

    spec = importlib.util.spec_from_file_location("llm", EXAMPLES / "llm.py")
    assert spec is not None
    assert spec.loader is not None
    llm = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(llm)
    with HTTPServer(("127.0.0.1", 0), Model) as server:
        Thread(target=server.handle_request).start()
        monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{server.server_port}/v1/")
        monkeypatch.setenv("OPENAI_API_KEY", "secret")
        monkeypatch.setenv("OPENAI_MODEL", "small")
        assert llm.answer("Why?", ["[a] Because.", "[b] Therefore."]) == "Forty-two."
    [(path, key, body)] = asked
    assert (path, key, body["model"]) == ("/v1/chat/completions", "Bearer secret", "small")
    prompt = body["messages"][0]["content"]
    assert all(part in prompt for part in ("Why?", "[a] Because.", "[b] Therefore."))
