"""TLS in front of the proxy and behind it: who is let in, who is not, and certificates that change while it serves."""

from __future__ import annotations

import asyncio
import datetime
import ssl
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme

from haclient.call import Reply
from haclient.config import Config
from haclient.errors import ConfigError
from haclient.proxy import server as server_module
from haclient.proxy.server import Server
from haclient.wire import Channel, Target, client_context, frames
from tests.servers.proxy import behind, serving
from tests.servers.scripted import RawClient, ScriptedMilvus, request

pytestmark = pytest.mark.both_loops

SEARCH = "/milvus.proto.milvus.MilvusService/Search"
NAME = "proxy.test"


class Files:
    """Certificates of one test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = trustme.CA()
        self.clients = trustme.CA()
        self.ca = str(folder / "ca.pem")
        self.client_ca = str(folder / "clients.pem")
        self.cert = str(folder / "proxy.pem")
        self.authority.cert_pem.write_to_path(self.ca)
        self.clients.cert_pem.write_to_path(self.client_ca)
        self.renew()

    def renew(self) -> int:
        """Write another certificate of the proxy; returns its serial number."""
        issued = self.authority.issue_cert(NAME)
        issued.private_key_and_cert_chain_pem.write_to_path(self.cert)
        return _serial(issued.cert_chain_pems[0].bytes())

    def client(self, authority: trustme.CA | None = None, **options: Any) -> str:
        """Issue a client's certificate; returns its file."""
        path = self.folder / f"client-{len(list(self.folder.iterdir()))}.pem"
        issued = (authority or self.clients).issue_cert("client.test", **options)
        issued.private_key_and_cert_chain_pem.write_to_path(path)
        return str(path)


def _serial(pem: bytes) -> int:
    from cryptography import x509

    return x509.load_pem_x509_certificate(pem).serial_number


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


@asynccontextmanager
async def proxy(tls: dict[str, str], **limits: Any) -> AsyncIterator[tuple[Server, int, ScriptedMilvus]]:
    async with ScriptedMilvus() as milvus:
        config = behind([milvus.uri], proxy={"tls": tls, "limits": limits})
        async with serving(config) as (server, uri):
            yield server, int(uri.rpartition(":")[2]), milvus
            await until(lambda: server.connections == 0)


async def until(true: Any) -> None:
    async with asyncio.timeout(20):
        while not true():
            await asyncio.sleep(0.005)


async def ask(channel: Channel) -> Any:
    reply = asyncio.get_running_loop().create_future()
    channel.start(SEARCH, b"", (), 10.0, reply.set_result)
    return await reply


async def served(port: int, **tls: Any) -> Any:
    """Ask once over a connection of its own; returns the reply or the error."""
    channel = Channel(Target(host="127.0.0.1", port=port, tls=client_context(**tls), server_name=NAME))
    try:
        return await ask(channel)
    finally:
        await channel.aclose()


async def test_tls_in_front(files: Files) -> None:
    """Served over TLS with HTTP/2 by ALPN; in plain text, not."""
    async with proxy({"cert_file": files.cert}) as (_, port, _milvus):
        assert isinstance(await served(port, ca_file=files.ca), Reply)
        client = await RawClient.open(port)
        client.send(request(1))
        assert await client.ended()
        assert client.frames == []
        client.close()


async def test_alpn(files: Files) -> None:
    """h2 is what is agreed on, with http/1.1 for plain HTTP."""
    async with proxy({"cert_file": files.cert}) as (_, port, _milvus):
        for offered, agreed in ((["h2"], "h2"), (["http/1.1", "h2"], "h2"), (["http/1.1"], "http/1.1"), (["x"], None)):
            context = ssl.create_default_context(cafile=files.ca)
            context.set_alpn_protocols(offered)
            client = await RawClient.connect(port, tls=context)
            assert client.writer.get_extra_info("ssl_object").selected_alpn_protocol() == agreed
            client.close()


async def test_old_protocols_are_refused(files: Files) -> None:
    """TLS 1.1 and below (RFC 8996)."""
    async with proxy({"cert_file": files.cert}) as (_, port, _milvus):
        context = ssl.create_default_context(cafile=files.ca)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            context.minimum_version = ssl.TLSVersion.TLSv1
            context.maximum_version = ssl.TLSVersion.TLSv1_1
        context.set_ciphers("ALL:@SECLEVEL=0")
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await RawClient.connect(port, tls=context)
        context = ssl.create_default_context(cafile=files.ca)
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        client = await RawClient.connect(port, tls=context)
        assert client.writer.get_extra_info("ssl_object").version() == "TLSv1.2"
        client.close()


