"""From a client's request to a server and back: what is carried, what is replaced, what is told of failures."""

from __future__ import annotations

import asyncio
import base64
import gzip
import logging
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from pymilvus.grpc_gen import common_pb2, milvus_pb2

from haclient.call import Reply
from haclient.errors import WireError
from haclient.wire import Channel, Target, frames, grpc
from haclient.wire.frames import frame
from tests.servers.proxy import behind, serving
from tests.servers.scripted import RawClient, ScriptedMilvus, head_of
from tests.unit.fleet.fleet_fakes import failure

SERVICE = "/milvus.proto.milvus.MilvusService/"
REFUSED = Reply(b"", 16, "auth check failure, please check username and password are correct")


def token(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


class Client:
    """A client of the proxy."""

    def __init__(self, port):
        self.channel = Channel(Target(host="127.0.0.1", port=port))

    def start(self, name, message=b"", metadata=(), timeout_s=20.0):
        reply = asyncio.get_running_loop().create_future()
        path = name if name.startswith("/") else SERVICE + name
        handle = self.channel.start(path, message, metadata, timeout_s, reply.set_result)
        return handle, reply

    async def ask(self, name, message=b"", metadata=(), timeout_s=20.0):
        return await self.start(name, message, metadata, timeout_s)[1]


class Scene:
    """Servers, the proxy in front of them, and a client."""

    def __init__(self, servers, server, client, port):
        self.servers, self.server, self.client, self.port = servers, server, client, port
        self.others = []

    async def raw(self):
        """Connect a client that sends any bytes."""
        self.others.append(await RawClient.open(self.port))
        return self.others[-1]

    def asked(self, name, server=0):
        return [r for r in self.servers[server].script.requests if r.name == name]


@pytest.fixture
async def scene():
    """Make a scene; everything has come to rest at its end."""
    scenes = []
    async with AsyncExitStack() as stack:

        async def make(count=1, **config):
            servers = [await stack.enter_async_context(ScriptedMilvus()) for _ in range(count)]
            settings = behind([server.uri for server in servers], hedge={"enabled": False}, **config)
            server, uri = await stack.enter_async_context(serving(settings))
            port = int(uri.rpartition(":")[2])
            scenes.append(Scene(servers, server, Client(port), port))
            stack.push_async_callback(scenes[-1].client.channel.aclose)
            return scenes[-1]

        yield make
        for one in scenes:
            await one.client.channel.aclose()
            for other in one.others:
                other.close()
            await until(lambda: one.server.connections == 0)  # noqa: B023 - awaited at once
            assert (one.server.calls, one.server.memory_bytes) == (0, 0)


async def until(true):
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.005)


# -- what is carried


async def test_metadata_both_ways(scene):
    """The client's goes to the server, the server's to the client; ids are made, or kept."""
    s = await scene()
    headers, trailers = (("x-h", "1"), ("h-bin", "AAEC")), (("x-t", "2"), ("grpc-status-details-bin", "CAM"))
    s.servers[0].script.script["Search"] = Reply(b"\n\0", headers=headers, trailers=trailers)
    reply = await s.client.ask("Search", metadata=(("x-mine", "1"), ("blob-bin", "AAEC"), ("client-request-id", "a b")))
    assert reply.message == b"\n\0"
    assert set(reply.headers) == {*headers, ("client-request-id", "a b")}
    assert reply.trailers == trailers
    seen = s.asked("Search")[-1]
    assert seen.metadata["x-mine"] == "1"
    assert seen.metadata["blob-bin"] == "AAEC"
    assert seen.metadata["client-request-id"] == "a b"
    first, second = [dict((await s.client.ask("Search")).headers)["client-request-id"] for _ in range(2)]
    assert first != second
    assert s.asked("Search")[-1].metadata["client-request-id"] == second


async def test_a_long_request_id(scene):
    """It need not fit in one byte's length."""
    s = await scene()
    reply = await s.client.ask("Search", metadata=(("client-request-id", "x" * 300),))
    assert dict(reply.headers)["client-request-id"] == "x" * 300


async def test_a_servers_odd_headers_do_not_lose_the_answer(scene):
    """Bytes beyond ASCII and names we would not send ourselves go through as they are."""
    s = await scene()
    odd = (("grpc-mine", "1"), ("x-odd", "caf\xe9\t"), ("host", "x"))
    s.servers[0].script.script["Search"] = Reply(b"", headers=odd, trailers=odd)
    reply = await s.client.ask("Search")
    assert set(odd) <= set(reply.headers)
    assert reply.trailers == odd


