"""Clusters that replicate among themselves: roles, writes, reads, and former primaries, over scripted servers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from pymilvus.grpc_gen import common_pb2, milvus_pb2

from haclient.call import Reply
from haclient.config.replication import Replication
from haclient.errors import Unavailable, WriteRefused
from haclient.events import PrimaryChanged
from haclient.external import judge
from haclient.milvus.methods import named
from haclient.milvus.timestamps import BOUNDED, SESSION, STRONG
from tests.unit.fleet.fleet_fakes import INSERT, QUERY, REAL_ID, Server, World, ask, failure, insert, ok, query, until
from tests.virtual_time import run

VIOLATION = "[STREAMING_CODE_REPLICATE_VIOLATION] replicate violation, wrong cluster role"


class Standby:
    """A scripted cluster that replicates: by its own configuration (source by target) it is a primary or a standby."""

    def __init__(self, name: str, sources: Mapping[str, str] = {}, *ids: str, level: int = BOUNDED) -> None:
        self.name, self.sources, self.ids = name, dict(sources), ids or ("s0", "s1")
        self.server = Server(delay_s=0.002, catalogue={"docs": REAL_ID + int(name[1])})
        self.server.script = {
            "GetReplicateConfiguration": lambda _: self._told(),
            "Insert": lambda _: failure(65535, VIOLATION) if self.name in self.sources else ok(),
            "DescribeCollection": lambda request: self._described(request, level),
        }

    def _told(self) -> Reply:
        told = milvus_pb2.GetReplicateConfigurationResponse()
        for one in self.ids:
            told.configuration.clusters.add(cluster_id=one, connection_param={"uri": f"http://{one}:19530"})
        for target, source in self.sources.items():
            told.configuration.cross_cluster_topology.add(source_cluster_id=source, target_cluster_id=target)
        return Reply(told.SerializeToString())

    def _described(self, request: Any, level: int) -> Reply:
        usual = self.server._DescribeCollection(request)
        assert isinstance(usual, Reply)
        found = milvus_pb2.DescribeCollectionResponse.FromString(usual.message)
        found.consistency_level = level
        return Reply(found.SerializeToString())

    def promoted(self, *, alone: bool = False) -> None:
        """It is the primary by its own configuration, with the other one behind it or (forced) alone."""
        self.sources = {} if alone else {("s0" if self.name == "s1" else "s1"): self.name}
        self.ids = (self.name,) if alone else self.ids

    def count(self, method: str) -> int:
        return len(self.server.calls(method))


class Scene:
    """Two clusters, s0 the primary of s1, and a core."""

    def __init__(self, *standbys: Standby, **options: Any) -> None:
        self.clusters = standbys or (Standby("s0", {"s1": "s0"}), Standby("s1", {"s1": "s0"}))
        self.world = World(*(one.server for one in self.clusters), replication=Replication(mode="external"), **options)
        self.core = self.world.core()

    async def __aenter__(self) -> Scene:
        await self.core.start()
        await until(lambda: all(node.found for node in self.core.fleet.nodes()) or True)
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.world.__aexit__(*error)

    async def write(self) -> Reply:
        return await ask(self.core, method=INSERT, message=insert(), timeout_s=5.0)

    async def looked(self) -> None:
        assert self.core.external is not None
        await self.core.external.look()

    def wrote(self) -> list[int]:
        return [one.count("Insert") for one in self.clusters]


@pytest.mark.parametrize(
    ("named_", "fenced", "primary"),
    [
        ({"a": "a", "b": "a"}, (), "a"),
        ({"b": "a"}, (), "a"),
        ({"b": "b"}, (), "b"),
        ({"a": "a", "b": "b"}, (), ""),
        ({"a": "a", "b": "b", "c": "b"}, (), "b"),
        ({"a": "a", "b": "b", "c": "a"}, (), "a"),
        ({"a": "a", "b": "b"}, ("a",), "b"),
        ({"a": "b", "b": "a"}, (), ""),
        ({"a": "b", "b": "c", "d": "b"}, (), ""),
        ({}, (), ""),
    ],
)
def test_who_is_the_primary(named_: dict[str, str], fenced: tuple[str, ...], primary: str) -> None:
    """Whoever most clusters name, unless as many name another or it says itself that it is none."""
    verdict = judge(named_, fenced)
    assert verdict.primary == primary
    assert primary or verdict.why


def test_writes_go_to_the_primary_and_reads_anywhere() -> None:
    async def scenario() -> None:
        async with Scene() as s:
            for _ in range(20):
                assert (await s.write()).message == b"\n\x00"
                await ask(s.core, method=QUERY, message=query(consistency_level=BOUNDED, guarantee_timestamp=2))
            assert s.wrote() == [20, 0]
            assert all(one.count("Query") for one in s.clusters), "a standby takes its share"

    run(scenario())


@pytest.mark.parametrize("level", [STRONG, SESSION])
def test_strong_and_session_reads_go_to_the_primary(level: int) -> None:
    async def scenario() -> None:
        async with Scene() as s:
            for _ in range(10):
                await ask(s.core, method=QUERY, message=query(consistency_level=level, guarantee_timestamp=level))
            assert [one.count("Query") for one in s.clusters] == [10, 0]
            s.clusters[0].server.state = "refused"
            with pytest.raises(Unavailable):
                await ask(s.core, method=QUERY, message=query(consistency_level=STRONG), timeout_s=1.0)
            assert s.clusters[1].count("Query") == 0

    run(scenario())


@pytest.mark.parametrize(("level", "counts"), [(BOUNDED, None), (STRONG, [10, 0])])
def test_a_read_at_the_collections_own_level_goes_where_that_may_be_answered(
    level: int, counts: list[int] | None
) -> None:
    async def scenario() -> None:
        async with Scene(Standby("s0", {"s1": "s0"}, level=level), Standby("s1", {"s1": "s0"}, level=level)) as s:
            for _ in range(10):
                await ask(s.core, method=QUERY, message=query(use_default_consistency=True, guarantee_timestamp=1))
            asked = [one.count("Query") for one in s.clusters]
            assert asked == counts if counts else all(asked)

    run(scenario())


def test_a_write_that_a_former_primary_refuses_goes_to_the_new_one_in_the_same_call() -> None:
    """A planned switch-over between two looks; of an insert, which nobody may get twice."""

    async def scenario() -> None:
        async with Scene() as s:
            await s.write()
            for one in s.clusters:
                one.sources = {"s0": "s1"}
            assert (await s.write()).message == b"\n\x00"
            assert s.wrote() == [2, 1], "once to each"
            changed = s.world.of(PrimaryChanged)
            assert [(one.before, one.after) for one in changed] == [("", "s0"), ("s0", "s1")]

    run(scenario())


def test_a_refusal_without_a_new_primary_is_the_users_to_see() -> None:
    async def scenario() -> None:
        async with Scene() as s:
            s.clusters[0].server.script["Insert"] = failure(65535, VIOLATION)
            assert b"REPLICATE_VIOLATION" in (await s.write()).message
            assert s.wrote() == [1, 0]

    run(scenario())


def test_two_primaries_are_both_not_written_to() -> None:
    async def scenario() -> None:
        first, second = Standby("s0", {"s1": "s0"}), Standby("s1", {})
        async with Scene(first, second) as s:
            with pytest.raises(WriteRefused, match=r"s0 and s1 are both said to be the primary"):
                await s.write()
            with pytest.raises(Unavailable, match="only the primary can answer it"):
                await ask(s.core, method=QUERY, message=query(consistency_level=STRONG))
            await ask(s.core, method=QUERY, message=query(consistency_level=BOUNDED, guarantee_timestamp=2))
            assert s.wrote() == [0, 0]
            s.core.fleet.drain("s0")
            await s.write()
            assert s.wrote() == [0, 1], "the operator has decided"

    run(scenario())


def test_a_former_primary_that_comes_back_as_it_was_is_fenced_until_it_is_told_otherwise() -> None:
    async def scenario() -> None:
        async with Scene() as s:
            old, new = s.clusters
            old.server.state = "refused"
            await s.looked()
            new.promoted(alone=True)
            await s.looked()
            old.server.state = "up"
            await s.looked()
            await s.looked()
            await s.write()
            assert s.wrote() == [0, 1]
            assert s.world.of(PrimaryChanged)[-1].reason == "s0 also claims to be it, and is written to no more"
            new.server.state = "refused"
            await s.looked()
            with pytest.raises(WriteRefused):
                await s.write()
            assert s.wrote()[0] == 0, "not even while it is the only one that answers"
            old.promoted(alone=True)  # by the operator, this time
            await s.looked()
            await s.write()
            assert s.wrote() == [1, 1]

    run(scenario())


def test_clusters_that_do_not_replicate_are_not_written_to() -> None:
    async def scenario() -> None:
        clusters = [Standby("s0"), Standby("s1")]
        for one in clusters:
            one.server.script["GetReplicateConfiguration"] = Reply(b"", 12, "unknown method")
        async with Scene(*clusters) as s:
            with pytest.raises(WriteRefused, match="no cluster tells its replication configuration"):
                await s.write()
            with pytest.raises(WriteRefused, match="send it to that one"):
                await ask(s.core, method=named("UpdateReplicateConfiguration"), message=b"")
            assert s.wrote() == [0, 0]

    run(scenario())


def test_clusters_are_known_by_their_address_where_they_have_other_names() -> None:
    async def scenario() -> None:
        async with Scene() as s:
            for one in s.clusters:
                told = milvus_pb2.GetReplicateConfigurationResponse(
                    configuration=common_pb2.ReplicateConfiguration(
                        clusters=[
                            {"cluster_id": "east", "connection_param": {"uri": "http://s0:19530"}},
                            {"cluster_id": "west", "connection_param": {"uri": "http://s1:19530"}},
                        ],
                        cross_cluster_topology=[{"source_cluster_id": "west", "target_cluster_id": "east"}],
                    )
                )
                one.server.script["GetReplicateConfiguration"] = Reply(told.SerializeToString())
            s.clusters[1].server.script["Insert"] = ok()
            await s.looked()
            await s.write()
            assert s.wrote() == [0, 1]

    run(scenario())
