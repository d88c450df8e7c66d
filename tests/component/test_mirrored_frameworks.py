"""What users build, over two clusters kept the same: LangChain's own suite, stock LangChain, the indexer."""

from __future__ import annotations

import socket
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pymilvus
import pytest
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_milvus import Milvus
from langchain_tests.integration_tests import VectorStoreIntegrationTests

from haclient import AsyncMilvusClient, MilvusClient
from haclient.drill.servers.lite import LiteServer
from haclient.integrations.langchain import HAMilvusVectorStore
from haclient.retrieval.embed.hashing import HashingEmbedder
from haclient.retrieval.indexer import Indexer, Source
from haclient.retrieval.retriever import Retriever
from tests.conftest import run

pytestmark = [pytest.mark.xdist_group("langchain"), pytest.mark.timeout(180)]

TEXTS = [f"passage {i}" for i in range(8)]


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[LiteServer]]:
    made = [LiteServer(tmp_path_factory.mktemp(name), name=name) for name in ("a", "b")]
    try:
        for server in made:
            run(server.start())
        yield made
    finally:
        for server in made:
            run(server.close())


@pytest.fixture(scope="module")
def config(servers: list[LiteServer], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    clusters = [{"name": server.name, "endpoints": [server.uri]} for server in servers]
    log = str(tmp_path_factory.mktemp("log") / "log.db")
    return {"cluster": clusters, "replication": {"mode": "mirror", "log": log, "ack": "all"}}


def rows_of(server: LiteServer, collection: str, key: str) -> list[Any]:
    """Read what one cluster itself holds."""
    client = pymilvus.MilvusClient(server.uri, dedicated=True)
    try:
        client.load_collection(collection)
        found = client.query(collection, f'{key} != ""', output_fields=["*"], limit=1000)
        return sorted((dict(row) for row in found), key=lambda row: row[key])
    finally:
        client.close()


class TestVectorStore(VectorStoreIntegrationTests):
    """LangChain's standard tests of vector stores, every write mirrored to two clusters."""

    @pytest.fixture
    def vectorstore(self, config: dict[str, Any]) -> Iterator[HAMilvusVectorStore]:
        store = HAMilvusVectorStore(
            self.get_embeddings(),
            collection_name=f"langchain_{uuid.uuid4().hex}",
            connection_args={"config": config},
        )
        yield store
        store.client.close()


@pytest.fixture
def store(config: dict[str, Any]) -> Iterator[HAMilvusVectorStore]:
    name = f"langchain_{uuid.uuid4().hex}"
    made = HAMilvusVectorStore(
        DeterministicFakeEmbedding(size=6), collection_name=name, connection_args={"config": config}
    )
    yield made
    made.client.close()


def test_both_clusters_hold_the_same_documents(store: HAMilvusVectorStore, servers: list[LiteServer]) -> None:
    store.add_texts(TEXTS, ids=TEXTS)
    store.delete(TEXTS[:2])
    store.add_texts(["changed"], ids=TEXTS[2:3])
    first, second = (rows_of(server, store.collection_name, "pk") for server in servers)
    assert first == second
    assert [row["text"] for row in first] == ["changed", *TEXTS[3:]]
    assert store.similarity_search("changed", k=1)[0].id == TEXTS[2]


def test_stock_langchain_through_a_proxy(
    config: dict[str, Any], servers: list[LiteServer], proxy: Callable[[dict[str, Any]], str]
) -> None:
    """It creates, loads, adds and deletes as on one server; keys are made for it."""
    uri = proxy(config)
    stock = Milvus(
        DeterministicFakeEmbedding(size=6),
        collection_name=f"stock_{uuid.uuid4().hex}",
        connection_args={"uri": uri},
        auto_id=True,
        consistency_level="Session",
    )
    keys = stock.add_texts(TEXTS)
    assert len(set(keys)) == len(TEXTS)
    assert stock.similarity_search(TEXTS[3], k=1)[0].page_content == TEXTS[3]
    stock.delete(keys[:1])
    assert TEXTS[0] not in [found.page_content for found in stock.similarity_search(TEXTS[0], k=8)]
    again = Milvus(
        DeterministicFakeEmbedding(size=6), collection_name=stock.collection_name, connection_args={"uri": uri}
    )
    assert len(again.similarity_search("passage", k=8)) == 7


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[Callable[[dict[str, Any]], str]]:
    """Starts ``haclient proxy`` over mirrored clusters and returns its address."""
    running: list[subprocess.Popen[bytes]] = []

    def start(config: dict[str, Any]) -> str:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        lines = [f'[[cluster]]\nname = "{one["name"]}"\nendpoints = {one["endpoints"]}' for one in config["cluster"]]
        lines += ["[replication]", *(f'{key} = "{value}"' for key, value in config["replication"].items())]
        file = tmp_path / "haclient.toml"
        file.write_text("\n".join(lines).replace("'", '"') + f'\n[proxy]\nlisten = "127.0.0.1:{port}"\nadmin = ""\n')
        command = [sys.executable, "-m", "haclient.cli", "proxy", "--config", str(file)]
        running.append(subprocess.Popen(command, stderr=subprocess.PIPE))
        log = running[-1].stderr
        assert log is not None
        while b"reads can be served" not in (line := log.readline()):
            assert line, "the proxy has ended"
        return f"http://127.0.0.1:{port}"

    yield start
    for process in running:
        process.terminate()
        process.communicate(timeout=60)
        assert process.returncode == 0


async def test_the_indexer_fills_both(config: dict[str, Any], servers: list[LiteServer]) -> None:
    name = f"indexed_{uuid.uuid4().hex}"
    sources = [Source(f"file {i}", f"The {word} is here. " * 3) for i, word in enumerate(("lock", "river", "paper"))]
    async with AsyncMilvusClient(config=config) as client:
        sync = MilvusClient(config=config)  # its create_index works on milvus-lite, too
        report = await Indexer(sync, name, embedder=HashingEmbedder()).add(sources)
        assert report.added > 0
        found = await Retriever(client, name, embedder=HashingEmbedder()).retrieve("Where is the river?", k=1)
        assert "river" in found[0].text
        sync.close()
    first, second = (rows_of(server, name, "id") for server in servers)
    assert first == second
    assert len(first) == report.added
