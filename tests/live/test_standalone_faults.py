"""Two real Milvus, each a cluster of its own, under a steady load of questions while one of them is ill.

Whatever happens to one of them, every question is answered and every answer is right.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from haclient import AsyncMilvusClient, Unavailable
from haclient.drill.servers.milvus import StandaloneServer
from haclient.drill.toxic import ToxicProxy
from haclient.events import AttemptFinished, CallFinished, EndpointChanged, FailedOver, HedgeStarted, ReadinessChanged
from tests.live.steady_load import (
    PATIENCE_S,
    Load,
    Watch,
    eventually,
    opened,
    searching,
    state,
    until_revived,
    until_serving,
    until_up,
)
from tests.servers import fill
from tests.servers.shared import ROWS, StandalonePair, ToxicFactory

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(400)]


@contextlib.asynccontextmanager
async def under_load(uris: list[str], **config: object) -> AsyncIterator[tuple[AsyncMilvusClient, Watch, Load]]:
    """A client and a load, past the first answers; at the end every question must have been answered rightly."""
    async with opened(uris, **config) as (client, watch):
        await until_up(client, *(uri.removeprefix("http://") for uri in uris))
        async with Load(searching(client)) as load:
            await load.more(40)
            yield client, watch, load
            await load.more(10)
        load.assert_all_right(but=load.excused)


async def release(server: StandaloneServer, load: Load) -> None:
    """Release the collection on one server, and excuse the empty answers that are Milvus' own.

    Until its release is through, which takes half a second or so, Milvus 2.3.5 answers every read with success and
    without a single row. Nobody can tell that from a collection without rows by this answer alone.
    """
    direct = fill.connect(server.uri)
    clock = asyncio.get_running_loop().time
    try:
        began = clock()
        await asyncio.to_thread(direct.release_collection, fill.COLLECTION)
        through = clock()
    finally:
        direct.close()
    await load.more(10)
    load.excused += [q for q in load.questions if q.got == [] and q.ended >= began and q.due <= through]


async def used_again(watch: Watch, load: Load, endpoint: str) -> None:
    """Wait until an endpoint is the first choice for a question of the load again.

    It may be slower than the other one for a while, so that a hedge wins; and one whose first answer was slow gets no
    further question for ten seconds, that is for 200 questions.
    """
    mark = watch.mark()
    for _ in range(40):
        await load.more(10)
        if watch.of(AttemptFinished, after_number=mark, endpoint=endpoint, method="Search", hedge=False):
            return
    raise AssertionError(f"{endpoint} gets no question though it is up")


class TestProcess:
    """What happens to the server's process."""

    async def test_killed_and_back(self, standalone_pair: StandalonePair) -> None:
        """kill -9: the other one answers; the dead one is used again once it is back."""
        server = standalone_pair.a
        async with under_load(standalone_pair.uris) as (client, watch, load):
            mark = watch.mark()
            await server.kill()
            change = await watch.until(EndpointChanged, endpoint=server.address, after="down")
            assert change.before == "up"
            assert "refused" in change.reason or "lost" in change.reason or "closed" in change.reason, change.reason
            await load.more()
            assert not watch.of(EndpointChanged, after_number=mark, endpoint=standalone_pair.b.address)
            await server.start()
            await watch.until(EndpointChanged, after_number=mark, endpoint=server.address, after="probation")
            await until_up(client, server.address)
            await used_again(watch, load, server.address)

    async def test_frozen_and_thawed(self, standalone_pair: StandalonePair) -> None:
        """SIGSTOP: connections stand and nothing answers; a ping finds out, and the other one answers."""
        server = standalone_pair.a
        async with under_load(standalone_pair.uris) as (client, watch, load):
            server.freeze()
            change = await watch.until(EndpointChanged, endpoint=server.address, after="down")
            assert "stalled" in change.reason or "slow" in change.reason or "probe" in change.reason, change.reason
            await load.more(40)
            server.thaw()
            await until_revived(client, server)
            await used_again(watch, load, server.address)
            assert watch.of(HedgeStarted), "the first questions to the frozen server were hedged"

    async def test_rolling_restart(self, standalone_pair: StandalonePair) -> None:
        """Both are restarted in turn by SIGTERM, as an upgrade does; nobody notices."""
        async with under_load(standalone_pair.uris) as (client, watch, load):
            for server in standalone_pair.both:
                await server.stop()
                await watch.until(EndpointChanged, endpoint=server.address, after="down")
                await load.more()
                await server.start()
                await until_up(client, server.address)
                await used_again(watch, load, server.address)

    async def test_killed_again_and_again(self, standalone_pair: StandalonePair) -> None:
        """The server dies as soon as it is up, twice; each death costs no question."""
        server = standalone_pair.b
        async with under_load(standalone_pair.uris) as (client, watch, load):
            for _ in range(2):
                mark = watch.mark()
                await server.restart()
                await watch.until(EndpointChanged, after_number=mark, endpoint=server.address, after="down")
                await watch.until(EndpointChanged, after_number=mark, endpoint=server.address, after="probation")
                await load.more(10)
            await until_up(client, server.address)

    async def test_both_down_and_back(self, standalone_pair: StandalonePair) -> None:
        """With both dead each question fails with an error that names both; all is well when they are back."""
        async with opened(standalone_pair.uris) as (client, watch):
            await until_up(client, *(server.address for server in standalone_pair.both))
            async with Load(searching(client, timeout=5)) as load:
                await load.more(20)
                load.assert_all_right()
                await asyncio.gather(*(server.kill() for server in standalone_pair.both))
                for server in standalone_pair.both:
                    await watch.until(EndpointChanged, endpoint=server.address, after="down")
                for question in await load.more(20):
                    assert isinstance(question.error, Unavailable), question
                    for server in standalone_pair.both:
                        assert server.address in str(question.error)
                await standalone_pair.start()
                await until_serving(client, *(server.address for server in standalone_pair.both))
                # A Milvus 2.3.5 that has just loaded a collection may deny it once more.
                async with asyncio.timeout(PATIENCE_S):
                    while not all(question.right for question in await load.more(20)):
                        pass
            assert not [question for question in load.questions if question.wrong]


