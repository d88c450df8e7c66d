"""Reads through the whole stack where clusters differ in what they have."""

import asyncio

import pytest
from pymilvus.grpc_gen import milvus_pb2

from haclient.call import Reply
from haclient.errors import DeadlineExceeded
from haclient.milvus.timestamps import SESSION, TOKEN
from haclient.milvus.watermarks import COLLECTION
from haclient.replication.past import SESSION as FIELD
from haclient.replication.past import Past
from haclient.replication.token import token
from tests.unit.fleet.fleet_fakes import QUERY, REAL_ID, SHOW, Server, World, ask, query, until
from tests.unit.replication.reader_fakes import DOCS, Site
from tests.virtual_time import run


class Scene:
    """A core over scripted clusters s0, s1, …, and what its process knows of them."""

    def __init__(self, count=2, **config):
        self.servers = [Server(delay_s=0.004, catalogue={"docs": REAL_ID + i}) for i in range(count)]
        self.world = World(*self.servers, **config)
        self.site = Site(*(f"s{i}" for i in range(count)))
        self.core = self.world.core()
        self.core.reader = self.site.reader
        self.core.reader.rotation = self.core.fleet.rotation
        self.core.fleet.doubts.lagging = self.site.reader.lagging
        self.core.reconfigure(self.core.fleet.config)

    async def __aenter__(self):
        await self.world.__aenter__()
        await self.core.start()
        await until(lambda: all(node.found for node in self.core.fleet.nodes()))
        return self

    async def __aexit__(self, *error):
        await self.site.reader.aclose()
        await self.world.__aexit__(*error)

    def session(self, seq, **more):
        return query(guarantee_timestamp=token(seq) if seq else 1, consistency_level=SESSION, **more)

    def asked(self):
        return [len(server.calls("Query")) for server in self.servers]


def test_a_read_goes_where_its_write_is_and_carries_no_token():
    async def scenario():
        async with Scene() as s:
            seq = s.site.append()
            s.site.at(s0=0, s1=seq)
            for _ in range(20):
                await ask(s.core, method=QUERY, message=s.session(seq))
            assert s.asked() == [0, 20]
            sent = [milvus_pb2.QueryRequest.FromString(call.message) for call in s.servers[1].calls("Query")]
            assert {one.guarantee_timestamp for one in sent} == {1000 + seq}

    run(scenario())


def test_a_read_whose_only_cluster_dies_under_it_waits_for_another():
    """It is planned anew before each try."""

    async def scenario():
        async with Scene() as s:
            seq = s.site.append()
            s.site.at(s0=0, s1=seq)
            s.servers[1].state = "reset"
            s.world.loop.call_later(0.5, lambda: s.site.at(s0=seq))
            began = s.world.loop.time()
            reply = await ask(s.core, method=QUERY, message=s.session(seq), timeout_s=5.0)
            assert reply.code == 0
            assert s.servers[0].calls("Query")
            assert 0.5 <= s.world.loop.time() - began < 0.6
            assert len(s.servers[1].calls("Query")) == 1

    run(scenario())


def test_a_hedge_goes_to_who_has_caught_up():
    async def scenario():
        async with Scene() as s:
            seq = s.site.append()
            s.site.at(s0=0, s1=seq)
            s.servers[1].script["Query"] = None
            s.world.loop.call_later(0.01, lambda: s.site.at(s0=seq))
            began = s.world.loop.time()
            await ask(s.core, method=QUERY, message=s.session(seq), timeout_s=5.0)
            assert s.world.loop.time() - began < 1.0
            assert s.asked() == [1, 1]

    run(scenario())


def test_time_that_runs_out_tells_how_far_each_cluster_is():
    async def scenario():
        async with Scene() as s:
            seq = s.site.append(3)
            s.site.at(s0=0, s1=2)
            with pytest.raises(DeadlineExceeded) as caught:
                await ask(s.core, method=QUERY, message=s.session(seq), timeout_s=1.0)
            text = str(caught.value)
            assert "s0/s0 (up: behind: lacks up to 3 writes" in text
            assert "s1/s1 (up: behind: lacks up to 1 writes" in text
            assert s.asked() == [0, 0]

    run(scenario())


def test_answering_by_calling_back_makes_a_task_only_to_wait():
    async def scenario():
        async with Scene() as s:
            seq = s.site.append()
            s.site.at(s0=0, s1=0)
            answers = []
            waiting = s.core.begin(QUERY, s.session(seq), (), 5.0, answers.append)
            assert len(s.core._exchanges) == 1
            s.site.at(s1=seq)
            await until(lambda: len(answers) == 1)
            assert waiting.call.attempts[0].cluster == "s1"
            s.core.begin(QUERY, s.session(seq), (), 5.0, answers.append)
            assert not s.core._exchanges
            await until(lambda: len(answers) == 2)
            s.site.append()
            cancelled = s.core.begin(QUERY, s.session(seq + 1), (), 5.0, answers.append)
            await asyncio.sleep(0.1)
            cancelled.cancel()
            await asyncio.sleep(9)
            assert len(answers) == 2
            assert not s.core._exchanges
            assert not s.site.progress._waiting

    run(scenario())


def test_sessions_are_those_given_or_the_cores_own():
    async def scenario():
        async with Scene() as s:
            seq = s.site.append(2)
            s.site.at(s0=seq, s1=0)
            past, answers = Past(), []
            past.wrote(DOCS, seq)
            for _ in range(10):
                s.core.begin(QUERY, s.session(0), (), 5.0, answers.append, past=past)
            await until(lambda: len(answers) == 10)
            assert s.asked() == [10, 0]
            assert s.site.reader.past.sight(DOCS) is None
            assert past.sight(DOCS) is not None
            await ask(s.core, method=QUERY, message=s.session(0))
            assert s.site.reader.past.sight(DOCS) is not None

    run(scenario())


def test_lists_do_not_show_where_marks_are_kept():
    async def scenario():
        async with Scene(1) as s:
            s.site.at(s0=0)
            s.servers[0].catalogue[COLLECTION] = 7
            reply = await ask(s.core, method=SHOW, message=milvus_pb2.ShowCollectionsRequest().SerializeToString())
            assert list(milvus_pb2.ShowCollectionsResponse.FromString(reply.message).collection_names) == ["docs"]

    run(scenario())


def test_a_client_of_proxies_takes_its_session_along():
    """Its servers are proxies that mirror: what one of them says of the session the others are told."""

    async def scenario():
        servers = [Server(catalogue={"docs": REAL_ID}) for _ in range(2)]
        async with World(*servers) as world:
            core = world.core()
            await core.start()
            past = Past()
            past.wrote(DOCS, 5)
            text = past.token(DOCS, DOCS)
            await ask(core, method=QUERY, message=query())
            for server in servers:
                server.script["Query"] = Reply(b"\n\0", trailers=((FIELD, text),))
            await ask(core, method=QUERY, message=query())
            await ask(core, method=QUERY, message=query())
            await ask(core, method=QUERY, message=query("others"))
            calls = sorted((one for server in servers for one in server.calls("Query")), key=lambda one: one.at)
            assert [one.metadata.get(FIELD) for one in calls] == [None, None, text, None]
            assert all(milvus_pb2.QueryRequest.FromString(one.message).guarantee_timestamp < TOKEN for one in calls)

    run(scenario())
