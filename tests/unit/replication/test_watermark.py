"""Marks: written into clusters, read from them, and what they show."""

import asyncio
import dataclasses

import pytest
from pymilvus.grpc_gen import milvus_pb2, schema_pb2

from haclient.errors import CallError
from haclient.milvus import watermarks
from haclient.replication import watermark
from haclient.replication.clusters import Delivery, Member, Outcome
from haclient.replication.log import BARRIER
from haclient.replication.position import Parked, Position, Standing
from haclient.replication.progress import Progress
from haclient.replication.watermark import Watermark, WatermarkWatch, lost, mark_of, rows_of
from tests.virtual_time import run

DOCS, OTHER, DEEP = ("", "docs"), ("", "other"), ("db", "deep")


class Servers:
    """Clusters that keep rows of marks; implements `Clusters`."""

    def __init__(self, *names):
        self.rows = dict.fromkeys(names)
        self.down = set()
        self.requests = []

    def members(self):
        return [Member(name) for name in self.rows]

    async def deliver(self, cluster, method, message, database, timeout_s):
        await asyncio.sleep(0.001)
        assert database == ""
        self.requests.append((cluster, method.name, message))
        if cluster in self.down:
            return Delivery(Outcome.LATER, reason="down")
        return getattr(self, f"_{method.name}", self._fine)(cluster, message)

    def _fine(self, cluster, message):
        return Delivery(Outcome.DONE)

    def _CreateCollection(self, cluster, message):
        if self.rows[cluster] is not None:
            return Delivery(Outcome.REFUSED, reason="it exists")
        self.rows[cluster] = {}
        return Delivery(Outcome.DONE)

    def _Upsert(self, cluster, message):
        if self.rows[cluster] is None:
            return Delivery(Outcome.REFUSED, reason="no such collection", code=100)
        request = milvus_pb2.UpsertRequest.FromString(message)
        columns = {one.field_name: one for one in request.fields_data}
        assert len(columns["vector"].vectors.float_vector.data) == 2 * request.num_rows
        answer = milvus_pb2.QueryResults(fields_data=request.fields_data).SerializeToString()
        self.rows[cluster] |= {row.stream: row for row in watermarks.read_rows(answer)}
        return Delivery(Outcome.DONE)

    def _Delete(self, cluster, message):
        expression = milvus_pb2.DeleteRequest.FromString(message).expr
        for stream in list(self.rows[cluster]):
            if f'"{stream}"' in expression:
                del self.rows[cluster][stream]
        return Delivery(Outcome.DONE)

    async def ask(self, cluster, method, message, database, timeout_s):
        await asyncio.sleep(0.001)
        if cluster in self.down or self.rows[cluster] is None:
            raise CallError("no", code=100)
        columns = {name: [] for name in ("stream", "seq", "low", "at", "stamp")}
        for row in self.rows[cluster].values():
            for name, value in row._asdict().items():
                columns[name].append(value)
        reply = milvus_pb2.QueryResults()
        for name, values in columns.items():
            field = reply.fields_data.add(field_name=name, type=schema_pb2.Int64)
            (field.scalars.string_data if name == "stream" else field.scalars.long_data).data.extend(values)
        return reply.SerializeToString()


def position(**fields):
    return Position(**{"low": 10, "ahead": {DOCS: 12}, "timestamps": {DOCS: 7, BARRIER: 5}, **fields})


def test_a_mark_says_of_every_stream_what_the_position_does():
    for known in (
        position(),
        position(parked={DEEP: Parked(3, "why")}),
        position(parked={DEEP: Parked(11, "why"), OTHER: Parked(1, "")}, ahead={}),
        Position(),
    ):
        mark = mark_of(rows_of(known, 20, 1_000))
        assert mark is not None
        assert (mark.head, mark.at) == (20, 1_000)
        for stream in (DOCS, OTHER, DEEP, BARRIER):
            assert mark.position.applied(stream) == known.applied(stream)
        assert mark.position.timestamps == known.timestamps
    mark = mark_of(rows_of(position(standing=Standing.RESEEDING), 20, 1_000))
    assert mark is not None
    assert mark.position.standing is Standing.RESEEDING
    assert mark_of([]) is None


def test_what_was_written_is_read_back():
    async def scenario():
        servers = Servers("a")
        mark = Watermark("a", servers, 1.0, lambda: 1_000.5)
        with pytest.raises(CallError):
            await watermark.read("a", servers, 1.0)
        known = position()
        assert await mark.write(known, 20)
        assert known.marked == 10
        found = await watermark.read("a", servers, 1.0, fresh=True)
        assert found is not None
        assert (found.head, found.at) == (20, 1_000_500)
        assert found.position.ahead == {DOCS: 12}

    run(scenario())


def test_only_what_has_changed_is_written():
    async def scenario():
        servers, now = Servers("a"), 0.0
        mark = Watermark("a", servers, 1.0, lambda: now)
        await mark.write(position(), 20)
        servers.requests.clear()
        now = 1.0
        await mark.write(position(low=11), 21)
        (_, name, message), *more = servers.requests
        assert (name, more) == ("Upsert", [])
        assert milvus_pb2.UpsertRequest.FromString(message).num_rows == 1, (
            "the cluster's own row, that somebody is there"
        )
        await mark.write(position(low=11, parked={DOCS: Parked(12, "")}), 21)
        assert servers.rows["a"]["/docs"].low == -1
        await mark.write(Position(low=13), 21)
        assert list(servers.rows["a"]) == ["/"], "what has nothing to say any more is removed"
        servers.requests.clear()
        now = 12.0
        await mark.write(Position(low=13), 21)
        assert [name for _, name, _ in servers.requests] == [
            "CreateCollection",
            "CreateIndex",
            "LoadCollection",
            "Upsert",
        ], "a server that was started anew may have to load it"

    run(scenario())