class TestCollection:
    """What happens to a collection behind the client's back."""

    async def test_released_and_loaded(self, standalone_pair: StandalonePair) -> None:
        """Released on one: that one is avoided for this collection alone, and used again once it is loaded."""
        server = standalone_pair.a
        async with under_load(standalone_pair.uris) as (_, watch, load):
            mark = watch.mark()
            await release(server, load)
            change = await watch.until(ReadinessChanged, endpoint=server.address, ready=False)
            assert change.collection == fill.COLLECTION
            # The first signs may be empty answers, before Milvus says that the collection is not loaded.
            signs = ("not loaded", "not available", "found nothing", "no row was found")
            assert any(sign in change.reason for sign in signs), change.reason
            await load.more()
            await asyncio.to_thread(fill.wait_readable, server.uri, rows=ROWS, load=True)
            await watch.until(ReadinessChanged, after_number=mark, endpoint=server.address, ready=True)
            await used_again(watch, load, server.address)
            ill = watch.of(EndpointChanged, after_number=mark, after="down", reason=lambda r: not r.startswith("slow"))
            assert not ill, "the endpoint itself was well, but for being slow while it loads"

    async def test_released_and_loaded_by_us(self, standalone_pair: StandalonePair) -> None:
        """Released on one, with load_collections: the client loads it."""
        server = standalone_pair.b
        async with under_load(standalone_pair.uris, health={"load_collections": True}) as (_, watch, load):
            mark = watch.mark()
            await release(server, load)
            await watch.until(ReadinessChanged, endpoint=server.address, ready=False)
            await watch.until(ReadinessChanged, after_number=mark, endpoint=server.address, ready=True)
            await used_again(watch, load, server.address)

    async def test_dropped_and_filled_again(self, standalone_pair: StandalonePair) -> None:
        """Dropped on one: "not found" there is that server's fault, as the other one still has it."""
        server = standalone_pair.a
        async with under_load(standalone_pair.uris) as (_, watch, load):
            mark = watch.mark()
            direct = fill.connect(server.uri)
            try:
                await asyncio.to_thread(direct.drop_collection, fill.COLLECTION)
            finally:
                direct.close()
            change = await watch.until(ReadinessChanged, endpoint=server.address, ready=False)
            assert "not found" in change.reason
            await load.more()
            await asyncio.to_thread(fill.fill, [server.uri], rows=ROWS)
            await watch.until(ReadinessChanged, after_number=mark, endpoint=server.address, ready=True)
            await used_again(watch, load, server.address)
            assert not watch.of(EndpointChanged, after_number=mark, after="down")


