"""The log in a real etcd: what is large, what is lost on the way, what dies, and who may come in."""

import asyncio
import base64
import contextlib
import itertools
import json
import logging
import os
import random
import sys
import time
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
import trustme

from haclient.config.replication import Replication
from haclient.drill.servers import etcd
from haclient.drill.servers.etcd import EtcdCluster, EtcdServer, EtcdTLS
from haclient.drill.servers.milvus import StandaloneServer
from haclient.errors import ConfigError, LogCorrupt, LogFull, LogTrimmed, LogUnavailable
from haclient.replication.etcd import EtcdLog, client, layout, tidy
from haclient.replication.log import Bounds, Mutation

pytestmark = [
    pytest.mark.skipif(not etcd.available(), reason="needs etcd (apt-get install etcd-server)"),
    pytest.mark.xdist_group("etcd-log"),
]
KIB, MIB = 1 << 10, 1 << 20
WRITER = Path(__file__).with_name("etcd_writer.py")
SECRET = "kept-to-itself"

_numbers = itertools.count(1)


def mutation(number=None, size=10):
    """A write with an operation of its own, or a given one."""
    number = next(_numbers) if number is None else number
    return Mutation(number.to_bytes(16, "big"), "Upsert", ("", "docs"), random.Random(number).randbytes(size))


@asynccontextmanager
async def opened(log, **settings):
    """One more process' handle of a log."""
    # Below half of etcd's quota, so that nothing is said about it.
    handle = EtcdLog(Replication(**{"log": log, "max_bytes": 1 << 30, **settings}), time.time)
    await handle.open()
    try:
        yield handle
    finally:
        await handle.aclose()


@pytest.fixture
async def server(tmp_path):
    """One etcd."""
    async with EtcdServer(tmp_path / "etcd") as server:
        yield server


@pytest.fixture
async def log(server):
    """One handle of a log in it."""
    async with opened(f"etcd://{server.address}") as log:
        yield log


@pytest.fixture
async def cluster(tmp_path):
    """Three of them."""
    async with EtcdCluster(tmp_path) as cluster:
        yield cluster


@pytest.fixture
async def behind(server, toxic):
    """A log that is reached through a proxy that can misbehave, and the proxy."""
    proxy = await toxic(server.port)
    async with opened(f"etcd://{proxy.address}") as log:
        yield log, proxy


@pytest.fixture
def patience(monkeypatch):
    """What does not come is given up soon."""
    monkeypatch.setattr(client, "_PATIENCE_S", 1.0)


async def stored(server, below="/haclient/"):
    """The names of the keys in an etcd."""
    reply = await server.call("/v3/kv/range", {"key": "AA==", "range_end": "AA==", "keys_only": True})
    keys = [base64.b64decode(one["key"]).decode() for one in reply.get("kvs", ())]
    return [key.removeprefix(below) for key in keys if key.startswith(below)]


async def set_key(server, key, value=b"x"):
    """Write something behind the log's back."""
    fields = {"key": base64.b64encode(key.encode()).decode(), "value": base64.b64encode(value).decode()}
    await server.call("/v3/kv/put", fields)


async def soon(condition, timeout_s=30.0):
    """Ask again until the answer is something."""
    async with asyncio.timeout(timeout_s):
        while not (found := await condition()):
            await asyncio.sleep(0.01)
        return found


# --- large and many -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size",
    [0, KIB, 900 * KIB, layout.CHUNK, layout.CHUNK + 1, 5 * MIB, pytest.param(40 * MIB, marks=pytest.mark.slow)],
)
async def test_an_entry_of_any_size(log, size):
    """It is read as it was written, between its neighbours, and is in the log once."""
    before, one, after = mutation(), mutation(size=size), mutation()
    assert [await log.append([each]) for each in (before, one, after)] == [[1], [2], [3]]
    assert await log.append([one]) == [2]
    assert [entry.mutation for entry in await log.read(0, max_bytes=64 * MIB)] == [before, one, after]
    assert await log.bounds() == Bounds(1, 3, 20 + size)