def test_a_cluster_that_is_away_gets_its_mark_later():
    async def scenario():
        servers = Servers("a")
        servers.down.add("a")
        mark, known = Watermark("a", servers, 1.0, lambda: 1.0), position()
        assert not await mark.write(known, 20)
        assert known.marked == 0
        servers.down.clear()
        assert await mark.write(known, 20)
        servers.rows["a"] = None
        assert not await mark.write(position(), 20), "somebody has dropped it"
        assert await mark.write(position(), 20)
        assert set(servers.rows["a"]) == {"/", "/docs"}
        assert await Watermark("a", servers, 1.0, lambda: 1.0).write(Position(low=13), 20)
        assert set(servers.rows["a"]) == {"/"}, "who takes over tidies up what another has left"

    run(scenario())


def test_lost_data_shows():
    known = position(marked=10)
    behind, even = mark_of(rows_of(position(low=9), 20, 1)), mark_of(rows_of(position(), 20, 1))
    assert lost(None, known), "not even the collection is left"
    assert lost(behind, known)
    assert not lost(even, known)
    assert not lost(even, position(low=99, marked=10)), "it has got further since, and was not marked"
    assert not lost(None, position()), "no mark was ever written"
    assert not lost(mark_of(rows_of(position(low=9, standing=Standing.RESEEDING), 20, 1)), known), "it is being copied"


class Watching:
    """A process that has nothing but marks."""

    def __init__(self, servers, every_s=1.0):
        loop = asyncio.get_running_loop()
        self.progress, self.news = Progress(loop), []
        self.needed = True
        self.watch = WatermarkWatch(servers, self.progress, every_s, lambda: self.needed, self._hear, loop)
        self.task = loop.create_task(self.watch.run())

    def _hear(self):
        self.news.append(self.progress.head)

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


def writing(servers, name, positions, every_s=1.0):
    """Write a cluster's mark each interval."""
    loop = asyncio.get_running_loop()

    async def work():
        mark = Watermark(name, servers, 1.0, loop.time)
        while True:
            await mark.write(dataclasses.replace(positions[name]), positions["head"])
            await asyncio.sleep(every_s)

    return loop.create_task(work())


def test_marks_tell_how_far_clusters_are_and_since_when():
    async def scenario():
        servers, positions = Servers("a", "b"), {"head": 5, "a": Position(low=5), "b": Position(low=5)}
        writers = [writing(servers, name, positions) for name in "ab"]
        loop = asyncio.get_running_loop()
        async with Watching(servers) as watching:
            progress = watching.progress
            await asyncio.sleep(6.5)
            assert progress.head == 5
            assert 0 < loop.time() - progress.fresh_at <= 4, "what is known is some intervals old"
            assert [progress.stale_s(name, DOCS) for name in "ab"] == [0, 0]
            changed_at = loop.time()
            positions |= {"head": 7, "a": Position(low=7)}
            await asyncio.sleep(3)
            assert progress.has("a", DOCS, 7)
            assert not progress.has("b", DOCS, 7)
            assert watching.news == [5, 7], "names may mean something else from there on"
            assert progress.stale_s("a", BARRIER) == 0
            assert loop.time() - changed_at <= progress.stale_s("b", BARRIER) <= loop.time() - changed_at + 4
            for writer in writers:
                writer.cancel()
            await asyncio.gather(*writers, return_exceptions=True)
            stood_at = progress.fresh_at
            await asyncio.sleep(10)
            assert progress.fresh_at <= stood_at + 2, "marks that nobody writes say nothing of now"

    run(scenario())


def test_a_cluster_without_a_mark_is_not_read():
    async def scenario():
        servers = Servers("a", "b")
        servers.rows = {"a": {}, "b": None}
        async with Watching(servers) as watching:
            await asyncio.sleep(3)
            assert watching.progress.standing("a") is Standing.NEEDS_RESEED
            assert watching.progress.standing("b") is None
            assert watching.progress.fresh_at == float("-inf")

    run(scenario())


def test_nobody_is_asked_while_nobody_wants_to_know():
    async def scenario():
        servers, positions = Servers("a"), {"head": 5, "a": Position(low=5)}
        writer = writing(servers, "a", positions)
        async with Watching(servers) as watching:
            watching.needed = False
            await asyncio.sleep(5)
            assert watching.progress.head == 0
            watching.needed = True
            await asyncio.sleep(2)
            assert watching.progress.head == 5
        writer.cancel()
        await asyncio.gather(writer, return_exceptions=True)

    run(scenario())


def test_users_do_not_see_it_in_lists():
    reply = milvus_pb2.ShowCollectionsResponse(
        collection_names=["a", watermarks.COLLECTION, "b"], collection_ids=[1, 2, 3], created_timestamps=[4, 5, 6]
    )
    shown = milvus_pb2.ShowCollectionsResponse.FromString(watermarks.hide(reply.SerializeToString()))
    assert (list(shown.collection_names), list(shown.collection_ids)) == (["a", "b"], [1, 3])
    assert list(shown.created_timestamps) == [4, 6]
    without = milvus_pb2.ShowCollectionsResponse(collection_names=["a"], collection_ids=[1]).SerializeToString()
    assert watermarks.hide(without) is without