class TestNetwork:
    """What happens on the way to the server."""

    async def faulty(self, pair: StandalonePair, toxic: ToxicFactory) -> tuple[ToxicProxy, list[str]]:
        proxy = await toxic(pair.a.port)
        return proxy, [proxy.uri, pair.b.uri]

    async def test_black_hole(self, standalone_pair: StandalonePair, toxic: ToxicFactory) -> None:
        """Packets vanish: connections stand, new ones are made, and nothing comes back."""
        proxy, uris = await self.faulty(standalone_pair, toxic)
        async with under_load(uris) as (client, watch, load):
            proxy.black_hole()
            change = await watch.until(EndpointChanged, endpoint=proxy.address, after="down")
            assert change.reason
            await load.more(60)
            await proxy.heal()
            await until_up(client, proxy.address)
            await used_again(watch, load, proxy.address)

    async def test_replies_lost(self, standalone_pair: StandalonePair, toxic: ToxicFactory) -> None:
        """Requests arrive and their replies do not."""
        proxy, uris = await self.faulty(standalone_pair, toxic)
        async with under_load(uris) as (client, watch, load):
            proxy.one_way("down")
            await watch.until(EndpointChanged, endpoint=proxy.address, after="down")
            await load.more(60)
            await proxy.heal()
            await until_up(client, proxy.address)

    async def test_partition_that_heals(self, standalone_pair: StandalonePair, toxic: ToxicFactory) -> None:
        """Everything is held back and arrives late: what is late changes nothing."""
        proxy, uris = await self.faulty(standalone_pair, toxic)
        async with under_load(uris) as (client, watch, load):
            proxy.partition()
            await watch.until(EndpointChanged, endpoint=proxy.address, after="down")
            await load.more(60)
            await proxy.heal()
            await until_up(client, proxy.address)

    async def test_resets(self, standalone_pair: StandalonePair, toxic: ToxicFactory) -> None:
        """Every connection is reset, several times; each is made anew."""
        proxy, uris = await self.faulty(standalone_pair, toxic)
        async with under_load(uris) as (client, watch, load):
            for _ in range(6):
                assert proxy.reset_all()
                await load.more(5)
                await eventually(lambda: proxy.connections > 0, "connected again")
            await until_up(client, proxy.address)
            await used_again(watch, load, proxy.address)

    async def test_refused(self, standalone_pair: StandalonePair, toxic: ToxicFactory) -> None:
        """Nobody listens any more, and then somebody does."""
        proxy, uris = await self.faulty(standalone_pair, toxic)
        async with under_load(uris) as (client, watch, load):
            proxy.refuse()
            proxy.reset_all()
            await watch.until(EndpointChanged, endpoint=proxy.address, after="down")
            await load.more(40)
            await proxy.accept()
            await until_up(client, proxy.address)

    async def test_flapping(self, standalone_pair: StandalonePair, toxic: ToxicFactory) -> None:
        """Gone, back, gone again: each time it must wait longer until it is tried again."""
        proxy, uris = await self.faulty(standalone_pair, toxic)
        async with under_load(uris) as (client, watch, load):
            node = next(n for n in client._running().fleet.nodes() if n.name == proxy.address)
            waits = []
            for _ in range(4):
                mark = watch.mark()
                proxy.refuse()
                proxy.reset_all()
                change = await watch.until(EndpointChanged, after_number=mark, endpoint=proxy.address, after="down")
                waits.append(node.gate.retry_at - change.at)
                await proxy.accept()
                await watch.until(EndpointChanged, after_number=mark, endpoint=proxy.address, after="probation")
                await load.more(5)
            assert waits == sorted(set(waits)), waits
            await until_up(client, proxy.address)

    async def test_brown_out(self, standalone_pair: StandalonePair, toxic: ToxicFactory) -> None:
        """Replies are cut in the middle, connection after connection, and the server looks well in between."""
        proxy, uris = await self.faulty(standalone_pair, toxic)
        async with under_load(uris) as (client, watch, load):
            proxy.cut_after(300)
            await watch.until(EndpointChanged, endpoint=proxy.address, after="down")
            await load.more(100)
            await proxy.heal()
            await until_up(client, proxy.address)
            await used_again(watch, load, proxy.address)

    async def test_drip(self, standalone_pair: StandalonePair, toxic: ToxicFactory) -> None:
        """Replies come a few bytes at a time."""
        proxy, uris = await self.faulty(standalone_pair, toxic)
        async with under_load(uris) as (client, _, load):
            proxy.drip(4, 0.05)
            await load.more(100)
            await proxy.heal()
            await until_up(client, proxy.address)

    async def test_slow(self, standalone_pair: StandalonePair, toxic: ToxicFactory) -> None:
        """One answers twenty times slower than it did: it is set aside, and taken back when it is quick again."""
        proxy, uris = await self.faulty(standalone_pair, toxic)
        async with under_load(uris) as (client, watch, load):
            usual = statistics.median(question.took_s for question in await load.more(20))
            added = max(20 * usual, 0.3)
            proxy.delay(added, added / 10)
            change = await watch.until(EndpointChanged, endpoint=proxy.address, after="down")
            assert "slow" in change.reason or "stalled" in change.reason, change.reason
            slow = await load.more(100)
            late = [question for question in slow if question.took_s >= added]
            assert len(late) <= 5, [str(question) for question in late]
            await proxy.heal()
            await until_up(client, proxy.address)
            await used_again(watch, load, proxy.address)

    async def test_idle_through_a_fault(self, standalone_pair: StandalonePair, toxic: ToxicFactory) -> None:
        """Nobody asks while one falls silent; the next question is answered all the same."""
        proxy, uris = await self.faulty(standalone_pair, toxic)
        async with opened(uris) as (client, watch):
            ask = searching(client)
            assert await ask(3) == [3]
            await until_up(client, proxy.address, standalone_pair.b.address)
            proxy.black_hole()
            await watch.until(EndpointChanged, endpoint=proxy.address, after="down", reason=lambda r: "probe" in r)
            assert await ask(4) == [4]
            assert watch.of(CallFinished)[-1].attempts == 1, "the silent one was not tried"