async def test_an_append_of_more_than_a_transaction_takes(server, log):
    """All of it or nothing, in order, without what is there already."""
    some = [mutation(size=KIB) for _ in range(3)]
    await log.append(some)
    many = [mutation(size=3 * KIB) for _ in range(700)]
    assert await log.append([*many[:350], some[1], *many[350:], many[0]]) == [*range(4, 354), 2, *range(354, 704), 4]
    entries = []
    while more := await log.read(len(entries), limit=90, max_bytes=MIB):
        entries += more
    assert [entry.mutation for entry in entries] == some + many
    async with opened(f"etcd://{server.address}", max_entries=800) as bounded:
        with pytest.raises(LogFull, match="703 of at most 800 entries"):
            await bounded.append([mutation() for _ in range(300)])
    assert await log.append([mutation()]) == [704]


async def test_more_than_any_transaction_can_name(log):
    """Is refused at once, with what to do."""
    with pytest.raises(ValueError, match="append fewer at once"):
        await log.append([mutation(size=0) for _ in range(20_000)])
    assert (await log.bounds()).head == 0


async def test_appends_that_wait_go_together(server, log):
    """A hundred callers at once cost a few transactions, and each gets its own seqs."""
    revision = await log.changed(0)
    groups = [[mutation() for _ in range(1 + n % 3)] for n in range(100)]
    seqs = await asyncio.gather(*map(log.append, groups))
    assert sorted(itertools.chain(*seqs)) == list(range(1, 200))
    assert await log.changed(revision) - revision < 10
    there = {entry.seq: entry.mutation for entry in await log.read(0)}
    assert [[there[seq] for seq in some] for some in seqs] == groups


async def test_two_writers_race(server):
    """Whoever loses a transaction tries again; the same operations from both are there once."""
    async with opened(f"etcd://{server.address}") as a, opened(f"etcd://{server.address}") as b:
        shared = [mutation() for _ in range(50)]
        own = [[mutation() for _ in range(100)] for _ in range(2)]
        work = [[*own[0], *shared], [*shared, *own[1]]]
        got = await asyncio.gather(*(log.append([one]) for log, some in zip((a, b), work, strict=True) for one in some))
        seqs = {one.operation: seq for one, (seq,) in zip(work[0], got[:150], strict=True)}
        assert seqs | {one.operation: seq for one, (seq,) in zip(work[1], got[150:], strict=True)} == {
            entry.mutation.operation: entry.seq for entry in await a.read(0)
        }
        assert (await a.bounds()).head == 250


async def test_a_large_append_races_with_small_ones(server):
    """It waits for no quiet moment and stops nobody."""
    async with opened(f"etcd://{server.address}") as a, opened(f"etcd://{server.address}") as b:
        large = mutation(size=2 * MIB)
        small = [mutation() for _ in range(30)]

        async def write():
            for one in small:
                await b.append([one])

        twice, _, again = await asyncio.gather(a.append([large]), write(), b.append([large]))
        assert twice == again
        entries = [entry.mutation.operation for entry in await a.read(0, bodies=False)]
        assert sorted(entries) == sorted(one.operation for one in [large, *small])


# --- lost on the way ----------------------------------------------------------------------------------------


async def test_a_lost_answer_is_found_out(behind, server):
    """The transaction was carried out: it is not carried out again, and its seq is answered."""
    log, proxy = behind
    await log.append([mutation()])
    one = mutation()
    proxy.one_way("down")
    appending = asyncio.create_task(log.append([one]))
    await lost(log, server, "data/record/00000000000000000002")
    await proxy.heal()
    assert await appending == [2]
    assert [entry.mutation.operation for entry in await log.read(1)] == [one.operation]


async def lost(log, server, key):
    """Wait until a request has set a key and was given up since its answer did not come."""
    await soon(lambda: _has_part(server, key))
    attempts = set(log._client._under_way)
    await soon(lambda: _ended(log, attempts))


async def _ended(log, attempts):
    return attempts.isdisjoint(log._client._under_way)


@pytest.mark.usefixtures("patience")
async def test_an_answer_that_never_comes(behind, server):
    """It may have been carried out, and says so; appended again, it is in the log once."""
    log, proxy = behind
    one = mutation()
    proxy.one_way("down")
    with pytest.raises(LogUnavailable, match="no member answered") as caught:
        await log.append([one])
    assert caught.value.sent
    await proxy.heal()
    assert await log.append([one, mutation()]) == [1, 2]


