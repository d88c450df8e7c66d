"""Real sockets: TLS, names with several addresses, Unix sockets, peers that vanish."""

import asyncio
import socket
import ssl

import pytest
import trustme
from wire_peer import Call, H2Server

from haclient.errors import ConfigError, ConnectFailed
from haclient.wire import Channel, ChannelOptions, Target, client_context


class Served(asyncio.Protocol):
    """Answers every unary call with its own bytes, through `h2`."""

    def __init__(self, log):
        self.log = log
        self.server = H2Server()
        self.server.transport = self  # for `flush`
        self.protocol = self
        self.closing = False

    def connection_made(self, transport):
        self.socket = transport
        self.log.append(transport)
        self._send()

    def data_received(self, data):
        self.server.auto = False
        self.server.receive(data)
        for stream_id in self.server.ended:
            self.server.h2.send_headers(stream_id, [(":status", "200"), ("content-type", "application/grpc")])
            self.server.h2.send_data(stream_id, bytes(self.server.bodies[stream_id]))
            self.server.h2.send_headers(stream_id, [("grpc-status", "0")], end_stream=True)
        self.server.ended.clear()
        self._send()

    def _send(self):
        self.socket.write(self.server.h2.data_to_send())


@pytest.fixture
async def serve():
    """Start servers; stop them all."""
    servers, connections = [], []

    async def start(host="127.0.0.1", port=0, **options):
        loop = asyncio.get_running_loop()
        log = []
        connections.append(log)
        server = await loop.create_server(lambda: Served(log), host, port, **options)
        servers.append(server)
        return server.sockets[0].getsockname()[1], log

    start.servers = servers
    start.connections = connections
    yield start
    for server in servers:
        server.close()
    for log in connections:
        for transport in log:
            transport.abort()
    for server in servers:
        await server.wait_closed()
    await asyncio.sleep(0)


async def ask(target, **options):
    channel = Channel(target, ChannelOptions(**options))
    outcome = await Call(channel, b"hello")
    peers = channel.peers
    await channel.aclose()
    return outcome, peers


@pytest.fixture
def authority(tmp_path):
    ca = trustme.CA()
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    return ca, tmp_path


def server_context(ca, *, alpn=("h2",), clients=False):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("db.test").configure_cert(context)
    if alpn:
        context.set_alpn_protocols(list(alpn))
    if clients:
        context.verify_mode = ssl.CERT_REQUIRED
        ca.configure_trust(context)
    return context


async def test_tls(serve, authority):
    ca, folder = authority
    port, _ = await serve(ssl=server_context(ca))
    context = client_context(ca_file=folder / "ca.pem")
    outcome, peers = await ask(Target(host="127.0.0.1", port=port, tls=context, server_name="db.test"))
    assert outcome.message == b"hello"
    assert peers == (f"127.0.0.1:{port}",)
    outcome, _ = await ask(Target(host="127.0.0.1", port=port, tls=client_context(insecure=True)))
    assert outcome.message == b"hello"


async def test_an_unknown_authority(serve, authority):
    _ca, folder = authority
    port, _ = await serve(ssl=server_context(trustme.CA()))
    context = client_context(ca_file=folder / "ca.pem")
    outcome, _ = await ask(Target(host="127.0.0.1", port=port, tls=context, server_name="db.test"))
    assert isinstance(outcome, ConnectFailed)
    assert "not trusted" in str(outcome)


async def test_another_name(serve, authority):
    ca, folder = authority
    port, _ = await serve(ssl=server_context(ca))
    context = client_context(ca_file=folder / "ca.pem")
    outcome, _ = await ask(Target(host="127.0.0.1", port=port, tls=context, server_name="other.test"))
    assert isinstance(outcome, ConnectFailed)
    assert "other.test" in str(outcome)


async def test_no_alpn(serve, authority):
    ca, folder = authority
    port, _ = await serve(ssl=server_context(ca, alpn=()))
    context = client_context(ca_file=folder / "ca.pem")
    outcome, _ = await ask(Target(host="127.0.0.1", port=port, tls=context, server_name="db.test"))
    assert isinstance(outcome, ConnectFailed)
    assert "ALPN" in str(outcome)


async def test_client_certificates(serve, authority):
    ca, folder = authority
    port, _ = await serve(ssl=server_context(ca, clients=True))
    mine = ca.issue_cert("client.test")
    mine.private_key_and_cert_chain_pem.write_to_path(folder / "mine.pem")
    context = client_context(ca_file=folder / "ca.pem", cert_file=folder / "mine.pem")
    outcome, _ = await ask(Target(host="127.0.0.1", port=port, tls=context, server_name="db.test"))
    assert outcome.message == b"hello"
    context = client_context(ca_file=folder / "ca.pem")
    outcome, _ = await ask(Target(host="127.0.0.1", port=port, tls=context, server_name="db.test"))
    assert isinstance(outcome, ConnectFailed)


