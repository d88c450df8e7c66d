"""What every engine of the mutation log does, said once and asked of each."""

import asyncio
import random
from dataclasses import replace

import pytest

from haclient.errors import LogFull, LogTrimmed, LogUnavailable
from haclient.replication.log import BARRIER, Bounds, Fact, Mutation
from tests.unit.replication.log_engines import ENGINES, engine, mutation

MIB = 1 << 20


@pytest.fixture(
    params=[
        pytest.param(name, marks=pytest.mark.xdist_group("etcd-log") if name == "etcd" else ()) for name in ENGINES
    ],
    scope="module",
)
def made(request, tmp_path_factory):
    """One engine, with its server if it needs one."""
    with engine(request.param, tmp_path_factory.mktemp(request.param)) as maker:
        yield maker


@pytest.fixture
async def store(made):
    """``store(**settings)`` makes an empty store; ``await opener()`` opens one more handle of it, closed at the end."""
    opened = []

    def stored(**settings):
        handle = made(**settings)

        async def opener():
            log = handle()
            await log.open()
            opened.append(log)
            return log

        return opener

    yield stored
    for log in opened:
        await log.aclose()


@pytest.fixture
async def log(store):
    """One handle of an empty store."""
    return await store()()


@pytest.fixture
async def pair(store):
    """Two handles of one empty store, as two processes have them."""
    opener = store()
    return await opener(), await opener()


async def soon(condition, timeout_s=30.0):
    """Ask again until the answer is something; for what comes by itself after a time."""
    async with asyncio.timeout(timeout_s):
        while not (found := await condition()):
            await asyncio.sleep(0.01)
        return found


# --- entries ------------------------------------------------------------------------------------------------


async def test_an_empty_log(log):
    """It begins at 1, holds nothing, and has no entries and facts to show."""
    assert await log.bounds() == Bounds(first=1, head=0, size=0)
    assert await log.read(0) == []
    assert await log.facts() == {}


async def test_entries_are_numbered_from_one_without_gaps(pair):
    """Whoever appends; and everybody sees them at once."""
    a, b = pair
    assert await a.append([mutation(1), mutation(2)]) == [1, 2]
    assert await b.append([mutation(3)]) == [3]
    assert await a.append([]) == []
    assert [(e.seq, e.mutation) for e in await a.read(0)] == [(n, mutation(n)) for n in (1, 2, 3)]
    assert await b.read(0) == await a.read(0)
    assert await a.bounds() == await b.bounds() == Bounds(1, 3, 3 * len(b"rows"))


async def test_an_operation_is_in_the_log_once(pair):
    """Appended again, anywhere, among new ones or twice in one call, it keeps its seq."""
    a, b = pair
    assert await a.append([mutation(7), mutation(8)]) == [1, 2]
    assert await b.append([mutation(9), mutation(7), mutation(9), mutation(8), mutation(6)]) == [3, 1, 3, 2, 4]
    assert await a.append([mutation(7)]) == [1]
    assert [e.mutation.operation[-1] for e in await b.read(0)] == [7, 8, 9, 6]
    assert (await a.bounds()).size == 4 * len(b"rows")


@pytest.mark.parametrize(
    "written",
    [
        Mutation(b"\xff" * 16, "CreateCollection", ("", "docs"), b"\x00\xff" * 50),
        Mutation(b"\x00" * 16, "CreateAlias", BARRIER, b"", "books"),
        Mutation(b"x" * 16, "Insert", ("größe", "文書/ $%_'\""), b"x", "größe"),
        Mutation(b"y" * 16, "Upsert", ("", "docs"), random.Random(1).randbytes(3 * MIB + 1)),
    ],
    ids=["schema", "barrier", "names", "large"],
)
async def test_what_is_written_is_read(pair, written):
    """Byte by byte, also if it is empty or larger than one value of the engine."""
    a, b = pair
    await a.append([mutation(1), written, mutation(2)])
    for log in (a, b):
        (_, entry, _) = await log.read(0, max_bytes=64 * MIB)
        assert entry.mutation == written
        assert entry.size == len(written.message)
        assert isinstance(entry.at, float)
        without = (await log.read(0, bodies=False))[1]
        assert without == replace(entry, mutation=replace(written, message=b""))