@pytest.mark.usefixtures("patience")
async def test_what_cannot_be_sent_was_not_done(behind):
    """Nobody listens: nothing has happened, whatever was asked for."""
    log, proxy = behind
    lease = await log.acquire("x", "a", 60)
    proxy.refuse()
    proxy.reset_all()
    for use in (
        lambda: log.append([mutation()]),
        lambda: log.append([mutation(size=2 * MIB)]),
        lambda: log.put({"x": b"1"}),
        lambda: log.acquire("y", "a", 60),
        lambda: log.release(lease),
        log.bounds,
    ):
        with pytest.raises(LogUnavailable, match="cannot connect") as caught:
            await use()
        assert not caught.value.sent


async def test_a_fact_whose_answer_is_lost(behind, server):
    """Of a change without conditions another copy does no harm; of any other it is not known whether it was done."""
    log, proxy = behind
    for expect, outcome in ((None, True), ({"x": 0}, None)):
        name = "x" if expect else "y"
        proxy.one_way("down")
        putting = asyncio.create_task(log.put({name: b"1"}, expect=expect))
        await lost(log, server, f"state/fact/{name}")
        await proxy.heal()
        if outcome:
            assert await putting
        else:
            with pytest.raises(LogUnavailable, match="read them") as caught:
                await putting
            assert caught.value.sent


async def test_a_lease_whose_answer_is_lost(behind, server, monkeypatch):
    """Its taker finds that it has it."""
    log, proxy = behind
    call = log._client.call

    async def granting(path, *args, **options):
        reply = await call(path, *args, **options)
        if path == "/v3/lease/grant":
            proxy.one_way("down")
        return reply

    monkeypatch.setattr(log._client, "call", granting)
    taking = asyncio.create_task(log.acquire("x", "a", 60))
    await lost(log, server, "state/lease/x")
    await proxy.heal()
    lease = await taking
    assert lease is not None
    assert await log.put({"x": b"1"}, lease=lease)


async def test_cancelled_calls_leave_nothing(behind):
    """No task, and connections that can be used again."""
    log, proxy = behind
    before = asyncio.all_tasks()
    proxy.black_hole()
    calls = [log.read(0), log.bounds(), log.put({"x": b"1"}), log.append([mutation()]), log.acquire("x", "a", 60)]
    tasks = [asyncio.ensure_future(call) for call in calls]
    await asyncio.wait(tasks, timeout=0.05)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await proxy.heal()
    await log.append([mutation()])
    await soon(lambda: _none_beside(before))


async def _none_beside(before):
    # The appender ends by itself; the watch and the tidier were there.
    return len(asyncio.all_tasks() - before) <= 1


# --- crashes ------------------------------------------------------------------------------------------------


@asynccontextmanager
async def writer(log, number, at_once=8, size=200):
    """A process that appends; gives what it has acknowledged so far, seq by operation."""
    settings = json.dumps({"log": log, "max_bytes": 1 << 30})
    arguments = [settings, str(number), str(at_once), str(size)]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(WRITER),
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    acknowledged = {}

    async def listen():
        async for line in process.stdout:
            if line.endswith(b"\n"):  # it may be killed while it writes
                seq, operation = line.split()
                acknowledged[operation.decode()] = int(seq)

    listening = asyncio.create_task(listen())
    try:
        yield acknowledged
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        await listening


async def test_a_writer_dies_in_the_middle_of_a_large_append(server):
    """Nobody sees anything of it, and what it left is removed once its time is over."""
    address = f"etcd://{server.address}"
    async with writer(address, 1, at_once=1, size=40 * MIB):
        await soon(lambda: _has_part(server, "data/chunk/"))
    async with opened(address) as log:
        assert await log.bounds() == Bounds(1, 0, 0)
        assert await log.append([mutation()]) == [1]
        assert await _has_part(server, "data/chunk/"), "it was removed while it might have been going on"
    (lease,) = (await server.call("/v3/lease/leases", {}))["leases"]
    await server.call("/v3/lease/revoke", lease)
    async with opened(address) as log:
        await soon(lambda: _lacks(server, "data/staged/"))
        left = [key for key in await stored(server) if key.startswith("data/")]
        assert len([key for key in left if "/chunk/" in key or "/operation/" in key]) == 2, "those of the small one"
        assert [entry.seq for entry in await log.read(0)] == [1]


