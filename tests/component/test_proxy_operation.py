"""`haclient proxy` as its operator sees it: real processes, real signals, clients of another make (grpc's C core).

Behind it stands a milvus-lite, and before that a TCP proxy that can make its answers late.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import signal
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import httpx
import psutil
import pytest
import trustme
from prometheus_client.parser import text_string_to_metric_families

from haclient.drill.servers.lite import LiteServer
from haclient.drill.servers.process import HOST
from haclient.drill.servers.proxy import ProxyServer
from haclient.drill.toxic import ToxicProxy, Toxics
from tests.conftest import run
from tests.servers.proxy import behind

pytestmark = [pytest.mark.xdist_group("proxy-operation")]

SHOW = "/milvus.proto.milvus.MilvusService/ShowCollections"
#: Long enough for this machine when others use it, too; a pass takes a fraction.
PATIENCE_S = 100.0


class Operated(ProxyServer):
    """A proxy with an admin API, and what an operator does to it."""

    def __init__(self, folder: Path, config: Mapping[str, Any], **options: Any) -> None:
        super().__init__(folder, config, **options)
        self.admin = f"{HOST}:{self.reserve()}"
        self._http = httpx.AsyncClient(base_url=f"http://{self.admin}", timeout=20.0, trust_env=False)

    @property
    def file(self) -> Path:
        return self.folder / f"{self.name}.toml"

    def command(self) -> Sequence[str]:
        return [*super().command()[:-1], self.admin]

    async def check(self) -> None:
        """It is up when it says that it can serve a read, and every worker serves."""
        assert (await self._http.get("/readyz")).status_code == 200
        fleet = await self.fleet()
        assert [worker["state"] for worker in fleet["workers"]] == ["serving"] * self.config["proxy"]["workers"]

    async def fleet(self) -> dict[str, Any]:
        return (await self._http.get("/api/fleet")).raise_for_status().json()

    async def readiness(self) -> int:
        return (await self._http.get("/readyz")).status_code

    async def workers(self) -> dict[int, int]:
        """Process ids of the workers that serve, by slot."""
        return {w["slot"]: w["pid"] for w in (await self.fleet())["workers"] if w["state"] == "serving"}

    async def counts(self) -> dict[tuple[str, ...], float]:
        """Every sample that counts."""
        text = (await self._http.get("/metrics")).raise_for_status().text
        return {
            (sample.name, *sorted(map(str, sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(text)
            if family.type in ("counter", "histogram")
            for sample in family.samples
        }

    def tell(self, number: signal.Signals) -> None:
        """Send a signal to the supervisor alone."""
        assert self.pid is not None
        os.kill(self.pid, number)

    async def until(self, true: Callable[[], Coroutine[Any, Any, bool]]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not await true():
                await asyncio.sleep(0.02)

    async def event(self, kind: str) -> dict[str, Any]:
        """Wait for the first event of a kind."""
        async with asyncio.timeout(PATIENCE_S), self._http.stream("GET", "/api/events", timeout=None) as lines:
            async for line in lines.aiter_lines():
                if line.startswith("data: ") and f'"kind":"{kind}"' in line.replace(" ", ""):
                    return json.loads(line[6:])
        raise AssertionError(f"no {kind}")

    async def ended(self) -> int:
        """Wait until it has ended by itself, and return its exit code."""
        async with asyncio.timeout(PATIENCE_S):
            while self.alive:
                await asyncio.sleep(0.02)
        assert self.exit_code is not None
        return self.exit_code

    async def close(self) -> None:
        await self._http.aclose()
        await super().close()


@pytest.fixture(scope="module")
def milvus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiteServer]:
    server = LiteServer(tmp_path_factory.mktemp("proxy_operation"))
    try:
        run(server.start())
        yield server
    finally:
        run(server.close())


@pytest.fixture
async def upstream(milvus: LiteServer) -> AsyncIterator[ToxicProxy]:
    async with ToxicProxy(milvus.port) as toxic:
        yield toxic


Start = Callable[..., Coroutine[Any, Any, Operated]]


@pytest.fixture
async def start(tmp_path: Path, upstream: ToxicProxy) -> AsyncIterator[Start]:
    """``await start()`` starts one more proxy; all end with the test. Arguments are settings of ``[proxy]``."""
    started: list[Operated] = []

    async def make(*, beside: ProxyServer | None = None, **settings: Any) -> Operated:
        settings = {"workers": 2, "grace_s": 20.0, "log": "json", **settings}
        config = behind([upstream.uri], proxy=settings, hedge={"enabled": False}, health={"timeout_s": 5.0})
        proxy = Operated(tmp_path, config, name=f"proxy{len(started)}")
        if beside is not None:
            proxy._port = beside.port
        started.append(proxy)
        await proxy.start()
        return proxy

    yield make
    for proxy in started:
        await proxy.close()


@contextlib.asynccontextmanager
async def connected(proxy: ProxyServer, count: int = 1) -> AsyncIterator[list[grpc.aio.Channel]]:
    """Channels of grpc's C core, each with a connection of its own."""
    own = [("grpc.use_local_subchannel_pool", 1), ("grpc.initial_reconnect_backoff_ms", 50)]
    channels = [grpc.aio.insecure_channel(proxy.address, options=own) for _ in range(count)]
    try:
        yield channels
    finally:
        for channel in channels:
            await channel.close()