async def test_plain_text_where_tls_is_spoken(serve, authority):
    port, _ = await serve()
    outcome, _ = await ask(Target(host="127.0.0.1", port=port, tls=client_context(insecure=True)))
    assert isinstance(outcome, ConnectFailed)


@pytest.mark.parametrize("name", ["ca_file", "cert_file", "key_file"])
def test_unreadable_files_are_named(authority, name):
    ca, folder = authority
    ca.issue_cert("x").private_key_and_cert_chain_pem.write_to_path(folder / "mine.pem")
    arguments = {"ca_file": folder / "ca.pem", "cert_file": folder / "mine.pem", "key_file": folder / "mine.pem"}
    client_context(**arguments)
    with pytest.raises(ConfigError, match=f"{name}.*missing"):
        client_context(**{**arguments, name: folder / "missing"})
    (folder / "junk").write_bytes(b"junk")
    with pytest.raises(ConfigError, match="junk"):
        client_context(**{**arguments, name: folder / "junk"})


def test_contradicting_tls_arguments(authority):
    _, folder = authority
    with pytest.raises(ConfigError, match="exclude"):
        client_context(insecure=True, ca_file=folder / "ca.pem")
    with pytest.raises(ConfigError, match="without cert_file"):
        client_context(key_file="k")


def names(monkeypatch, addresses, port):
    """Make every name mean ``addresses``, read anew at each connect."""

    async def getaddrinfo(host, _port, **_options):
        assert host == "db.test"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)


async def test_every_address_is_tried_and_names_are_read_again(serve, monkeypatch):
    port, _ = await serve("127.0.0.2")
    addresses = ["127.0.0.1", "127.0.0.2"]
    names(monkeypatch, addresses, port)
    channel = Channel(Target(host="db.test", port=port))
    assert (await Call(channel, b"1")).message == b"1"
    assert channel.peers == (f"127.0.0.2:{port}",)
    addresses[:] = ["127.0.0.3"]
    other, _ = await serve("127.0.0.3", port)
    assert other == port
    lost = Call(channel, b"2")
    for transport in serve.connections[0]:
        transport.abort()
    outcome = await lost
    assert getattr(outcome, "message", b"2") == b"2"
    while channel.connected:
        await asyncio.sleep(0)
    assert (await Call(channel, b"3")).message == b"3"
    assert channel.peers == (f"127.0.0.3:{port}",)
    addresses.clear()
    await channel.aclose()


async def test_every_address_refuses(serve, monkeypatch):
    port, _ = await serve()
    names(monkeypatch, ["127.0.0.2", "127.0.0.3"], port)
    outcome, _ = await ask(Target(host="db.test", port=port))
    assert isinstance(outcome, ConnectFailed)
    assert "127.0.0.2" in str(outcome)
    assert "127.0.0.3" in str(outcome)


async def test_connections_spread_over_the_addresses(serve, monkeypatch):
    port, _ = await serve("127.0.0.1")
    await serve("127.0.0.2", port)
    names(monkeypatch, ["127.0.0.1", "127.0.0.2"], port)
    channel = Channel(Target(host="db.test", port=port), ChannelOptions(connections=2))
    while channel.connected < 2:
        await Call(channel)
        channel._next_sibling = 0.0
    assert set(channel.peers) == {f"127.0.0.1:{port}", f"127.0.0.2:{port}"}
    await channel.aclose()


async def test_a_name_that_does_not_exist(monkeypatch):
    async def getaddrinfo(*_args, **_options):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    outcome, _ = await ask(Target(host="nowhere.test"))
    assert isinstance(outcome, ConnectFailed)
    assert "not known" in str(outcome)


async def test_a_unix_socket(tmp_path):
    path = str(tmp_path / "s")
    log = []
    server = await asyncio.get_running_loop().create_unix_server(lambda: Served(log), path)
    outcome, _ = await ask(Target(unix_path=path))
    assert outcome.message == b"hello"
    server.close()
    for transport in log:
        transport.abort()
    await server.wait_closed()
    (tmp_path / "s").unlink(missing_ok=True)
    outcome, _ = await ask(Target(unix_path=path))
    assert isinstance(outcome, ConnectFailed)


async def test_closing_while_connecting():
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    channel = Channel(Target(host="127.0.0.1", port=listener.getsockname()[1]))
    call = Call(channel)
    await asyncio.sleep(0)
    await channel.aclose()
    assert not (await call).sent
    listener.close()