async def _has_part(server, part):
    return any(part in key for key in await stored(server))


async def _lacks(server, part):
    return not await _has_part(server, part)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["kill", "freeze"])
async def test_the_leader_dies_while_several_append(cluster, fault):
    """Every acknowledged entry is there, once, under its seq; and it goes on within seconds."""
    async with writer(cluster.log, 1) as a, writer(cluster.log, 2) as b, writer(cluster.log, 3) as c:
        all_of_them = (a, b, c)
        await soon(lambda: _each_has(all_of_them, 20))
        leader = await cluster.leader()
        if fault == "kill":
            await leader.kill()
        else:
            leader.freeze()
        until = [len(one) + 20 for one in all_of_them]
        await soon(lambda: _each_has(all_of_them, until))
        await cluster.heal()
        until = [len(one) + 20 for one in all_of_them]
        await soon(lambda: _each_has(all_of_them, until))
    acknowledged = a | b | c
    async with opened(cluster.log) as log:
        entries = await _everything(log)
    assert [entry.seq for entry in entries] == list(range(1, len(entries) + 1))
    there = {entry.mutation.operation.hex(): entry.seq for entry in entries}
    assert len(there) == len(entries), "an operation is there twice"
    assert {operation: there.get(operation) for operation in acknowledged} == acknowledged


async def _each_has(acknowledged, least):
    least = [least] * len(acknowledged) if isinstance(least, int) else least
    return all(len(one) >= many for one, many in zip(acknowledged, least, strict=True))


async def _everything(log):
    entries = []
    while more := await log.read(len(entries), limit=5_000, bodies=False):
        entries += more
    return entries


async def test_facts_leases_and_news_survive_the_leader(cluster):
    """A holder goes on holding, whoever waits is woken, versions go on."""
    async with opened(cluster.log) as a, opened(cluster.log) as b:
        lease = await a.acquire("x", "a", 10)
        assert await a.put({"fact": b"1"}, lease=lease)
        version = (await b.facts())["fact"].version
        seen = await b.changed(0)
        waiting = asyncio.create_task(b.changed(seen))
        await (await cluster.leader()).kill()
        lease = await a.renew(lease, 10)
        assert lease is not None
        assert await b.acquire("x", "b", 10) is None
        assert await a.put({"fact": b"2"}, lease=lease, expect={"fact": version})
        async with asyncio.timeout(30):
            assert await waiting > seen
        assert (await b.facts())["fact"].version > version


async def test_a_frozen_member_is_left(cluster):
    """One that accepts connections and answers nothing: it costs one short attempt, and its watch is not waited for."""
    async with opened(cluster.log) as log, opened(f"etcd://{cluster.members[2].address}") as other:
        seen = await log.changed(0)
        waiting = asyncio.create_task(log.changed(seen))
        await asyncio.wait([waiting], timeout=0.1)
        cluster.members[0].freeze()
        async with asyncio.timeout(30):
            assert await log.append([mutation()]) == [1]
            seen = await waiting
            waiting = asyncio.create_task(log.changed(seen))
            await other.append([mutation()])
            await waiting


async def test_without_a_majority(cluster, patience):
    """Nothing is acknowledged, nor taken for true; with one, everything goes on."""
    async with opened(cluster.log) as log:
        lease = await log.acquire("x", "a", 2)
        for member in cluster.members[1:]:
            await member.kill()
        for use in (lambda: log.append([mutation()]), log.bounds, lambda: log.renew(lease, 2)):
            with pytest.raises(LogUnavailable, match="majority"):
                await use()
        await cluster.heal()
        await soon(lambda: _answers(log))


async def _answers(log):
    try:
        return await log.append([mutation()])
    except LogUnavailable:
        return None


