"""A worker's server from start to stop: draining loses nothing, reloads take effect, idle and old connections go."""

from __future__ import annotations

import asyncio
import base64

import pytest

from haclient.call import Reply
from haclient.config import Config
from haclient.proxy import server as server_module
from haclient.wire import Channel, Target, frames
from haclient.wire import server as wire
from tests.servers.proxy import behind, listening, serving
from tests.servers.scripted import RawClient, ScriptedMilvus, head_of, request

pytestmark = pytest.mark.both_loops
SEARCH = "/milvus.proto.milvus.MilvusService/Search"


@pytest.fixture(autouse=True)
def _often(monkeypatch):
    monkeypatch.setattr(server_module, "_SWEEP_S", 0.05)
    for module in (server_module, wire):
        monkeypatch.setattr(module, "_GOODBYE_S", 0.1)


async def until(true):
    async with asyncio.timeout(20):
        while not true():
            await asyncio.sleep(0.005)


class Client:
    def __init__(self, uri):
        self.channel = Channel(Target(host="127.0.0.1", port=int(uri.rpartition(":")[2])))

    async def ask(self, metadata=(), timeout_s=20.0):
        reply = asyncio.get_running_loop().create_future()
        self.channel.start(SEARCH, b"", metadata, timeout_s, reply.set_result)
        return await reply


def changed(server, **proxy):
    config = server._config
    return config.model_copy(update={"proxy": config.proxy.model_copy(update=proxy)})


async def test_draining_loses_no_call():
    """Clients ask without a pause while one proxy stops and the next takes over the same socket."""
    sock = listening()
    async with ScriptedMilvus() as milvus:
        config = behind([milvus.uri])
        async with serving(config, sock) as (first, uri):
            clients = [Client(uri) for _ in range(5)]
            replies, stop = [], False

            async def asking(client):
                while not stop:
                    replies.append(await client.ask())

            tasks = [asyncio.create_task(asking(client)) for client in clients for _ in range(4)]
            await until(lambda: len(replies) > 100)
            async with serving(config, sock) as (second, _):
                assert await first.drain(20.0) == 0
                assert first.connections == 0
                count = len(replies)
                await until(lambda: len(replies) > count + 100)
                assert second.connections == 5
                stop = True
                await asyncio.gather(*tasks)
                for client in clients:
                    await client.channel.aclose()
    sock.close()
    bad = [reply for reply in replies if not isinstance(reply, Reply) or reply.code]
    assert not bad, bad[:3]


async def test_draining_waits_for_long_calls_and_counts_those_it_cuts():
    async with ScriptedMilvus() as milvus, serving(behind([milvus.uri])) as (server, uri):
        milvus.script.script["Search"] = None
        client = Client(uri)
        asking = asyncio.create_task(client.ask())
        await until(lambda: server.calls == 1)
        assert server.ready[0]
        draining = asyncio.create_task(server.drain(0.3))
        await asyncio.sleep(0)
        assert server.ready == (False, "it is stopping")
        assert await draining == 1
        await server.aclose()
        assert not isinstance(await asking, Reply)
        assert server.calls == 0
        await until(lambda: milvus.open == 0)
        await client.channel.aclose()


async def test_stopping_does_not_wait_for_those_who_do_not_read():
    """Their sockets are closed all the same, and soon."""
    async with ScriptedMilvus() as milvus, serving(behind([milvus.uri])) as (server, uri):
        milvus.script.script["Query"] = Reply(b"\n\0\x7a\x80\x80\x40" + bytes(1 << 20))
        port = int(uri.rpartition(":")[2])
        client = await RawClient.open(port, {4: 2**31 - 1}, small=True)
        client.send(frames.window_update(0, 2**31 - 65_536) + b"".join([request(i) for i in range(1, 40, 2)]))
        await until(lambda: server.memory_bytes > 10 << 20)
        began = asyncio.get_running_loop().time()
        await server.aclose()
        assert asyncio.get_running_loop().time() - began < 10
        await until(lambda: server.connections == 0)
        assert (server.calls, server.memory_bytes) == (0, 0)
        client.close()


async def test_a_token_taken_away_opens_nothing_any_more():
    """Also for connections that stand: they are told to come back, and lose no call."""
    token = (("authorization", base64.b64encode(b"ann:one").decode()),)
    async with (
        ScriptedMilvus() as milvus,
        serving(behind([milvus.uri], proxy={"tokens": ["ann:one"]})) as (server, uri),
    ):
        client = Client(uri)
        assert (await client.ask(token)).code == 0
        (before,) = server._connections
        server.reload(Config.load(None, behind([milvus.uri], proxy={"tokens": ["ann:two"]})))
        await until(lambda: before not in server._connections)
        assert (await client.ask(token)).code == 16
        assert (await client.ask((("authorization", base64.b64encode(b"ann:two").decode()),))).code == 0
        await client.channel.aclose()


async def test_other_reloads_leave_connections_alone():
    async with ScriptedMilvus() as milvus, serving(behind([milvus.uri])) as (server, uri):
        client = Client(uri)
        assert (await client.ask()).code == 0
        (before,) = server._connections
        limits = server._config.proxy.limits.model_copy(update={"calls": 1})
        server.reload(changed(server, limits=limits))
        for _ in range(20):
            assert (await client.ask()).code == 0
        assert list(server._connections) == [before]
        assert server._admission.limits.calls == 1
        await client.channel.aclose()


@pytest.mark.parametrize("limits", [{"idle_s": 0.2}, {"age_s": 0.2}])
async def test_idle_and_old_connections_go(limits):
    """With GOAWAY, after their last call."""
    async with (
        ScriptedMilvus() as milvus,
        serving(behind([milvus.uri], proxy={"limits": limits})) as (server, uri),
    ):
        client = await RawClient.open(int(uri.rpartition(":")[2]))
        client.send(request(1))
        assert await client.goaway() == 0
        assert any(kind == frames.DATA for kind, *_ in client.frames), "its call was answered first"
        assert await client.ended()
        await until(lambda: server.connections == 0)
        client.close()


async def test_a_busy_connection_is_not_idle():
    """A call that takes long keeps its connection."""
    async with (
        ScriptedMilvus() as milvus,
        serving(behind([milvus.uri], proxy={"limits": {"idle_s": 0.1}})) as (server, uri),
    ):
        milvus.script.script["Search"] = None
        client = Client(uri)
        asking = asyncio.create_task(client.ask())
        await until(lambda: server.calls == 1)
        (connection,) = server._connections
        swept, sweep = [], connection.sweep
        connection.sweep = lambda *args: (swept.append(args), sweep(*args))
        await until(lambda: len(swept) > 5)
        assert not connection.draining
        asking.cancel()
        await client.channel.aclose()
        await until(lambda: milvus.cancelled == 1)


async def test_many_clients_come_and_go():
    """Nothing of them is left."""
    async with ScriptedMilvus() as milvus, serving(behind([milvus.uri])) as (server, uri):
        port = int(uri.rpartition(":")[2])
        for _ in range(20):
            clients = [await RawClient.open(port) for _ in range(10)]
            for client in clients:
                client.send(request(1) + request(3, end=False) + frames.frame(1, 4, 5, head_of(SEARCH)))
            assert all([await client.until(frames.DATA, 1) is not None for client in clients])
            for client in clients:
                client.close()
        await until(lambda: server.connections == 0)
        assert (server.calls, server.memory_bytes) == (0, 0)
        assert not server._connections
        assert not server._doors
        await until(lambda: milvus.open == 0)
