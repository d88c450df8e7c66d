"""The launcher of milvus-lite and the toxic proxy, against the real thing and an echo server."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from haclient.drill.servers.lite import LiteServer, ServerNotStarted
from haclient.drill.servers.process import HOST, ReservedPort
from haclient.drill.toxic import HIGH_WATER_BYTES, ToxicProxy, Toxics
from tests.servers import fill
from tests.servers.shared import LiteFactory, ToxicFactory

#: How long something that must never happen is given to happen. No outcome depends on its length.
A_WHILE_S = 0.2


class TestLiteServer:
    async def test_kill_and_restart_keep_data(self, lite_server: LiteFactory) -> None:
        """A killed server comes back on its port, with its rows, released."""
        server = await lite_server()
        await asyncio.to_thread(fill.fill, [server.uri], rows=20)
        port, pid = server.port, server.pid
        await server.kill()
        assert not server.alive
        assert server.exit_code == -signal.SIGKILL
        with pytest.raises(ConnectionRefusedError):
            await server.check()
        await server.start()
        assert server.port == port
        assert server.pid != pid
        await asyncio.to_thread(fill.wait_readable, server.uri, rows=20, load=True)
        assert await asyncio.to_thread(fill.found, server.uri, [3, 17]) == [3, 17]

    async def test_freeze_and_stop(self, lite_server: LiteFactory) -> None:
        """A frozen server accepts and answers nothing; thawed it answers, and stops when asked even if frozen."""
        server = await lite_server()
        server.freeze()
        assert server.frozen
        _, writer = await asyncio.open_connection(HOST, server.port)
        writer.transport.abort()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(A_WHILE_S):
                await server.check()
        server.thaw()
        await server.check()
        server.freeze()
        await server.stop()
        assert server.exit_code == 0

    async def test_exit_ends_it(self, tmp_path: Path) -> None:
        """Leaving the context by an exception ends the process and gives the port back."""
        with suppress(ZeroDivisionError):
            async with LiteServer(tmp_path) as server:
                pid, port = server.pid, server.port
                raise ZeroDivisionError
        assert pid is not None
        assert not _exists(pid)
        ReservedPort(port).close()

    async def test_cancelled_start_leaves_nothing(self, tmp_path: Path) -> None:
        """Cancelling a start kills the process that was starting."""
        server = LiteServer(tmp_path)
        task = asyncio.create_task(server.__aenter__())
        await _until(lambda: server.alive)
        pid = server.pid
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert pid is not None
        assert not _exists(pid)

    async def test_dies_with_us(self, tmp_path: Path) -> None:
        """A server does not outlive the process that started it, even one that is killed."""
        script = (
            "import asyncio, sys; from haclient.drill.servers.lite import LiteServer\n"
            "async def main():\n"
            "    async with LiteServer(sys.argv[1]) as server:\n"
            "        print(server.pid, flush=True); await asyncio.Event().wait()\n"
            "asyncio.run(main())"
        )
        owner = await asyncio.create_subprocess_exec(
            sys.executable, "-c", script, str(tmp_path), stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
        )
        assert owner.stdout is not None
        pid = int(await owner.stdout.readline())
        owner.kill()
        await owner.wait()
        await _until(lambda: not _exists(pid))

    async def test_says_why_it_does_not_start(self, tmp_path: Path) -> None:
        """The error carries the end of the log."""
        (tmp_path / "data").write_text("a file where a folder should be")
        with pytest.raises(ServerNotStarted, match=r"ended with code 1(.|\n)*(FileExists|NotADirectory)"):
            await LiteServer(tmp_path).__aenter__()

    async def test_says_what_to_install(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without milvus-lite the error names the extra."""
        monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
        with pytest.raises(ServerNotStarted, match=r"haclient\[demo\]"):
            await LiteServer(tmp_path).__aenter__()


def test_reserved_port_refuses_and_can_be_served() -> None:
    """A reserved port refuses connections, is not given to others, and a server may listen on it."""
    import socket

    with ReservedPort() as reserved:
        with socket.socket() as client:
            assert client.connect_ex((HOST, reserved.number)) == errno.ECONNREFUSED
        with socket.socket() as other, pytest.raises(OSError):
            other.bind((HOST, reserved.number))
        with socket.create_server((HOST, reserved.number)), socket.create_connection((HOST, reserved.number)):
            pass


@asynccontextmanager
async def echo_server() -> AsyncIterator[Echo]:
    echo = Echo()
    server = await asyncio.get_running_loop().create_server(lambda: EchoProtocol(echo), HOST, 0)
    echo.port = server.sockets[0].getsockname()[1]
    try:
        yield echo
    finally:
        server.close()
        for protocol in list(echo.open):
            protocol.transport.abort()
        await _until(lambda: not echo.open)


class Echo:
    """What the echo server saw."""

    def __init__(self) -> None:
        self.port = 0
        self.received = b""
        self.open: set[EchoProtocol] = set()