class TestStart:
    """Starting while one of two is no good."""

    async def test_one_dead_at_the_start(self, standalone_pair: StandalonePair) -> None:
        """One live server is enough to start; the other is used once it is there."""
        server = standalone_pair.a
        await server.kill()
        async with opened(standalone_pair.uris) as (client, watch), Load(searching(client)) as load:
            await load.more(20)
            assert state(client, server.address) == "down"
            await server.start()
            await until_up(client, server.address)
            await used_again(watch, load, server.address)
        load.assert_all_right()

    async def test_one_silent_at_the_start(self, standalone_pair: StandalonePair, toxic: ToxicFactory) -> None:
        """A server that accepts and says nothing holds nobody up."""
        proxy = await toxic(standalone_pair.a.port)
        proxy.black_hole()
        async with opened([proxy.uri, standalone_pair.b.uri]) as (client, watch), Load(searching(client)) as load:
            await load.more(20)
            await watch.until(EndpointChanged, endpoint=proxy.address, after="down")
            await proxy.heal()
            await until_up(client, proxy.address)
        load.assert_all_right()

    @pytest.mark.parametrize("kind", ["http", "echo", "mute"])
    async def test_something_else_listens(self, standalone_pair: StandalonePair, kind: str) -> None:
        """One URI is of no Milvus at all: a web server, one that sends back what it gets, one that hangs up."""

        async def other(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(ConnectionError):
                while data := await reader.read(4096):
                    if kind == "mute":
                        break
                    writer.write(data if kind == "echo" else b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
                    await writer.drain()
            writer.close()

        server = await asyncio.start_server(other, "127.0.0.1", 0)
        address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            async with (
                opened([f"http://{address}", standalone_pair.b.uri]) as (client, watch),
                Load(searching(client)) as load,
            ):
                change = await watch.until(EndpointChanged, endpoint=address, after="down")
                assert change.reason
                await load.more(60)
                assert state(client, address) == "down"
            load.assert_all_right()
        finally:
            server.close()


class TestAccess:
    """Servers that want credentials."""

    @pytest.fixture
    async def guarded(self, tmp_path: Path) -> AsyncIterator[StandaloneServer]:
        async with StandaloneServer(tmp_path, auth=True) as server:
            await asyncio.to_thread(fill.fill, [server.uri], rows=ROWS, token=server.token)
            yield server

    async def test_wrong_credentials(self, guarded: StandaloneServer) -> None:
        """Refused credentials are told at once, in words, and are no outage; the right ones work beside them."""
        from haclient import AccessDenied

        for token in ("root:wrong", ""):
            async with opened(guarded.uri, token=token) as (client, watch):
                for _ in range(6):
                    with pytest.raises(AccessDenied, match="credentials") as caught:
                        await client.search(fill.COLLECTION, data=[fill.vector(1)], limit=1)
                    assert "wrong" not in str(caught.value).replace("wrong or missing", ""), "the password is not shown"
                assert state(client, guarded.address) == "up"
                assert not watch.of(EndpointChanged)
                assert all(done.attempts == 1 for done in watch.of(CallFinished, method="Search"))
        async with opened(guarded.uri, token=guarded.token) as (client, _):
            assert await searching(client)(5) == [5]
        async with opened(guarded.uri, user="root", password="Milvus") as (client, _):
            assert await searching(client)(6) == [6]


async def test_failed_over_is_told(standalone_pair: StandalonePair) -> None:
    """A call answered by the second server says so in an event."""
    async with under_load(standalone_pair.uris) as (_, watch, load):
        await standalone_pair.a.kill()
        await load.more()
        await watch.until(EndpointChanged, endpoint=standalone_pair.a.address, after="down")
        # Before the kill, a hedge may have been answered in the other direction.
        for event in watch.of(FailedOver, from_endpoint=standalone_pair.a.address):
            assert event.to_endpoint == standalone_pair.b.address