async def test_reading_goes_on_where_it_is_told(log):
    """After a seq, up to a number of entries or bytes, but at least one."""
    await log.append([mutation(n, bytes(1000)) for n in range(1, 11)])

    async def seqs(after, **limits):
        return [entry.seq for entry in await log.read(after, **limits)]

    assert await seqs(0) == list(range(1, 11))
    assert await seqs(7) == [8, 9, 10]
    assert await seqs(10) == []
    assert await seqs(0, limit=3) == [1, 2, 3]
    assert await seqs(3, limit=1) == [4]
    assert await seqs(2, max_bytes=1) == [3]
    assert await seqs(2, max_bytes=2000) == [3, 4]
    assert await seqs(2, max_bytes=2001) == [3, 4, 5]


async def test_appends_of_many_mix_without_gaps(store):
    """Each group stays together and in order, every operation is there once."""
    opener = store()
    logs = [await opener() for _ in range(3)]

    async def write(log, writer):
        found = []
        for i in range(10):
            number = 1000 * writer + 10 * i
            group = [mutation(number + k) for k in range(1, 1 + writer % 3 + 1)]
            seqs = await log.append(group)
            assert seqs == list(range(seqs[0], seqs[0] + len(group)))
            found += zip(seqs, group, strict=True)
        return found

    written = await asyncio.gather(*(write(log, writer) for writer, log in enumerate(logs * 4)))
    there = [(entry.seq, entry.mutation) for entry in await logs[0].read(0, limit=10_000)]
    assert there == sorted((pair for pairs in written for pair in pairs), key=lambda pair: pair[0])
    assert [seq for seq, _ in there] == list(range(1, len(there) + 1))


async def test_an_append_that_is_cancelled_can_be_repeated(pair):
    """It is in the log once, whether the first one got there or not."""
    a, b = pair
    task = asyncio.ensure_future(a.append([mutation(1)]))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    seqs = await a.append([mutation(1), mutation(2)])
    assert seqs == [1, 2]
    assert [entry.seq for entry in await b.read(0)] == [1, 2]


# --- trimming and bounds ------------------------------------------------------------------------------------


async def test_what_is_trimmed_is_gone(pair):
    """For everybody; whoever asks for it is told, and numbers go on."""
    a, b = pair
    await a.append([mutation(n, bytes(10)) for n in range(1, 6)])
    await b.trim(2)
    assert await a.bounds() == Bounds(first=3, head=5, size=30)
    assert [entry.seq for entry in await a.read(2)] == [3, 4, 5]
    for after in (0, 1):
        with pytest.raises(LogTrimmed):
            await a.read(after)
    await a.trim(1)
    await a.trim(100)
    assert await b.bounds() == Bounds(first=6, head=5, size=0)
    assert await b.read(5) == []
    with pytest.raises(LogTrimmed):
        await b.read(4)
    assert await b.append([mutation(6)]) == [6]
    assert await a.bounds() == Bounds(first=6, head=6, size=len(b"rows"))


async def test_more_is_trimmed_than_goes_in_one_step(log):
    """However an engine divides it."""
    for start in range(1, 2001, 250):
        await log.append([mutation(n, bytes(100)) for n in range(start, start + 250)])
    await log.trim(1990)
    assert await log.bounds() == Bounds(first=1991, head=2000, size=1000)


async def test_an_operation_is_remembered_when_its_entry_is_trimmed(pair):
    """A writer that repeats it, late, does not write twice."""
    a, b = pair
    await a.append([mutation(1), mutation(2)])
    await a.trim(2)
    assert await b.append([mutation(2), mutation(3), mutation(1)]) == [2, 3, 1]
    assert (await a.bounds()).first == 3