async def test_mutual_tls(files: Files) -> None:
    """A certificate of the right authority, in date; nothing else."""
    async with proxy({"cert_file": files.cert, "client_ca_file": files.client_ca}) as (_, port, milvus):
        assert isinstance(await served(port, ca_file=files.ca, cert_file=files.client()), Reply)
        asked = len(milvus.script.calls())
        yesterday = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
        wrong: list[dict[str, str]] = [
            {},
            {"cert_file": files.client(files.authority)},
            {"cert_file": files.client(not_after=yesterday)},
        ]
        for tls in wrong:
            assert not isinstance(await served(port, ca_file=files.ca, **tls), Reply), tls
        assert len(milvus.script.calls()) == asked, "nothing of theirs has come through"
        assert isinstance(await served(port, ca_file=files.ca, cert_file=files.client()), Reply)


async def test_a_renewed_certificate(files: Files) -> None:
    """New connections see it at once; those that stand are not dropped, and calls under way end well."""
    async with proxy({"cert_file": files.cert}) as (server, port, milvus):
        channel = Channel(Target(host="127.0.0.1", port=port, tls=client_context(ca_file=files.ca), server_name=NAME))
        assert isinstance(await ask(channel), Reply)
        milvus.script.script["Search"] = None
        under_way = asyncio.create_task(ask(channel))
        await until(lambda: server.calls == 1)
        (before,) = server._connections
        serial = files.renew()
        server.reload(server._config)
        context = ssl.create_default_context(cafile=files.ca)

        async def seen() -> int:
            client = await RawClient.connect(port, tls=context)
            der = client.writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
            client.close()
            return _serial(ssl.DER_cert_to_PEM_cert(der).encode())

        async with asyncio.timeout(10):
            while await seen() != serial:
                pass
        assert [await seen() for _ in range(10)] == [serial] * 10
        del milvus.script.script["Search"]
        for connection in milvus.connections:
            connection.abort()  # the call under way is repeated, and answered now
        assert isinstance(await under_way, Reply)
        assert before in server._connections
        assert isinstance(await ask(channel), Reply)
        await channel.aclose()


async def test_tls_switched_on_while_it_serves(files: Files) -> None:
    """A connection in plain text that stands is served on; new ones need TLS."""
    async with proxy({}) as (server, port, _milvus):
        plain = Channel(Target(host="127.0.0.1", port=port))
        assert isinstance(await ask(plain), Reply)
        server.reload(_with_tls(server._config, files.cert))
        await until(lambda: server._relistening is not None and server._relistening.done())
        assert isinstance(await served(port, ca_file=files.ca), Reply)
        assert isinstance(await ask(plain), Reply)
        assert not isinstance(await ask_once(port), Reply)
        server.reload(_with_tls(server._config, ""))
        await until(lambda: server._relistening is not None and server._relistening.done())
        assert isinstance(await ask_once(port), Reply)
        await plain.aclose()


def _with_tls(config: Config, cert_file: str) -> Config:
    tls = config.proxy.tls.model_copy(update={"cert_file": cert_file})
    return config.model_copy(update={"proxy": config.proxy.model_copy(update={"tls": tls})})


async def ask_once(port: int) -> Any:
    channel = Channel(Target(host="127.0.0.1", port=port))
    try:
        return await ask(channel)
    finally:
        await channel.aclose()


async def test_a_certificate_that_cannot_be_read_changes_nothing(files: Files) -> None:
    """The reload fails and says which file; the old one serves on."""
    async with proxy({"cert_file": files.cert}) as (server, port, _milvus):
        before = server._config
        Path(files.cert).write_text("junk")
        with pytest.raises(ConfigError, match=r"proxy\.pem"):
            server.reload(_with_tls(before, files.cert))
        assert server._config is before
        assert isinstance(await served(port, ca_file=files.ca), Reply)
        files.renew()


async def test_reloading_while_it_drains(files: Files) -> None:
    """It does not begin to listen again."""
    async with ScriptedMilvus() as milvus:
        config = behind([milvus.uri], proxy={"tls": {"cert_file": files.cert}})
        async with serving(config) as (server, _uri):
            server.reload(server._config)
            assert await server.drain(1.0) == 0
            await until(lambda: server._relistening is not None and server._relistening.done())
            assert server._server is not None
            await until(lambda: not server._server.sockets)