async def ask(channel: grpc.aio.Channel) -> bytes:
    """Ask for something that milvus-lite really answers; without a connection, wait for one."""
    return await channel.unary_unary(SHOW)(b"", timeout=PATIENCE_S, wait_for_ready=True)


class Load:
    """Clients that ask one question after the other, each on a connection of its own, and leave others time to work.

    Attributes:
        answered: How many got an answer.
        failed: What the others got.
    """

    def __init__(self) -> None:
        self.answered = 0
        self.failed: list[grpc.aio.AioRpcError] = []
        self._over = False

    async def _client(self, channel: grpc.aio.Channel) -> None:
        while not self._over:
            try:
                await ask(channel)
            except grpc.aio.AioRpcError as error:
                self.failed.append(error)
            else:
                self.answered += 1
            await asyncio.sleep(0.02)

    @contextlib.asynccontextmanager
    async def on(self, proxy: ProxyServer, clients: int = 4) -> AsyncIterator[Load]:
        async with connected(proxy, clients) as channels:
            tasks = [asyncio.create_task(self._client(channel)) for channel in channels]
            await self.more(clients)
            try:
                yield self
            finally:
                self._over = True
                await asyncio.gather(*tasks)

    async def more(self, count: int = 40) -> None:
        """Wait until so many more have been answered."""
        wanted = self.answered + count
        async with asyncio.timeout(PATIENCE_S):
            while self.answered < wanted:
                await asyncio.sleep(0.005)


# --- stopping ------------------------------------------------------------------------------------------------


async def test_sigterm_finishes_calls_and_tells_everyone_first(start: Start, upstream: ToxicProxy) -> None:
    """Not ready at once, calls under way are answered, nobody new is let in, exit code 0."""
    proxy = await start()
    async with connected(proxy, 8) as channels:
        await asyncio.gather(*map(ask, channels))
        upstream.down = Toxics(stall=True)
        under_way = [asyncio.create_task(ask(channel)) for channel in channels]
        await proxy.until(lambda: calls_are(proxy, 8))
        proxy.tell(signal.SIGTERM)
        await proxy.until(lambda: not_ready(proxy))
        await proxy.until(lambda: refuses(proxy))
        assert not any(task.done() for task in under_way)
        await upstream.heal()
        assert all(isinstance(answer, bytes) for answer in await asyncio.gather(*under_way))
        assert await proxy.ended() == 0


async def calls_are(proxy: Operated, count: int) -> bool:
    return sum(worker["calls"] for worker in (await proxy.fleet())["workers"]) == count


async def not_ready(proxy: Operated) -> bool:
    return await proxy.readiness() == 503


async def refuses(proxy: Operated) -> bool:
    try:
        socket.create_connection((HOST, proxy.port), timeout=5).close()
    except ConnectionRefusedError:
        return True
    return False


async def test_a_second_proxy_takes_over_and_no_call_is_lost(start: Start) -> None:
    """The same port, another admin address; then SIGTERM to the first, under load."""
    first = await start()
    async with Load().on(first) as load:
        second = await start(beside=first)
        await load.more()
        first.tell(signal.SIGTERM)
        assert await first.ended() == 0
        await load.more()
    assert load.failed == []
    assert (await second.fleet())["totals"]["ok"] > 0


async def test_calls_that_take_too_long_are_cut_off(start: Start, upstream: ToxicProxy) -> None:
    proxy = await start(grace_s=0.2, workers=1)
    async with connected(proxy) as (channel,):
        await ask(channel)
        upstream.delay(30.0)
        call = asyncio.create_task(ask(channel))
        await proxy.until(lambda: calls_are(proxy, 1))
        proxy.tell(signal.SIGTERM)
        assert await proxy.ended() == 1
        with pytest.raises(grpc.aio.AioRpcError):
            await call


