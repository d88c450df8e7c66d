"""pymilvus' own clients, sync, async and ORM, through the proxy and directly: the same answers, the same errors."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from haclient.drill.servers.lite import LiteServer
from tests.conftest import run
from tests.interop.surfaces import differing, lives, reads
from tests.servers import fill
from tests.servers.proxy import behind, serving

pytestmark = [
    pytest.mark.xdist_group("proxy_pymilvus"),
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning"),
]


@pytest.fixture(scope="module")
def lite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiteServer]:
    server = LiteServer(tmp_path_factory.mktemp("lite"))
    try:
        run(server.start())
        fill.fill([server.uri], rows=200)
        yield server
    finally:
        run(server.close())


@pytest.fixture
async def proxied(lite: LiteServer) -> AsyncIterator[str]:
    async with serving(behind([lite.uri])) as (_, uri):
        yield uri


async def test_reads_and_mistakes(lite: LiteServer, proxied: str) -> None:
    """Reads of all kinds, and mistakes of all kinds: the same answer or error, by type, code and text."""
    assert not differing(await reads(proxied), await reads(lite.uri))


async def test_lives_of_collections(lite: LiteServer, proxied: str) -> None:
    """The same programs from create to drop are answered alike at every step."""
    assert not differing(await lives(proxied, "ours", in_turn=True), await lives(lite.uri, "theirs", in_turn=True))
