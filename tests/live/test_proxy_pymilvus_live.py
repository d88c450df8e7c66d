"""pymilvus' own clients on real Milvus 2.3.5, through the proxy and directly: the same answers, the same errors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.interop.surfaces import differing, lives, reads
from tests.servers.milvus_standalone import StandaloneServer
from tests.servers.proxy import behind, serving

pytestmark = [
    pytest.mark.live,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning"),
]


@pytest.fixture
async def proxied(standalone: StandaloneServer) -> AsyncIterator[str]:
    async with serving(behind([standalone.uri])) as (_, uri):
        yield uri


async def test_reads_and_mistakes(standalone: StandaloneServer, proxied: str) -> None:
    """Reads of all kinds, and mistakes of all kinds: the same answer or error, by type, code and text."""
    ours, theirs = await asyncio.gather(reads(proxied), reads(standalone.uri))
    assert not differing(ours, theirs)


async def test_lives_of_collections(standalone: StandaloneServer, proxied: str) -> None:
    """The same programs from create to drop, users and databases included, are answered alike at every step."""
    ours, theirs = await asyncio.gather(lives(proxied, "ours"), lives(standalone.uri, "theirs"))
    assert not differing(ours, theirs)