async def test_a_member_behind_a_partition(cluster, toxic):
    """A client that reaches one member only, which has lost the others, gets no answer and then uses another."""
    proxy = await toxic(cluster.members[0].port)
    rest = ",".join(member.address for member in cluster.members[1:])
    async with opened(f"etcd://{proxy.address},{rest}") as log:
        await log.append([mutation()])
        proxy.partition()
        async with asyncio.timeout(10):
            assert await log.append([mutation()]) == [2]
            assert (await log.bounds()).head == 2


# --- small for ever -----------------------------------------------------------------------------------------


async def test_what_is_trimmed_leaves_etcd(server, log, monkeypatch):
    """Bodies at once; what an operation's seq was, when it was long ago."""
    monkeypatch.setattr(tidy, "REMEMBERED", 150)
    first = mutation()
    await log.append([first, mutation()])
    await log.append([mutation(size=3 * MIB)])
    many = [mutation() for _ in range(200)]
    await log.append(many)
    await log.trim(2)
    assert len(await chunks(server)) == 5, "4 of the large one, 1 of the many"
    await log.trim(3)
    assert len(await chunks(server)) == 1
    assert await log.append([many[-1]]) == [203]
    await log.trim(203)
    assert not await chunks(server)
    assert await log.append([first]) == [204], "it is forgotten"
    assert await log.append([many[0]]) == [4], "it is not: its record ends with the 203rd"
    with pytest.raises(LogTrimmed):
        await log.read(202)


async def chunks(server):
    """Parts of bodies that are stored."""
    return [key for key in await stored(server) if "/chunk/" in key]


async def test_a_trim_that_stopped_half_way_is_ended_by_the_next(server, log, monkeypatch):
    """Nothing is there that is only half there."""
    await log.append([mutation(), mutation()])
    await log.append([mutation()])
    monkeypatch.setattr(log._tidy, "_sweep", _nothing)
    await log.trim(2)
    monkeypatch.undo()
    assert (await log.bounds()).first == 3
    assert len(await chunks(server)) == 2
    await log.trim(2)
    assert len(await chunks(server)) == 1


async def _nothing():
    pass


async def test_a_trim_does_not_undo_another(server, log):
    """Of those that trim at once, the one that removes most stays."""
    await log.append([mutation() for _ in range(60)])
    async with opened(f"etcd://{server.address}") as other:
        for through in range(3, 60, 3):
            await asyncio.gather(
                *(one.trim(to) for one, to in ((log, through), (other, through - 2), (log, through - 1)))
            )
            assert (await log.bounds()).first == through + 1
    assert (await log.bounds()).size == 30


async def test_history_is_compacted(server, log):
    """Up to where it was a round ago; and what others compact does no harm."""
    await log.append([mutation()])
    tidier = tidy.Tidy(log._log, log._keys, log._ends, compacts=True)
    await tidier.compact()
    revision = await log.changed(0)
    await log.put({"x": b"1"})
    await tidier.compact()
    with pytest.raises(httpx.HTTPStatusError, match="400"):
        await server.call("/v3/kv/range", {"key": "eA==", "revision": str(revision - 1)})
    newest = await log.changed(revision)
    await server.call("/v3/kv/compaction", {"revision": str(newest)})
    with pytest.raises(LogUnavailable, match="compacted"):
        await tidier.compact()
    waiting = asyncio.create_task(log.changed(newest))
    await asyncio.wait([waiting], timeout=0.05)
    await log.append([mutation()])
    async with asyncio.timeout(30):
        await waiting
    assert [entry.seq for entry in await log.read(0)] == [1, 2]


async def test_the_watch_begins_behind_a_compaction(server, log):
    """A process that was away for long is told that something is new."""
    seen = await log.changed(0)
    for _ in range(3):
        await log.append([mutation()])
    await server.call("/v3/kv/compaction", {"revision": str(seen + 3)})
    async with asyncio.timeout(30):
        assert await log.changed(seen) >= seen + 3
    async with opened(f"etcd://{server.address}") as late, asyncio.timeout(30):
        assert await late.changed(1) >= seen + 3


