"""LangChain's and LlamaIndex' own stores for Milvus with the proxy's address: nothing else is changed.

Behind it are two servers with the same data, and one is killed while questions are asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_milvus import Milvus

from haclient.drill.servers.lite import LiteServer
from tests import environments
from tests.component.test_llama_index import TOOLS
from tests.servers.proxy import behind, serving
from tests.servers.shared import LiteFactory

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")

TEXTS = [f"passage {i}" for i in range(8)]


@pytest.fixture
async def servers(lite_server: LiteFactory) -> tuple[LiteServer, LiteServer]:
    return tuple(await asyncio.gather(lite_server(), lite_server()))


@pytest.fixture
async def one_cluster(servers: tuple[LiteServer, LiteServer]) -> AsyncIterator[str]:
    """LangChain's store loads what it opens, and the proxy takes such a call for one cluster only."""
    async with serving(behind([server.uri for server in servers])) as (_, proxied):
        yield proxied


@pytest.fixture
async def two_clusters(servers: tuple[LiteServer, LiteServer]) -> AsyncIterator[str]:
    async with serving(behind(*([server.uri] for server in servers))) as (_, proxied):
        yield proxied


async def test_langchain(servers: tuple[LiteServer, LiteServer], one_cluster: str) -> None:
    a, b = servers
    model = DeterministicFakeEmbedding(size=6)

    def store(uri: str) -> Milvus:
        return Milvus(model, connection_args={"uri": uri}, collection_name="stock")

    def answers(store: Milvus) -> list[Any]:
        found = [store.similarity_search_with_score(text, k=3) for text in TEXTS]
        filtered = store.similarity_search(TEXTS[0], k=2, expr="number > 4")
        return [*found, filtered, store.max_marginal_relevance_search(TEXTS[2], k=2), store.get_pks("number < 3")]

    metadatas = [{"number": number} for number in range(len(TEXTS))]
    for server in (a, b):
        made = await asyncio.to_thread(store, server.uri)
        await asyncio.to_thread(made.add_texts, TEXTS, metadatas, ids=TEXTS)
    direct, through = await asyncio.to_thread(store, b.uri), await asyncio.to_thread(store, one_cluster)
    assert await asyncio.to_thread(answers, through) == await asyncio.to_thread(answers, direct)

    killing: asyncio.Task[None] | None = None
    for number in range(100):
        text = TEXTS[number % len(TEXTS)]
        if number % 2:
            (found,) = await asyncio.to_thread(through.similarity_search, text, k=1)
        else:
            (found,) = await through.asimilarity_search(text, k=1)
        assert found.page_content == text
        if number == 20:
            killing = asyncio.create_task(a.kill())
    assert killing is not None
    await killing


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.xdist_group("live")
async def test_llama_index(
    servers: tuple[LiteServer, LiteServer], two_clusters: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """In the environment that its package needs; see `tests.component.test_llama_index`."""
    a, b = servers
    folder = environments.folder(tmp_path_factory) / "llama-index"
    python = await asyncio.to_thread(environments.environment, folder, TOOLS, "demo,llama-index")
    script, pipe = Path(__file__).with_name("llama_index_client.py"), asyncio.subprocess.PIPE
    client = await asyncio.create_subprocess_exec(
        python, script, a.uri, b.uri, two_clusters, stdin=pipe, stdout=pipe, stderr=pipe
    )
    assert client.stdin is not None
    assert client.stdout is not None
    told = [await client.stdout.readline(), await client.stdout.readline()]
    killing = asyncio.create_task(a.kill())
    client.stdin.write(b"\n")
    rest, errors = await client.communicate()
    assert [*told, rest] == [b"the same\n", b"under way\n", b"all answered\n"], errors.decode()[-3_000:]
    await killing