async def test_the_deadline_goes_on(scene):
    """What is left of it is what the server gets; when it is over the client is told, and the server, too."""
    s = await scene()
    await s.client.ask("Search", timeout_s=7.0)
    assert 6.0 < s.asked("Search")[-1].timeout_s <= 7.0
    s.servers[0].script.script["Query"] = None
    raw_client = await s.raw()
    raw_client.send(raw("Query", ("grpc-timeout", "50m")))
    assert status(await raw_client.until(frames.HEADERS, 1))[0] == 4
    await until(lambda: s.servers[0].open == 0)


@pytest.mark.parametrize("value", ["0S", "00000000n"])
async def test_no_time_at_all(scene, value):
    s = await scene()
    raw_client = await s.raw()
    raw_client.send(raw("Search", ("grpc-timeout", value)))
    assert status(await raw_client.until(frames.HEADERS, 1))[0] == 4


async def test_the_longest_time(scene):
    """99,999,999 hours are a time-out like others."""
    s = await scene()
    raw_client = await s.raw()
    raw_client.send(raw("Search", ("grpc-timeout", "99999999H")))
    assert await raw_client.until(frames.DATA, 1) is not None


def raw(name, *fields, body=b"\0\0\0\0\0"):
    return frame(frames.HEADERS, 4, 1, head_of(SERVICE + name, *fields)) + frame(frames.DATA, 1, 1, body)


def status(block):
    import hpack

    fields = dict(hpack.Decoder().decode(block))
    return int(fields["grpc-status"]), fields.get("grpc-message", "")


async def test_a_compressed_request(scene):
    """The server gets it plain."""
    s = await scene()
    packed = gzip.compress(b"\x12\x04docs")
    raw_client = await s.raw()
    body = b"\1" + len(packed).to_bytes(4, "big") + packed
    raw_client.send(raw("DescribeCollection", ("grpc-encoding", "gzip"), body=body))
    assert await raw_client.until(frames.DATA, 1) is not None
    assert s.asked("DescribeCollection")[-1].message == b"\x12\x04docs"
    assert "grpc-encoding" not in s.asked("DescribeCollection")[-1].metadata


async def test_an_encoding_nobody_knows(scene):
    """UNIMPLEMENTED, with those that are known (gRPC's compression.md)."""
    s = await scene()
    raw_client = await s.raw()
    raw_client.send(raw("Search", ("grpc-encoding", "br"), body=b"\1\0\0\0\1x"))
    block = await raw_client.until(frames.HEADERS, 1)
    assert status(block)[0] == 12
    assert b"grpc-accept-encoding\x15identity,gzip,deflate" in block


# -- what is told


@pytest.mark.parametrize(
    "reply",
    [
        failure(1100, "the vector has 3 dimensions"),
        Reply(b"", 3, "50 % of \u20ac are wrong"),
        Reply(b"", 12, ""),
        Reply(b"\n\x06\x08\x01\x12\x02no"),
    ],
    ids=["milvus", "grpc", "unimplemented", "legacy"],
)
async def test_a_servers_no_is_its_own(scene, reply):
    """Byte for byte, code and text."""
    s = await scene()
    s.servers[0].script.script["Query"] = reply
    got = await s.client.ask("Query")
    assert (got.message, got.code, got.details) == (reply.message, reply.code, reply.details)


async def test_a_read_that_nobody_can_answer(scene):
    """UNAVAILABLE, which SDKs repeat; one line."""
    s = await scene()
    s.servers[0].script.script["Search"] = None
    await s.client.ask("Query")
    await s.servers[0].__aexit__()
    got = await s.client.ask("Search", timeout_s=3.0)
    assert got.code in (4, 14)
    assert "\n" not in got.details
    await s.servers[0].__aenter__()


async def test_a_write_that_may_have_happened(scene):
    """Milvus' own status in the body: an SDK would repeat it if it failed with a gRPC status."""
    s = await scene()
    s.servers[0].script.script["Insert"] = None
    _, reply = s.client.start("Insert", milvus_pb2.InsertRequest(collection_name="docs").SerializeToString())
    await until(lambda: s.servers[0].open)
    for connection in s.servers[0].connections:
        connection.abort()
    got = await reply
    assert got.code == 0
    told = milvus_pb2.MutationResult.FromString(got.message).status
    assert told.code != 0
    assert "Insert" in told.reason
    assert len(s.asked("Insert")) == 1


async def test_another_server_answers(scene):
    """The point of it all."""
    s = await scene(2)
    await s.servers[0].__aexit__()
    for _ in range(20):
        got = await s.client.ask("Search")
        assert isinstance(got, Reply)
        assert got.code == 0
    assert len(s.asked("Search", 1)) >= 20
    await s.servers[0].__aenter__()


async def test_cancelled_calls_are_cancelled_at_the_server(scene):
    s = await scene()
    s.servers[0].script.script["Search"] = None
    handles = [s.client.start("Search")[0] for _ in range(20)]
    await until(lambda: s.servers[0].open == 20)
    for handle in handles:
        handle.cancel()
    await until(lambda: s.servers[0].cancelled == 20)
    await until(lambda: s.server.calls == 0)