async def test_an_etcd_that_is_full(tmp_path, caplog):
    """The log keeps to half of what etcd may hold; past that, etcd refuses all writes: the error says what to do."""
    async with EtcdServer(tmp_path, options=["--quota-backend-bytes=4194304"]) as server:
        address = f"etcd://{server.address}"
        with caplog.at_level(logging.WARNING, "haclient"):
            async with opened(address) as log:
                assert "bounded to 2097152 bytes, half of etcd's quota" in caplog.text
                await log.append([mutation(size=MIB)])
                with pytest.raises(LogFull):
                    await log.append([mutation(size=MIB + 1)])
                with contextlib.suppress(httpx.HTTPStatusError):
                    for number in range(10):
                        await set_key(server, f"other/{number}", bytes(MIB))
                for use in (lambda: log.append([mutation()]), lambda: log.put({"x": b"1"})):
                    with pytest.raises(LogUnavailable, match="--quota-backend-bytes") as caught:
                        await use()
                    assert not caught.value.sent
                assert len(await log.read(0)) == 1
        async with opened(address) as log:
            assert (await log.bounds()).head == 1


# --- what is not what it was --------------------------------------------------------------------------------


async def test_a_log_that_is_removed_or_replaced(server, log):
    """Nothing more is read from it nor written to it."""
    await log.append([mutation()])
    everything = {
        "key": base64.b64encode(b"/haclient/").decode(),
        "range_end": base64.b64encode(b"/haclient0").decode(),
    }
    await server.call("/v3/kv/deleterange", everything)
    for use in (lambda: log.append([mutation()]), log.bounds, log.facts, lambda: log.read(0), lambda: log.put({})):
        with pytest.raises(LogCorrupt, match="removed or replaced"):
            await use()
    async with opened(f"etcd://{server.address}") as new:
        assert await new.append([mutation()]) == [1]
        with pytest.raises(LogCorrupt, match="removed or replaced"):
            await log.append([mutation()])


async def test_a_log_that_has_gone_back(server, log):
    """As etcd's does when it is restored from a backup."""
    await log.append([mutation(), mutation()])
    await set_key(server, "/haclient/state/tail", b"[1,10]")
    for use in (lambda: log.append([mutation()]), log.bounds, lambda: log.read(0)):
        with pytest.raises(LogCorrupt, match="ended at 2 and ends at 1 now"):
            await use()


@pytest.mark.parametrize(
    ("part", "value", "matter"),
    [
        ("data/chunk/", b"other bytes", "not what was written"),
        ("data/chunk/", b"", "not what was written"),
        ("data/record/", b"[]", "did not write"),
        ("data/record/", b"\xff", "did not write"),
        ("state/tail", b"[9,90]", "has no entry 2"),
        ("state/tail", b"nothing", "did not write"),
    ],
)
async def test_what_was_changed_is_noticed(server, log, part, value, matter):
    """It is never handed on."""
    await log.append([mutation()])
    (key,) = [key for key in await stored(server) if part in key]
    await set_key(server, f"/haclient/{key}", value)
    with pytest.raises(LogCorrupt, match=matter):
        await log.read(0)


async def test_something_else_at_the_prefix(server):
    """A log of a later version, or no log."""
    for value in (b'{"format":99,"id":"x"}', b"7", b"text"):
        await set_key(server, "/haclient/log", value)
        with pytest.raises(ConfigError, match="etcd_prefix"):
            async with opened(f"etcd://{server.address}"):
                pass


async def test_logs_with_different_prefixes_share_nothing(server):
    """Whether or not the prefix ends with a slash."""
    address = f"etcd://{server.address}"
    async with opened(address, etcd_prefix="/a") as a, opened(address, etcd_prefix="/ab/") as b:
        await a.append([mutation()])
        assert (await b.bounds()).head == 0
        await b.put({"x": b"1"})
        assert await a.facts() == {}
        async with opened(address, etcd_prefix="/a/") as same:
            assert (await same.bounds()).head == 1