async def test_handshakes_that_stall(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut in time, however far they went; others are served meanwhile."""
    monkeypatch.setattr(server_module, "_SWEEP_S", 0.05)
    async with proxy({"cert_file": files.cert}, request_s=0.5) as (_, port, _milvus):
        stalled = [await RawClient.connect(port) for _ in range(10)]
        for client in stalled[5:]:
            client.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
        assert isinstance(await served(port, ca_file=files.ca), Reply)
        for client in stalled:
            assert await client.ended()
            client.close()


async def test_a_client_that_says_nothing_behind_the_handshake(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has as long as for the handshake."""
    monkeypatch.setattr(server_module, "_SWEEP_S", 0.05)
    async with proxy({"cert_file": files.cert}, request_s=0.5) as (server, port, _milvus):
        client = await RawClient.connect(port, tls=ssl.create_default_context(cafile=files.ca))
        await until(lambda: server.connections == 1)
        assert await client.ended()
        client.close()


async def test_floods_over_tls(files: Files) -> None:
    """GOAWAY arrives through TLS, too."""
    async with proxy({"cert_file": files.cert}) as (server, port, _milvus):
        context = ssl.create_default_context(cafile=files.ca)
        context.set_alpn_protocols(["h2"])
        client = await RawClient.open(port, tls=context)
        client.send(frames.frame(frames.PING, 0, 0, bytes(8)) * 3_000)
        assert await client.goaway() == 11
        client.close()
        await until(lambda: server.connections == 0)


async def test_a_socket_that_nobody_reads_over_tls(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers wait in TLS' own buffers, too: the connection is cut, and what it held is free."""
    monkeypatch.setattr(server_module, "_SWEEP_S", 0.05)
    async with proxy({"cert_file": files.cert}, reply_s=0.5) as (server, port, milvus):
        milvus.script.script["Query"] = Reply(b"\n\0\x7a\x80\x80\x40" + bytes(1 << 20))
        context = ssl.create_default_context(cafile=files.ca)
        client = await RawClient.open(port, {4: 2**31 - 1}, tls=context, small=True)
        client.send(frames.window_update(0, 2**31 - 65_536) + b"".join([request(i) for i in range(1, 40, 2)]))
        await until(lambda: server.memory_bytes > 8 << 20)
        await until(lambda: server.connections == 0)
        assert server.memory_bytes == 0
        client.close()


# -- behind


def server_side(authority: trustme.CA, clients: trustme.CA | None = None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("db.test").configure_cert(context)
    context.set_alpn_protocols(["h2"])
    if clients is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        clients.configure_trust(context)
    return context


@pytest.mark.parametrize("certificate", [True, False])
async def test_mutual_tls_behind(files: Files, certificate: bool) -> None:
    """The proxy shows its own certificate to the servers; without it nothing can be answered."""
    async with ScriptedMilvus(server_side(files.authority, files.clients)) as milvus:
        cluster = {"name": "c", "endpoints": [milvus.uri], "ca_pem_path": files.ca, "server_name": "db.test"}
        if certificate:
            pem = files.client()
            cluster |= {"client_pem_path": pem, "client_key_path": pem}
        async with serving({"cluster": [cluster]}) as (server, uri):
            channel = Channel(Target(host="127.0.0.1", port=int(uri.rpartition(":")[2])))
            reply = asyncio.get_running_loop().create_future()
            channel.start(SEARCH, b"", (), 2.0, reply.set_result)
            got = await reply
            assert (got.code == 0) is certificate
            assert server.ready[0] is certificate
            await channel.aclose()


async def test_a_server_of_another_authority(files: Files) -> None:
    """It is not trusted, and gets nothing."""
    async with ScriptedMilvus(server_side(trustme.CA())) as milvus:
        cluster = {"name": "c", "endpoints": [milvus.uri], "ca_pem_path": files.ca, "server_name": "db.test"}
        async with serving({"cluster": [cluster]}) as (server, _uri):
            assert not server.ready[0]
            assert not milvus.script.requests


def test_this_machine_can_still_offer_the_old_protocols() -> None:
    """Otherwise the test that they are refused would show nothing."""
    context = ssl.create_default_context()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = ssl.TLSVersion.TLSv1
    assert ssl.HAS_TLSv1_1