async def test_a_second_interrupt_ends_it_at_once(start: Start, upstream: ToxicProxy) -> None:
    proxy = await start(workers=1)
    async with connected(proxy) as (channel,):
        await ask(channel)
        upstream.delay(30.0)
        call = asyncio.create_task(ask(channel))
        await proxy.until(lambda: calls_are(proxy, 1))
        proxy.tell(signal.SIGINT)
        await proxy.until(lambda: not_ready(proxy))
        proxy.tell(signal.SIGINT)
        assert await proxy.ended() == 1
        with pytest.raises(grpc.aio.AioRpcError):
            await call


async def test_workers_end_by_themselves_when_the_supervisor_is_killed(start: Start, upstream: ToxicProxy) -> None:
    """They finish the calls under way first."""
    proxy = await start()
    workers = [psutil.Process(pid) for pid in (await proxy.workers()).values()]
    async with connected(proxy, 4) as channels:
        await asyncio.gather(*map(ask, channels))
        upstream.delay(1.0)
        under_way = [asyncio.create_task(ask(channel)) for channel in channels]
        await proxy.until(lambda: calls_are(proxy, 4))
        proxy.tell(signal.SIGKILL)
        assert all(isinstance(answer, bytes) for answer in await asyncio.gather(*under_way))
    _, left = await asyncio.to_thread(psutil.wait_procs, workers, PATIENCE_S)
    assert left == []


# --- replacing -----------------------------------------------------------------------------------------------


async def test_a_rolling_restart_loses_no_call_and_no_count(start: Start) -> None:
    proxy = await start()
    before = await proxy.workers()
    async with Load().on(proxy, clients=6) as load:
        counted = await proxy.counts()
        await load.more()
        proxy.tell(signal.SIGUSR2)
        assert (await proxy.event("RollingRestart"))["level"] == "info"
        await load.more()
    assert load.failed == []
    after = await proxy.workers()
    assert after.keys() == before.keys()
    assert not set(after.values()) & set(before.values())
    later = await proxy.counts()
    assert not {key: (value, later.get(key)) for key, value in counted.items() if later.get(key, 0.0) < value}
    assert later["haclient_proxy_worker_restarts_total",] == 0
    assert later["haclient_calls_total", "('method', 'ShowCollections')", "('outcome', 'ok')"] == load.answered


async def test_a_killed_worker_is_replaced_and_its_counts_stay(start: Start) -> None:
    """Calls that it had are lost; nothing else is, for connections to its socket wait for its successor."""
    proxy = await start()
    before = await proxy.workers()
    async with Load().on(proxy, clients=6) as load:
        await load.more(100)
        counted = await proxy.counts()
        os.kill(before[0], signal.SIGKILL)
        assert "SIGKILL" in (await proxy.event("WorkerEnded"))["text"]
        await proxy.until(lambda: complete(proxy, before))
        await load.more(100)
    assert len(load.failed) <= 6, "one for each of its connections at most"
    assert {error.code() for error in load.failed} <= {grpc.StatusCode.UNAVAILABLE}
    after = await proxy.workers()
    assert after[1] == before[1]
    later = await proxy.counts()
    assert not {key: (value, later.get(key)) for key, value in counted.items() if later.get(key, 0.0) < value}
    assert later["haclient_proxy_worker_restarts_total",] == 1


async def complete(proxy: Operated, before: dict[int, int]) -> bool:
    now = await proxy.workers()
    return now.keys() == before.keys() and now != before


# --- the application's side ----------------------------------------------------------------------------------


async def test_an_application_with_two_proxies_does_not_notice_that_one_is_killed(start: Start) -> None:
    """The example, as it stands: one proxy is killed with its workers, and no call fails."""
    first, second = await start(workers=1), await start(workers=1)
    example = Path(__file__).resolve().parents[2] / "examples" / "proxy" / "app_with_two_proxies.py"
    app = await asyncio.create_subprocess_exec(
        *(sys.executable, str(example), first.uri, second.uri, "--seconds", "5"), stdout=asyncio.subprocess.PIPE
    )
    try:
        assert app.stdout is not None
        async with asyncio.timeout(PATIENCE_S):
            assert b" answered, 0 failed; proxies: " in await app.stdout.readline()
            workers = (await first.workers()).values()
            first.tell(signal.SIGKILL)
            for pid in workers:
                os.kill(pid, signal.SIGKILL)
            output, _ = await app.communicate()
        assert output.splitlines()[-1].endswith(b" answered, 0 failed")
        assert app.returncode == 0
    finally:
        if app.returncode is None:
            app.kill()
            await app.communicate()