# --- whose etcd it is ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["by-dev/kv/gid/timestamp", "by-dev/meta/session/rootcoord", "a/b/meta/root-coord/x"])
async def test_the_etcd_of_a_milvus_is_refused(server, caplog, key):
    """Losing it would lose the log as well; who accepts that must say so, and is warned."""
    await set_key(server, key)
    address = f"etcd://{server.address}"
    with pytest.raises(ConfigError, match=f"keeps the metadata of a Milvus .it has {key}.*etcd_shared"):
        async with opened(address):
            pass
    assert await stored(server) == [], "something was written to it"
    with caplog.at_level(logging.WARNING, "haclient"):
        async with opened(address, etcd_shared=True) as log:
            await log.append([mutation()])
            revision = await log.changed(0)
            await log._tidy.compact()
            await log._tidy.compact()
    assert "keeps the metadata of a Milvus" in caplog.text
    await server.call("/v3/kv/range", {"key": "eA==", "revision": str(revision - 1)})  # not ours to compact


async def test_another_application_may_share_an_etcd(server):
    """Its keys do not look like a Milvus'."""
    for key in ("/registry/pods/default/meta", "metadata/session/x", "meta", "service/kv/gid"):
        await set_key(server, key)
    async with opened(f"etcd://{server.address}") as log:
        assert await log.append([mutation()]) == [1]


@pytest.mark.live
async def test_the_embedded_etcd_of_a_real_milvus(tmp_path):
    """It is recognised; and as it is an etcd 3.5, the log works with that too."""
    async with StandaloneServer(tmp_path) as milvus:
        address = f"etcd://127.0.0.1:{milvus._ports['etcd']}"
        with pytest.raises(ConfigError, match="keeps the metadata of a Milvus"):
            async with opened(address):
                pass
        async with opened(address, etcd_shared=True) as a, opened(address, etcd_shared=True) as b:
            one, large = mutation(), mutation(size=3 * MIB)
            seen = await b.changed(0)
            assert await asyncio.gather(a.append([one]), b.append([one])) == [[1], [1]]
            assert await b.append([large]) == [2]
            assert [entry.mutation for entry in await a.read(0)] == [one, large]
            assert await b.changed(seen) > seen
            lease = await a.acquire("x", "a", 2)
            assert await a.put({"x": b"1"}, lease=await a.renew(lease, 2), expect={"x": 0})
            assert await soon(lambda: b.acquire("x", "b", 2))
            assert not await a.put({"x": b"2"}, lease=lease)
            await a.trim(2)
            with pytest.raises(LogTrimmed):
                await b.read(0)


async def test_endpoints_of_different_clusters(server, tmp_path):
    """Half of the writes would go elsewhere."""
    async with EtcdServer(tmp_path / "other", name="other") as other:
        with pytest.raises(ConfigError, match="different etcd clusters"):
            async with opened(f"etcd://{server.address},{other.address}"):
                pass


async def test_a_server_that_is_no_etcd(tmp_path):
    """It is said what it answered."""

    async def answer(request, out):
        await request.readuntil(b"{}")
        out.write(b"HTTP/1.1 404 Not Found\r\ncontent-length: 4\r\nconnection: close\r\n\r\nwhat")
        await out.drain()
        out.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as listening:
        port = listening.sockets[0].getsockname()[1]
        with pytest.raises(ConfigError, match="does not answer as etcd does: HTTP 404: what"):
            async with opened(f"etcd://127.0.0.1:{port}"):
                pass


@pytest.mark.usefixtures("patience")
async def test_an_etcd_that_is_down_when_the_log_is_opened():
    """It may come up: that is no wrong configuration."""
    with pytest.raises(LogUnavailable, match="cannot connect") as caught:
        async with opened("etcd://127.0.0.1:9"):
            pass
    assert not caught.value.sent


# --- credentials and TLS ------------------------------------------------------------------------------------


async def enable_users(server):
    """Give etcd a user for the log, who may touch nothing but the log, and have it ask for credentials."""
    below = {"key": base64.b64encode(b"/haclient/").decode(), "range_end": base64.b64encode(b"/haclient0").decode()}
    for path, message in (
        ("user/add", {"name": "root", "password": "root"}),
        ("role/add", {"name": "root"}),
        ("user/grant", {"user": "root", "role": "root"}),
        ("role/add", {"name": "log"}),
        ("role/grant", {"name": "log", "perm": {"permType": "READWRITE", **below}}),
        ("user/add", {"name": "haclient", "password": SECRET}),
        ("user/grant", {"user": "haclient", "role": "log"}),
        ("user/add", {"name": "nobody", "password": SECRET}),
        ("enable", {}),
    ):
        await server.call(f"/v3/auth/{path}", message)


