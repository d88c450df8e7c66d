"""What the adapters of frameworks share."""

from __future__ import annotations

import asyncio

import pytest
from pymilvus.exceptions import MilvusException

from haclient import MilvusClient
from haclient.events import CallFinished, Event
from haclient.integrations.clients import SharedAsyncClient, with_names
from tests.servers import fill
from tests.servers.shared import LiteFactory

GREETING = "hello"


def greet(name: str = "you", *, mark: str = "!") -> str:
    return GREETING + " " + name + mark


def test_a_copy_with_other_names() -> None:
    copy = with_names(greet, GREETING="good bye")
    assert (copy("all"), copy(mark="?")) == ("good bye all!", "good bye you?")
    assert (greet(), copy.__name__) == ("hello you!", "greet")


async def test_one_core_for_both_clients(lite_server: LiteFactory) -> None:
    """From any number of event loops; what one writes the other reads, and both are heard and seen as one."""
    server = await lite_server()
    await asyncio.to_thread(fill.fill, [server.uri], rows=5)
    client = await asyncio.to_thread(MilvusClient, server.uri)
    shared = SharedAsyncClient(client)
    heard: list[Event] = []
    unsubscribe = shared.subscribe(heard.append)
    try:
        client.insert(fill.COLLECTION, [fill.row(7)])

        async def read() -> list[int]:
            return [row["id"] for row in await shared.query(fill.COLLECTION, filter="id > 3", output_fields=["id"])]

        assert await read() == await asyncio.to_thread(lambda: asyncio.run(read())) == [4, 7]
        assert [each.method for each in heard if isinstance(each, CallFinished)].count("Query") == 2
        await shared.refresh()
        assert [each.state for each in shared.fleet.endpoints] == ["up"]
        assert shared.host.core is client.host.core

        unsubscribe()
        await shared.close()
        with pytest.raises(MilvusException, match="closed"):
            await read()
        assert client.get(fill.COLLECTION, ids=[7], output_fields=["text"])[0]["text"] == "text of 7"
    finally:
        client.close()