# --- reloading -----------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def unbroken(channel: grpc.aio.Channel) -> AsyncIterator[None]:
    """The channel's connection stands the whole time."""
    await ask(channel)
    assert channel.get_state() == grpc.ChannelConnectivity.READY
    changed = asyncio.create_task(channel.wait_for_state_change(grpc.ChannelConnectivity.READY))
    yield
    await ask(channel)
    assert not changed.done(), "the connection was dropped"
    changed.cancel()


@pytest.mark.parametrize("how", ["file", "SIGHUP"])
async def test_a_reload_drops_no_connection(start: Start, milvus: LiteServer, how: str) -> None:
    """By a change of the file alone, and by a signal alone (what is read again has not changed then)."""
    proxy = await start()
    async with connected(proxy) as (channel,), unbroken(channel):
        if how == "file":
            text = proxy.file.read_text()
            new = proxy.file.with_suffix(".new")
            new.write_text(text.replace('endpoints = ["', f'endpoints = ["{milvus.uri}", "'))
            new.rename(proxy.file)
        else:
            proxy.tell(signal.SIGHUP)
        await proxy.event("ConfigReloaded")
        assert (await proxy.fleet())["endpoints"] == (2 if how == "file" else 1)


async def test_a_wrong_file_changes_nothing(start: Start) -> None:
    proxy = await start(workers=1)
    async with connected(proxy) as (channel,), unbroken(channel):
        proxy.file.write_text(proxy.file.read_text() + "\n[proxy]\nnonsense")
        event = await proxy.event("ConfigRejected")
        assert "is not TOML" in event["text"]
        assert await proxy.readiness() == 200


async def test_a_new_certificate_is_shown_to_new_connections(start: Start, tmp_path: Path) -> None:
    """Only a TLS file changes; who is connected stays so."""
    ca = trustme.CA()
    cert = tmp_path / "cert.pem"

    def issue() -> None:
        new = tmp_path / "new.pem"
        ca.issue_cert(HOST).private_key_and_cert_chain_pem.write_to_path(new)
        new.rename(cert)

    async def shown() -> bytes | None:
        context = context_of(ca)
        _, writer = await asyncio.open_connection(HOST, proxy.port, ssl=context)
        try:
            return writer.get_extra_info("ssl_object").getpeercert(True)
        finally:
            writer.transport.abort()

    issue()
    proxy = await start(workers=1, tls={"cert_file": str(cert)})
    credentials = grpc.ssl_channel_credentials(ca.cert_pem.bytes())
    async with grpc.aio.secure_channel(proxy.address, credentials) as channel, unbroken(channel):
        before = await shown()
        issue()
        await proxy.event("ConfigReloaded")

        async def changed() -> bool:
            return await shown() != before

        await proxy.until(changed)


def context_of(ca: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    ca.configure_trust(context)
    context.set_alpn_protocols(["h2"])
    return context


# --- starting ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("taken", ["listen", "admin"])
async def test_a_strangers_port_is_a_clear_error(tmp_path: Path, taken: str) -> None:
    with socket.create_server((HOST, 0)) as stranger:
        proxy = Operated(tmp_path, behind(["http://127.0.0.1:1"], proxy={"workers": 1}))
        try:
            address = f"{HOST}:{stranger.getsockname()[1]}"
            command = list(proxy.command())
            command[command.index(f"--{taken}") + 1] = address
            process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
            _, errors = await process.communicate()
            assert process.returncode == 2
            line = (
                f'haclient: proxy.{taken}: "{address}" is taken by another program; end that, or write another address'
            )
            assert line in errors.decode().splitlines()
        finally:
            await proxy.close()


async def test_secrets_are_in_no_command_line_no_environment_and_no_log(start: Start) -> None:
    """A client that presents a token is let in, one that does not is not; the token is seen nowhere."""
    proxy = await start(workers=1, tokens=["very-secret"], log_level="debug")
    async with connected(proxy) as (channel,):
        metadata = (("authorization", base64.b64encode(b"very-secret").decode()),)
        assert await channel.unary_unary(SHOW)(b"", metadata=metadata, timeout=30.0)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await ask(channel)
        assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED
    (pid,) = (await proxy.workers()).values()
    for process in (psutil.Process(pid), psutil.Process(proxy.pid)):
        assert "very-secret" not in " ".join([*process.cmdline(), *process.environ().values()])
    metrics = str(await proxy.counts()) + str(await proxy.fleet())
    assert "very-secret" not in proxy.log.read_text() + metrics