async def test_a_log_with_too_many_entries_is_full(store):
    """Nothing of the append is added; what is there already is no new entry; after a trim there is room."""
    log = await store(max_entries=3)()
    await log.append([mutation(1), mutation(2)])
    with pytest.raises(LogFull):
        await log.append([mutation(3), mutation(4)])
    assert await log.bounds() == Bounds(1, 2, 8)
    assert await log.append([mutation(3), mutation(1)]) == [3, 1]
    with pytest.raises(LogFull):
        await log.append([mutation(4)])
    assert await log.append([mutation(2)]) == [2]
    await log.trim(1)
    assert await log.append([mutation(4)]) == [4]


async def test_a_log_with_too_many_bytes_is_full(store):
    """So that it can never fill a disk."""
    log = await store(max_bytes=MIB)()
    await log.append([mutation(1, bytes(MIB // 2))])
    with pytest.raises(LogFull):
        await log.append([mutation(2), mutation(3, bytes(MIB // 2))])
    assert await log.append([mutation(3, bytes(MIB // 2))]) == [2]
    with pytest.raises(LogFull):
        await log.append([mutation(4, b"x")])
    await log.trim(1)
    assert await log.append([mutation(4, b"x")]) == [3]
    with pytest.raises(LogFull):
        await log.append([mutation(5, bytes(MIB + 1))])


# --- changes ------------------------------------------------------------------------------------------------


async def test_waiting_ends_when_something_changes(pair):
    """An entry, a fact or a lease; of this process or of another one."""
    a, b = pair
    taken = await a.acquire("taken", "a", 60.0)
    changes = [
        lambda log: log.append([mutation(random.getrandbits(60))]),
        lambda log: log.put({"fact": b"1"}),
        lambda log: log.put({"fact": None}),
        lambda log: log.acquire("lease", "a", 60.0),
        lambda log: log.release(taken),
    ]
    seen = await a.changed(0)
    assert seen > 0
    for change in changes:
        waiting = [asyncio.ensure_future(log.changed(seen)) for log in (a, b, b)]
        done, _ = await asyncio.wait(waiting, timeout=0.02)
        assert not done, "it was woken for nothing, and nothing was new"
        await change(b)
        async with asyncio.timeout(30):
            newer = await asyncio.gather(*waiting)
        assert min(newer) > seen
        seen = max(newer)


async def test_a_change_before_waiting_is_not_missed(pair):
    """A revision seen before it is old at once."""
    a, b = pair
    seen = await b.changed(0)
    await a.append([mutation(1)])
    async with asyncio.timeout(30):
        assert await b.changed(seen) > seen


async def test_waiting_can_be_cancelled(log):
    """And leaves the log as it was."""
    seen = await log.changed(0)
    task = asyncio.ensure_future(log.changed(seen))
    await asyncio.wait([task], timeout=0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await log.append([mutation(1)]) == [1]
    assert await log.changed(seen) > seen


# --- facts --------------------------------------------------------------------------------------------------


async def test_facts_are_set_removed_and_found_by_prefix(pair):
    """Values are bytes; a prefix is compared as text, nothing in it is special."""
    a, b = pair
    assert await a.put({"position/a": b"\x00\xff", "position/b": b"", "positions": b"x", "größe_%": b"y"})
    assert {name: fact.value for name, fact in (await b.facts("position/")).items()} == {
        "position/a": b"\x00\xff",
        "position/b": b"",
    }
    assert set(await b.facts()) == {"position/a", "position/b", "positions", "größe_%"}
    assert set(await b.facts("größe_")) == {"größe_%"}
    assert await b.facts("nothing") == {}
    assert await b.put({"position/a": None, "absent": None, "positions": b"z"})
    assert {name: fact.value for name, fact in (await a.facts("pos")).items()} == {"position/b": b"", "positions": b"z"}


async def test_versions_only_grow(pair):
    """With each setting, also to the same value, and also after the fact was removed."""
    a, b = pair
    seen = [0]
    for log, value in ((a, b"1"), (b, b"2"), (a, b"2"), (b, None), (a, b"1")):
        await log.put({"fact": value})
        if value is not None:
            (fact,) = (await a.facts("fact")).values()
            assert fact == Fact(value, fact.version)
            seen.append(fact.version)
    assert seen == sorted(set(seen))


async def test_compare_and_set(pair):
    """All expectations hold, also of facts that are not changed, or nothing is done."""
    a, b = pair
    assert await a.put({"x": b"1"}, expect={"x": 0, "y": 0})
    assert not await b.put({"x": b"2"}, expect={"x": 0})
    version = (await b.facts())["x"].version
    assert not await b.put({"x": b"2", "z": b"1"}, expect={"x": version, "y": version})
    assert not await b.put({"z": b"1"}, expect={"x": version + 1})
    assert await b.facts() == {"x": Fact(b"1", version)}
    assert await b.put({"x": b"2", "z": b"1"}, expect={"x": version, "y": 0})
    assert not await a.put({"x": b"3"}, expect={"x": version})
    newer = (await a.facts())["x"].version
    assert await a.put({"x": None}, expect={"x": newer})
    assert await a.put({"x": b"4"}, expect={"x": 0})
    assert not await a.put({"x": b"5"}, expect={"x": version}), "a version came again"


async def test_of_those_who_compare_and_set_at_once_one_wins(store):
    """The others are told."""
    opener = store()
    logs = [await opener() for _ in range(4)]
    done = await asyncio.gather(*(log.put({"x": str(i).encode()}, expect={"x": 0}) for i, log in enumerate(logs)))
    assert done.count(True) == 1
    assert (await logs[0].facts())["x"].value == str(done.index(True)).encode()


# --- leases -------------------------------------------------------------------------------------------------


async def test_a_lease_has_one_holder(pair):
    """Whoever asks meanwhile gets none, be it the holder; given back, it is free, under the next epoch."""
    a, b = pair
    first = await a.acquire("apply/a", "process a", 60.0)
    assert first is not None
    assert first.name == "apply/a"
    assert await b.acquire("apply/a", "process b", 60.0) is None
    assert await a.acquire("apply/a", "process a", 60.0) is None
    other = await b.acquire("apply/b", "process b", 60.0)
    assert other is not None
    await a.release(first)
    second = await b.acquire("apply/a", "process b", 60.0)
    assert second is not None
    assert second.epoch > first.epoch
    await a.release(first)
    await a.release(replace(second, epoch=first.epoch))
    assert await a.acquire("apply/a", "process a", 60.0) is None, "who has lost a lease gave it back"


async def test_the_lease_of_a_dead_holder_is_free_at_once(pair):
    a, b = pair
    first = await a.acquire("apply/a", "process a", 60.0)
    assert not first.orphaned
    assert await b.acquire("apply/a", "process b", 60.0, lambda holder: holder == "process b") is None
    second = await b.acquire("apply/a", "process b", 60.0, lambda holder: holder == "process a")
    assert second.orphaned
    assert second.epoch == first.epoch + 1
    assert await a.renew(first, 60.0) is None
    await b.release(second)
    third = await a.acquire("apply/a", "process a", 60.0, lambda holder: True)
    assert not third.orphaned, "it was given back"


async def test_a_lease_runs_out_for_its_holder_first(pair):
    """Its end is counted from before it was asked for; only then can somebody else have it."""
    a, b = pair
    loop = asyncio.get_running_loop()
    before = loop.time()
    lease = await a.acquire("x", "a", 0.2)
    assert lease is not None
    assert before + 0.2 <= lease.until <= loop.time() + 0.2
    before = loop.time()
    renewed = await a.renew(lease, 0.3)
    assert renewed is not None
    assert renewed.epoch == lease.epoch
    assert before + 0.3 <= renewed.until <= loop.time() + 0.3
    taken = await soon(lambda: b.acquire("x", "b", 60.0))
    assert loop.time() >= renewed.until
    assert taken.epoch > renewed.epoch
    assert await a.renew(renewed, 60.0) is None
    assert await a.acquire("x", "a", 60.0) is None


async def test_a_lease_that_is_renewed_does_not_run_out(pair):
    """For as long as its holder goes on."""
    a, b = pair
    loop = asyncio.get_running_loop()
    lease = await a.acquire("x", "a", 1.0)
    end = lease.until + 0.2
    while loop.time() < end:
        lease = await a.renew(lease, 1.0)
        assert lease is not None
        assert await b.acquire("x", "b", 1.0) is None
        await asyncio.sleep(0.1)


async def test_a_lease_given_back_cannot_be_renewed(log):
    """It has to be taken again."""
    lease = await log.acquire("x", "a", 60.0)
    await log.release(lease)
    assert await log.renew(lease, 60.0) is None
    again = await log.acquire("x", "a", 60.0)
    assert again.epoch > lease.epoch
    assert await log.renew(lease, 60.0) is None


async def test_facts_are_fenced_by_a_lease(pair):
    """Who has lost it changes nothing, however late the request comes."""
    a, b = pair
    old = await a.acquire("x", "a", 60.0)
    assert await a.put({"fact": b"1"}, lease=old)
    await a.release(old)
    assert not await a.put({"fact": b"2"}, lease=old), "it was given back"
    new = await b.acquire("x", "b", 60.0)
    assert not await a.put({"fact": b"2"}, lease=old), "somebody else has it"
    assert await b.put({"fact": b"3"}, lease=new)
    assert not await b.put({"fact": b"4"}, lease=replace(new, name="unknown"))
    version = (await b.facts())["fact"].version
    assert not await b.put({"fact": b"4"}, lease=new, expect={"fact": version + 1})
    assert not await b.put({"fact": b"4"}, lease=old, expect={"fact": version})
    assert await b.facts() == {"fact": Fact(b"3", version)}
    renewed = await b.renew(new, 60.0)
    assert await b.put({"fact": b"5"}, lease=renewed, expect={"fact": version})


async def test_of_those_who_want_a_lease_at_once_one_gets_it(store):
    """Also when it has just been given back."""
    opener = store()
    logs = [await opener() for _ in range(4)]
    epoch = 0
    for _ in range(3):
        got = await asyncio.gather(*(log.acquire("x", str(i), 60.0) for i, log in enumerate(logs)))
        (lease,) = [one for one in got if one is not None]
        assert lease.epoch > epoch
        epoch = lease.epoch
        await logs[got.index(lease)].release(lease)


# --- life ---------------------------------------------------------------------------------------------------


async def test_everything_is_there_after_opening_again(store):
    """Numbers, versions, operations and epochs go on."""
    opener = store()
    log = await opener()
    await log.append([mutation(1), mutation(2)])
    await log.trim(1)
    await log.put({"x": b"1"})
    lease = await log.acquire("lease", "a", 60.0)
    await log.release(lease)
    facts, entries, revision = await log.facts(), await log.read(1), await log.changed(0)
    await log.aclose()
    again = await opener()
    assert await again.bounds() == Bounds(2, 2, 4)
    assert await again.read(1) == entries
    assert await again.facts() == facts
    assert await again.changed(0) >= revision
    assert await again.append([mutation(1), mutation(3)]) == [1, 3]
    assert (await again.acquire("lease", "b", 60.0)).epoch > lease.epoch


async def test_a_closed_log_says_so(store):
    """Also to who waits; closing twice does no harm."""
    opener = store()
    log, other = await opener(), await opener()
    waiting = asyncio.ensure_future(log.changed(await log.changed(0)))
    await asyncio.wait([waiting], timeout=0.02)
    await log.aclose()
    await log.aclose()
    with pytest.raises(LogUnavailable):
        await waiting
    for use in (
        lambda: log.append([mutation(1)]),
        lambda: log.read(0),
        log.bounds,
        log.facts,
        lambda: log.put({"x": b"1"}),
        lambda: log.acquire("x", "a", 1.0),
        lambda: log.changed(0),
    ):
        with pytest.raises(LogUnavailable) as caught:
            await use()
        assert not caught.value.sent
    assert await other.bounds() == Bounds(1, 0, 0)