# -- who it is


def connect_reply(identifier):
    info = common_pb2.ServerInfo(build_tags="v2.4.1")
    return Reply(milvus_pb2.ConnectResponse(server_info=info, identifier=identifier).SerializeToString())


async def test_every_server_gets_its_own_number_back(scene):
    """Connect is answered once; who has not met the client gets no number."""
    s = await scene(2)
    for number, server in enumerate(s.servers):
        server.script.script["Connect"] = connect_reply(100 + number)
    introduced = await s.client.ask("Connect")
    ours = milvus_pb2.ConnectResponse.FromString(introduced.message).identifier
    assert ours not in (100, 101)
    (((_, theirs),),) = s.server._gateway.sessions.of(str(ours)).values()
    met = int(theirs) - 100
    fleet = s.server.core.fleet
    for out in (1 - met, met):
        name = [endpoint.name for endpoint in s.server.core.view().endpoints][out]
        fleet.drain(name)
        for _ in range(5):
            assert (await s.client.ask("Search", metadata=(("identifier", str(ours)),))).code == 0
        fleet.drain(name, drained=False)
    assert {r.metadata.get("identifier") for r in s.asked("Search", met)} == {theirs}
    assert {r.metadata.get("identifier") for r in s.asked("Search", 1 - met)} == {None}
    await s.client.ask("Search", metadata=(("identifier", "100"),))
    last = [r.metadata.get("identifier") for n in range(2) for r in s.asked("Search", n)]
    assert last.count("100") == (5 if met == 0 else 0), "a number that is not ours is nobody's"


async def test_a_clients_own_credentials(scene):
    """Passed on where the cluster has none of its own."""
    s = await scene()
    for who in ("a:b", "c:d"):
        await s.client.ask("Search", metadata=(("authorization", token(who)),))
        assert s.asked("Search")[-1].metadata["authorization"] == token(who)
    await s.client.ask("Search")
    assert "authorization" not in s.asked("Search")[-1].metadata


@asynccontextmanager
async def guarded():
    """A scene whose proxy asks for a token, in front of a cluster with credentials of its own."""
    async with ScriptedMilvus() as milvus:
        cluster = {"name": "c", "endpoints": [milvus.uri], "user": "root", "password": "hush-hush"}
        proxy = {"tokens": ["ann:secret-of-ann", "key-of-bob"]}
        async with serving({"cluster": [cluster], "proxy": proxy}) as (server, uri):
            client = Client(int(uri.rpartition(":")[2]))
            try:
                yield milvus, server, client
            finally:
                await client.channel.aclose()


@pytest.mark.parametrize(
    ("given", "admitted"),
    [
        (token("ann:secret-of-ann"), True),
        ("Bearer key-of-bob", True),
        (token("key-of-bob"), True),
        (token("ann:secret"), False),
        ("Bearer nothing", False),
        (token("root:hush-hush"), False),
        (None, False),
    ],
)
async def test_the_proxys_own_token(given, admitted):
    """Who is let in, and that the cluster gets its own credentials, not the client's."""
    async with guarded() as (milvus, server, client):
        metadata = () if given is None else (("authorization", given),)
        for path in ("Search", "/other.Service/Method"):
            got = await client.ask(path, metadata=metadata)
            assert (got.code == 16) is not admitted
        requests = [r for r in milvus.script.requests if r.name in ("Search", "Method")]
        assert len(requests) == (2 if admitted else 0)
        assert all(r.metadata["authorization"] == token("root:hush-hush") for r in requests)
        assert server.calls == 0


async def test_strangers_cost_nothing_upstream():
    """Refused before their request has come."""
    async with guarded() as (milvus, server, client):
        raw_client = await RawClient.open(int(client.channel.target.port))
        raw_client.send(frame(frames.HEADERS, 4, 1, head_of(SERVICE + "Insert")))
        assert status(await raw_client.until(frames.HEADERS, 1))[0] == 16
        assert await raw_client.until(frames.RST_STREAM, 1) == bytes(4)
        raw_client.send(frame(frames.DATA, 0, 1, bytes(60_000)))
        raw_client.close()
        await until(lambda: server.connections == 0)
        assert server.memory_bytes == 0
        assert not [r for r in milvus.script.requests if r.name == "Insert"]


