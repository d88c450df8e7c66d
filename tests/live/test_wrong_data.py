"""A server that answers at once, without an error, and wrongly: only a question whose answer is known finds it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from haclient.events import DataAlarm, EndpointChanged, ReadinessChanged
from tests.live.steady_load import Load, eventually, opened, searching, until_up
from tests.servers import fill
from tests.servers.shared import StandalonePair

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(300)]

COLLECTION = "sung"
ROWS = 50


def swap(uri: str, shift: int) -> None:
    """Give every row the vector of another one; 0 puts them right."""
    client = fill.connect(uri)
    try:
        client.upsert(COLLECTION, [{**fill.row(key), "vector": fill.vector(key + shift)} for key in range(ROWS)])
        client.query(COLLECTION, filter="id == 0", consistency_level="Strong")
    finally:
        client.close()


@pytest.fixture
def sung(standalone_pair: StandalonePair) -> Iterator[StandalonePair]:
    """The pair with a collection of its own, for tests that spoil it."""
    fill.fill(standalone_pair.uris, collection=COLLECTION, rows=ROWS)
    yield standalone_pair
    for uri in standalone_pair.uris:
        client = fill.connect(uri)
        client.drop_collection(COLLECTION)
        client.close()


@pytest.mark.parametrize("by", ["vector", "filter"])
async def test_canary_finds_wrong_data(sung: StandalonePair, by: str) -> None:
    """Once a canary has found it, no wrong answer reaches anybody; when the data are right again it is used again."""
    server = sung.a
    known: dict[str, Any] = {"vector": fill.vector(7)} if by == "vector" else {"filter": "id == 7"}
    health = {"deep_interval_s": 0.5, "canary": [{"collection": COLLECTION, "expect": [7], **known}]}
    async with opened(sung.uris, health=health) as (client, watch):
        await until_up(client, *(each.address for each in sung.both))
        async with Load(searching(client, COLLECTION), rows=ROWS) as load:
            await load.more(30)
            load.assert_all_right()
            if by == "vector":
                await asyncio.to_thread(swap, server.uri, 1)
            else:
                direct = fill.connect(server.uri)
                await asyncio.to_thread(direct.delete, COLLECTION, ids=list(range(ROWS)))
                direct.close()
            alarm = await watch.until(DataAlarm, endpoint=server.address)
            assert alarm.collection == COLLECTION
            assert "canary" in alarm.reason
            assert "7" in alarm.reason
            found_at = asyncio.get_running_loop().time()
            assert watch.of(ReadinessChanged, endpoint=server.address, ready=False)
            await load.more(60)
            after = load.since(found_at)
            assert all(question.right for question in after), [str(q) for q in after if not q.right]
            mark = watch.mark()
            await asyncio.to_thread(swap, server.uri, 0)
            await watch.until(ReadinessChanged, after_number=mark, endpoint=server.address, ready=True)
            assert len(watch.of(DataAlarm)) == 1, "one alarm for one fault"
            right_at = asyncio.get_running_loop().time()
            await load.more(40)
            assert all(question.right for question in load.since(right_at))
            await eventually(lambda: not load.since(right_at) or load.questions[-1].ended > 0)
        assert not watch.of(EndpointChanged, after="down"), "the endpoint is well, its data are not"
        assert not [question for question in load.questions if question.error]
