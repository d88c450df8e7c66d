"""The sync drop-in on real Milvus 2.3.5: what pymilvus' own client answers, and threads that never see a server die."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pymilvus
import pytest
from pymilvus import MilvusException

from haclient import MilvusClient
from tests.live.test_dropin import MISTAKES, READS, alike, index_of, plain, rows_of, schema_of
from tests.servers import fill
from tests.servers.shared import ROWS, StandalonePair

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(300)]

NAME = "dropin_sync"


def outcome(do: Callable[[Any], Any], client: Any) -> tuple[str, Any]:
    """What came of it: the answer, or the error's code and text."""
    try:
        return "answer", plain(do(client))
    except MilvusException as error:
        return "error", (error.code, error.message)
    except grpc.RpcError as error:
        return "rpc error", error.code()
    except Exception as error:
        return type(error).__name__, str(error)


@pytest.fixture
def both(standalone_pair: StandalonePair) -> Iterator[tuple[MilvusClient, Any]]:
    """The drop-in and pymilvus' own client on the same server."""
    own = fill.connect(standalone_pair.a.uri)
    with MilvusClient(standalone_pair.a.uri) as client:
        yield client, own
    own.close()


def test_answers_and_errors_are_pymilvus_own(both: tuple[MilvusClient, Any]) -> None:
    client, own = both
    differ = {}
    for name, do in {**READS, **MISTAKES}.items():
        got, wanted = outcome(do, client), outcome(do, own)
        if not alike(got, wanted):
            differ[name] = (got, wanted)
    assert differ == {}


def test_a_collections_life(both: tuple[MilvusClient, Any]) -> None:
    """Made, filled, changed, iterated over and dropped by each client in turn, with the same answers."""

    def pages(iterator: Any) -> list[Any]:
        got = []
        while page := iterator.next():
            got += [row["id"] for row in page]
        iterator.close()
        return got

    def life(client: Any) -> list[Any]:
        client.create_collection(NAME, schema=schema_of(client), index_params=index_of(client))
        told = [client.insert(NAME, rows_of(0, 50)), client.upsert(NAME, rows_of(10, 5)), client.delete(NAME, ids=[3])]
        told.append(client.query(NAME, filter="id < 6", output_fields=["kind"], consistency_level="Strong"))
        told.append(pages(client.query_iterator(NAME, batch_size=20, filter="id >= 0", output_fields=["id"])))
        told.append(client.search(NAME, data=[[1.0, 1.0, 0.0, -1.0]], limit=3, consistency_level="Strong"))
        client.flush(NAME)
        client.drop_collection(NAME)
        told.append(client.has_collection(NAME))
        return plain(told)

    client, own = both
    if client.has_collection(NAME):
        client.drop_collection(NAME)
    assert life(client) == life(own)


@pytest.mark.parametrize("fault", ["kill", "freeze"])
def test_no_thread_notices_when_a_server_goes(standalone_pair: StandalonePair, fault: str) -> None:
    asked = threading.Semaphore(0)

    def ask(key: int) -> int:
        hits = client.search(fill.COLLECTION, data=[fill.vector(key)], limit=1)
        asked.release()
        return int(hits[0][0]["id"])

    keys = [number % ROWS for number in range(600)]
    with MilvusClient(standalone_pair.uris) as client, ThreadPoolExecutor(6) as pool:
        assert {endpoint.state for endpoint in client.refresh().endpoints} == {"up"}
        answers = [pool.submit(ask, key) for key in keys]
        for _ in range(150):
            asked.acquire()
        if fault == "kill":
            asyncio.run(standalone_pair.a.kill())
        else:
            standalone_pair.a.freeze()
        assert [answer.result() for answer in answers] == keys


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_pymilvus_orm_stands_on_it(both: tuple[MilvusClient, Any]) -> None:
    client, own = both
    collection = pymilvus.Collection(fill.COLLECTION, using=client._using)
    hits = collection.search([fill.vector(5)], "vector", {"metric_type": "COSINE"}, limit=4, consistency_level="Strong")
    wanted = own.search(fill.COLLECTION, data=[fill.vector(5)], limit=4)
    assert hits[0].ids == [hit["id"] for hit in wanted[0]]
    assert [row["id"] for row in collection.query("id in [7, 8]", consistency_level="Strong")] == [7, 8]