async def test_one_clients_wrong_password_is_its_own_affair(scene):
    """The server is not taken from the others, nor its health doubted."""
    s = await scene()
    good = token("root:right")

    def search(request):
        return Reply(b"\n\0") if request.metadata.get("authorization") == good else REFUSED

    s.servers[0].script.script["Search"] = search
    for _ in range(10):
        got = await s.client.ask("Search", metadata=(("authorization", token("root:wrong")),))
        assert (got.code, got.details) == (REFUSED.code, REFUSED.details)
        got = await s.client.ask("Search", metadata=(("authorization", good),))
        assert got.code == 0
    (endpoint,) = s.server.core.view().endpoints
    assert endpoint.state == "up"


SECRETS = ("secret-of-ann", "key-of-bob", "hush-hush", token("ann:secret-of-ann"), token("root:hush-hush"), "s3cr3t")


async def test_secrets_are_said_nowhere(caplog):
    """Not in our logs at their finest, not in errors, events or representations."""
    caplog.set_level(logging.DEBUG, "haclient")
    events = []
    async with guarded() as (milvus, server, client):
        server.core.bus.subscribe(events.append)
        mine = ("authorization", token("ann:secret-of-ann"))
        told = [await client.ask("Search", metadata=(mine,))]
        told.append(await client.ask("Search", metadata=(("authorization", token("s3cr3t")),)))
        milvus.script.script["Search"] = REFUSED
        told.append(await client.ask("Search", metadata=(mine,)))
        milvus.script.script["Search"] = Reply(b"", 14, "gone")
        told.append(await client.ask("Search", metadata=(mine,), timeout_s=1.0))
        told.append(await client.ask("/other.Service/Method", metadata=(mine,)))
        (connection,) = server._connections
        shown = [caplog.text, *map(repr, told), *map(str, events), repr(server.core.view()), server.ready[1]]
        shown += [repr(server), repr(connection), repr(server._config), str(server._config)]
        for secret in SECRETS:
            assert not [text for text in shown if secret in text], secret
        assert "client-request-id" in repr(told[0])


# -- what is not known


async def test_unknown_methods_pass_through(scene):
    """Of Milvus' service, and of others."""
    s = await scene()
    for path in (SERVICE + "SomethingNew", "/other.Service/Method"):
        name = path.rpartition("/")[2]
        s.servers[0].script.script[name] = Reply(b"new", headers=(("x-h", "1"),), trailers=(("x-t", "2"),))
        got = await s.client.ask(path, b"what?", metadata=(("x-mine", "1"),))
        assert (got.message, got.headers, got.trailers) == (b"new", (("x-h", "1"),), (("x-t", "2"),))
        assert s.asked(name)[-1].message == b"what?"
        assert s.asked(name)[-1].metadata["x-mine"] == "1"
    s.servers[0].script.script["Method"] = Reply(b"", 5, "nothing here")
    got = await s.client.ask("/other.Service/Method")
    assert (got.code, got.details) == (5, "nothing here")


async def test_unknown_methods_that_fail_or_are_given_up(scene):
    """The server is told; the client gets a status."""
    s = await scene()
    s.servers[0].script.script["Method"] = None
    handle, _ = s.client.start("/other.Service/Method")
    await until(lambda: s.servers[0].open == 1)
    handle.cancel()
    await until(lambda: s.servers[0].cancelled == 1)
    _, reply = s.client.start("/other.Service/Method")
    await until(lambda: s.servers[0].open == 1)
    for connection in s.servers[0].connections:
        connection.abort()
    got = await reply
    assert not isinstance(got, WireError)
    assert got.code == 14
    await until(lambda: s.server.calls == 0)


async def test_a_stream_both_ways(scene):
    """As many messages as either side likes."""
    s = await scene()
    s.servers[0].script.script["Method"] = Reply(b"end")
    stream = s.client.channel.stream("/other.Service/Method", (("a", "b"),), None)
    await stream.send(b"one")
    await until(lambda: s.server.calls == 1)
    await stream.done_sending()
    assert [message async for message in stream] == [b"end"]
    assert stream.status.code == 0


async def test_every_method_of_the_table_is_answered(scene):
    """With an empty message, each once."""
    from haclient.milvus.methods import METHODS

    s = await scene()
    for path, known in METHODS.items():
        if not known.streaming and "grpc.health" not in path:
            got = await s.client.ask(path)
            assert isinstance(got, Reply), path
    assert grpc.OK == 0


async def test_a_path_that_is_none(scene):
    """It is refused before anything is done, and the connection goes on."""
    s = await scene()
    raw_client = await s.raw()
    raw_client.send(frame(frames.HEADERS, 5, 1, head_of("/caf\xe9")) + frame(frames.HEADERS, 5, 3, head_of("*")))
    assert await raw_client.until(frames.RST_STREAM, 1) == (1).to_bytes(4, "big")
    raw_client.send(frame(frames.HEADERS, 4, 5, head_of(SERVICE + "Search")) + frame(frames.DATA, 1, 5, bytes(5)))
    assert await raw_client.until(frames.DATA, 5) is not None