class EchoProtocol(asyncio.Protocol):
    transport: asyncio.Transport

    def __init__(self, echo: Echo) -> None:
        self.echo = echo

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self.echo.open.add(self)

    def data_received(self, data: bytes) -> None:
        self.echo.received += data
        self.transport.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.echo.open.discard(self)


@pytest.fixture
async def echo() -> AsyncIterator[Echo]:
    async with echo_server() as server:
        yield server


@pytest.mark.both_loops
class TestToxicProxy:
    async def test_passes_bytes_and_half_close(self, toxic: ToxicFactory) -> None:
        """Without faults every byte arrives in order, a half-close passes, and nothing stays open."""

        async def on_client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"%d" % len(await reader.read()))  # answers after the client's end-of-stream
            writer.close()

        server = await asyncio.start_server(on_client, HOST, 0)
        proxy = await toxic(server.sockets[0].getsockname()[1])
        async with connected(proxy) as (reader, writer):
            writer.write(b"x" * 3_000_000)
            writer.write_eof()
            assert await reader.read() == b"3000000"
        await _until(lambda: proxy.connections == 0)
        assert proxy.bytes_up == 3_000_000
        server.close()
        await server.wait_closed()

    async def test_latency(self, toxic: ToxicFactory, echo: Echo) -> None:
        """Replies wait at least the latency; pipelined ones wait together; lifting it frees what waits."""
        proxy = await toxic(echo.port)
        loop = asyncio.get_running_loop()
        async with connected(proxy) as (reader, writer):
            proxy.delay(0.1, jitter_s=0.05)
            start = loop.time()
            for _ in range(20):
                writer.write(b"0123456789")
                await asyncio.sleep(0)
            await reader.readexactly(200)
            assert loop.time() - start >= 0.1 - 0.001
            proxy.delay(3600)
            writer.write(b"late")
            await _until(lambda: echo.received.endswith(b"late"))
            assert not await arrives(reader)
            await proxy.heal()
            assert await reader.readexactly(4) == b"late"

    async def test_bandwidth(self, toxic: ToxicFactory, echo: Echo) -> None:
        """A transfer takes at least its size over the rate."""
        proxy = await toxic(echo.port)
        proxy.limit(100_000)
        loop = asyncio.get_running_loop()
        async with connected(proxy) as (reader, writer):
            start = loop.time()
            writer.write(b"x" * 20_000)
            await reader.readexactly(20_000)
            assert loop.time() - start >= 0.18  # the last piece is not waited for

    async def test_slow_drip(self, toxic: ToxicFactory, echo: Echo) -> None:
        """Replies come a byte at a time, complete and in order."""
        proxy = await toxic(echo.port)
        proxy.drip(1, 0.005)
        async with connected(proxy) as (reader, writer):
            writer.write(b"drop by drop")
            pieces = [await reader.read(100) for _ in range(12)]
            assert b"".join(pieces) == b"drop by drop"
            assert set(map(len, pieces)) == {1}

    async def test_reset_all(self, toxic: ToxicFactory, echo: Echo) -> None:
        """Both sides of every connection see a reset; new connections work."""
        proxy = await toxic(echo.port)
        async with connected(proxy) as (reader, writer):
            await ping(reader, writer)
            assert proxy.reset_all() == 1
            with pytest.raises(ConnectionResetError):
                await reader.read()
            await _until(lambda: not echo.open)
        async with connected(proxy) as (reader, writer):
            await ping(reader, writer)

    async def test_cut_in_mid_reply(self, toxic: ToxicFactory, echo: Echo) -> None:
        """Exactly the first bytes of the reply arrive, then a reset; as many connections as asked for."""
        proxy = await toxic(echo.port)
        proxy.cut_after(1000, times=1)
        async with connected(proxy) as (reader, writer):
            writer.write(b"x" * 5000)
            with pytest.raises(ConnectionResetError):
                await read_all(reader, into := bytearray())
            assert len(into) == 1000
        async with connected(proxy) as (reader, writer):
            writer.write(b"x" * 5000)
            assert await reader.readexactly(5000)

    async def test_black_hole(self, toxic: ToxicFactory, echo: Echo) -> None:
        """Old and new connections accept and read, and nothing comes back, nor an end; healing resets them."""
        proxy = await toxic(echo.port)
        async with connected(proxy) as old, connected(proxy) as idle:
            await ping(*old)
            await ping(*idle)
            heard = echo.received
            proxy.black_hole()
            async with connected(proxy) as new:
                for reader, writer in (old, new):
                    writer.write(b"x" * 4 * HIGH_WATER_BYTES)
                    await writer.drain()
                    assert not await arrives(reader)
                assert echo.received == heard
                await proxy.heal()
                for reader, _ in (old, new):
                    with pytest.raises(ConnectionResetError):
                        await reader.read()
            await ping(*idle)  # it lost nothing

    async def test_one_way(self, toxic: ToxicFactory, echo: Echo) -> None:
        """With replies lost the target still acts on requests."""
        proxy = await toxic(echo.port)
        proxy.one_way("down")
        async with connected(proxy) as (reader, writer):
            writer.write(b"write me")
            await _until(lambda: echo.received == b"write me")
            assert not await arrives(reader)
        # The client has gone, and its farewell passed upwards.
        await _until(lambda: not echo.open)

    async def test_half_open(self, toxic: ToxicFactory, echo: Echo) -> None:
        """With requests lost the target never learns that the client has gone."""
        proxy = await toxic(echo.port)
        async with connected(proxy) as (reader, writer):
            await ping(reader, writer)
            proxy.one_way("up")
        await asyncio.sleep(A_WHILE_S)
        assert len(echo.open) == 1
        await proxy.heal()
        await _until(lambda: not echo.open and not proxy.connections)

    async def test_partition(self, toxic: ToxicFactory, echo: Echo) -> None:
        """What was sent during a partition arrives once it has healed, with bounded memory."""
        proxy = await toxic(echo.port)
        async with connected(proxy) as (reader, writer):
            proxy.partition()
            size = 40 * HIGH_WATER_BYTES
            writer.write(b"x" * size)
            assert not await arrives(reader)
            assert echo.received == b""
            assert proxy._links.copy().pop().up._held < size / 4
            await proxy.heal()
            assert len(await reader.readexactly(size)) == size

    async def test_refuse(self, toxic: ToxicFactory, echo: Echo) -> None:
        """New connections are refused, old ones live on, and the port comes back."""
        proxy = await toxic(echo.port)
        async with connected(proxy) as old:
            await ping(*old)
            proxy.refuse()
            await _until_refused(proxy.port)
            await ping(*old)
            await proxy.accept()
            async with connected(proxy) as new:
                await ping(*new)

    async def test_dead_target(self, toxic: ToxicFactory) -> None:
        """A target that refuses shows as a reset."""
        with ReservedPort() as nobody:
            proxy = await toxic(nobody.number)
            async with connected(proxy) as (reader, _):
                with pytest.raises(ConnectionResetError):
                    await reader.read()
        assert proxy.connections == 0

    async def test_many_connections_leak_nothing(self, echo: Echo) -> None:
        """Two hundred connections at once, through faults, leave no task and no file descriptor."""
        gc.collect()
        before = len(os.listdir("/proc/self/fd")), len(asyncio.all_tasks())

        async def client(number: int) -> None:
            async with connected(proxy) as (reader, writer):
                await ping(reader, writer, b"%d" % number * 500)
                if number % 4 == 0:
                    proxy.up = Toxics(jitter_s=0.01, slice_bytes=100)
                await ping(reader, writer, b"%d" % number * 500)
                if number % 4 == 1:
                    writer.write(b"and gone")
                elif number % 4 == 2:
                    writer.transport.abort()

        async with ToxicProxy(echo.port) as proxy:
            await asyncio.gather(*(client(number) for number in range(200)))
            assert proxy.accepted == 200
            async with connected(proxy) as (reader, writer):
                await ping(reader, writer)
                await proxy.aclose()
                with pytest.raises(ConnectionResetError):
                    await reader.read()
        await _until(lambda: not echo.open)
        await _until(lambda: (len(os.listdir("/proc/self/fd")), len(asyncio.all_tasks())) == before)