async def test_users_and_passwords(server, caplog):
    """A user who may use the prefix is enough; a token that is not known any more is renewed."""
    await enable_users(server)
    address = f"etcd://{server.address}"
    credentials = {"etcd_user": "haclient", "etcd_password": SECRET}
    with caplog.at_level(logging.DEBUG):
        async with opened(address, **credentials) as log:
            await log.append([mutation(), mutation(size=2 * MIB)])
            lease = await log.acquire("x", "a", 60)
            seen = await log.changed(0)
            await server.restart()
            await asyncio.gather(*(log.append([mutation()]) for _ in range(5)))
            lease = await log.renew(lease, 60)
            assert await log.put({"x": b"1"}, lease=lease)
            assert await log.changed(seen) > seen
            assert len(await log.read(0)) == 7
            await log.trim(7)
            tidier = tidy.Tidy(log._log, log._keys, log._ends, compacts=True)
            await tidier.compact()
            await tidier.compact()
    assert SECRET not in caplog.text


@pytest.mark.parametrize(
    ("credentials", "matter"),
    [
        ({}, "set etcd_user and etcd_password"),
        ({"etcd_user": "haclient", "etcd_password": SECRET[:-1]}, "set etcd_user and etcd_password"),
        ({"etcd_user": "somebody", "etcd_password": SECRET}, "set etcd_user and etcd_password"),
        ({"etcd_user": "nobody", "etcd_password": SECRET}, "everything below etcd_prefix"),
    ],
    ids=["none", "password", "user", "role"],
)
async def test_wrong_credentials(server, credentials, matter):
    """Are a wrong configuration, which says nothing of the password."""
    await enable_users(server)
    with pytest.raises(ConfigError, match=matter) as caught:
        async with opened(f"etcd://{server.address}", **credentials):
            pass
    assert SECRET[:-1] not in str(caught.value)


async def test_a_user_where_there_are_none(server):
    """The operator believes that etcd asks for a password, and it does not."""
    with pytest.raises(ConfigError, match="leave out etcd_user, or enable authentication"):
        async with opened(f"etcd://{server.address}", etcd_user="haclient", etcd_password=SECRET):
            pass


@pytest.fixture
def pki(tmp_path):
    """PEM files of an authority, a server and, without a common name, a client."""
    authority = trustme.CA()
    files = {}
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    for name in ("server", "client"):
        pair = authority.issue_cert("127.0.0.1")
        files[name] = (tmp_path / f"{name}.pem", tmp_path / f"{name}.key")
        pair.cert_chain_pems[0].write_to_path(str(files[name][0]))
        pair.private_key_pem.write_to_path(str(files[name][1]))
    return EtcdTLS(tmp_path / "ca.pem", *files["server"]), files["client"]


async def test_tls(tmp_path, pki, monkeypatch):
    """Both sides show certificates; whoever has none, or trusts another authority, is told so."""
    tls, (cert, key) = pki
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "other.pem"))
    ours = {"etcd_ca_file": str(tls.ca), "etcd_cert_file": str(cert), "etcd_key_file": str(key)}
    async with EtcdServer(tmp_path / "etcd", tls=tls) as server:
        address = f"etcd://{server.address}"
        async with opened(address, **ours) as log:
            seen = await log.changed(0)
            waiting = asyncio.create_task(log.changed(seen))
            assert await log.append([mutation(size=2 * MIB)]) == [1]
            assert await waiting > seen
        with pytest.raises(ConfigError, match="etcd_ca_file is of the authority"):
            async with opened(address, **{**ours, "etcd_ca_file": str(tmp_path / "other.pem")}):
                pass
        monkeypatch.setattr(client, "_PATIENCE_S", 1.0)
        with pytest.raises(LogUnavailable, match="if it speaks TLS, set etcd_ca_file"):
            async with opened(address):
                pass