def test_toxics_refuse_nonsense() -> None:
    """A negative latency is an error at once."""
    with pytest.raises(ValueError, match="latency_s"):
        Toxics(latency_s=-1)


Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def connected(proxy: ToxicProxy) -> AsyncIterator[Streams]:
    reader, writer = await asyncio.open_connection(HOST, proxy.port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


async def ping(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, data: bytes = b"ping") -> None:
    writer.write(data)
    assert await reader.readexactly(len(data)) == data


async def read_all(reader: asyncio.StreamReader, into: bytearray) -> None:
    while data := await reader.read(65536):
        into += data


async def arrives(reader: asyncio.StreamReader) -> bool:
    """Whether anything, also the end of the stream, arrives within a while."""
    try:
        async with asyncio.timeout(A_WHILE_S):
            await reader.read(1)
    except TimeoutError:
        return False
    return True


async def _until(true: Callable[[], bool], timeout_s: float = 30) -> None:
    async with asyncio.timeout(timeout_s):
        while not true():
            await asyncio.sleep(0.005)


async def _until_refused(port: int) -> None:
    async with asyncio.timeout(30):
        while True:
            try:
                _, writer = await asyncio.open_connection(HOST, port)
            except ConnectionRefusedError:
                return
            writer.transport.abort()


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # An orphan that nobody reaps is dead, too.
    return Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0] != "Z"
