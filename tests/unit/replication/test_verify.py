"""Clusters compared while they are written to, mended, and adopted; in virtual time."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from haclient.errors import ConfigError, WriteRefused
from haclient.milvus.shape import read_shape
from haclient.replication.adopt import Adoption
from haclient.replication.audit import Report, audit
from haclient.replication.catalog import fact_of
from haclient.replication.clusters import Delivery
from haclient.replication.hold import position_of
from haclient.replication.position import POSITION, Standing
from haclient.replication.site import SiteFailed
from haclient.replication.verify import Verified, Verifier, wait_applied
from tests import virtual_time
from tests.servers import memory_clusters as memory
from tests.servers.memory_clusters import MemoryClusters
from tests.servers.memory_fleet import SETTINGS, Fleet
from tests.servers.memory_log import MemoryLog

DOCS = ("", "docs")


async def filled(*names: str, rows: int = 300) -> Fleet:
    """A fleet whose clusters all have the collection docs; `Fleet.__aexit__` ends it."""
    fleet = Fleet(*(names or ("a", "b")))
    await fleet.__aenter__()
    await fleet.make("docs", {key: f"row {key}" for key in range(rows)})
    await fleet.in_sync()
    return fleet


def verifier(fleet: Fleet) -> Verifier:
    return Verifier(fleet.clusters, SETTINGS, random.Random(1), fleet.loop, fleet.log)


async def checked(fleet: Fleet, **options: Any) -> Report:
    common = {"holder": "verify", "rng": random.Random(1), "loop": fleet.loop}
    return await audit(fleet.clusters, SETTINGS, fleet.log, **common, **options)


def upsert(fleet: Fleet, cluster: str, values: dict[Any, str], name: str = "docs") -> None:
    """Write to one cluster behind the log's back."""
    fleet.clusters.servers[cluster].answer("Upsert", memory.rows(name, values), "")


def remove(fleet: Fleet, cluster: str, *keys: int) -> None:
    fleet.clusters.servers[cluster].answer("Delete", memory.delete("docs", keys), "")


def text_of(fleet: Fleet, cluster: str, key: int) -> str | None:
    rows = fleet.clusters.servers[cluster].find("default", "docs").rows.get(key)
    return rows[0][1] if rows else None


def test_every_kind_of_difference_is_found_and_nothing_else() -> None:
    async def scenario() -> Verified:
        fleet = await filled("a", "b", "c", rows=1_000)
        remove(fleet, "b", 0, 500, 999)
        upsert(fleet, "b", {-7: "extra", 2_000: "extra"})
        upsert(fleet, "c", {3: "other"})
        told = await verifier(fleet).verify(DOCS)
        await fleet.__aexit__()
        return told

    told = virtual_time.run(scenario())
    assert not told.well
    assert told.differing.keys() == {"b", "c"}
    assert told.differing["b"].keys == {"missing": [0, 500, 999], "extra": [-7, 2_000], "other": []}
    assert told.differing["c"].keys == {"missing": [], "extra": [], "other": [3]}
    assert told.rows == {"a": 1_000, "b": 999, "c": 1_000}
    assert told.equal == 996


@pytest.mark.parametrize("seed", range(5))
def test_what_is_under_way_is_no_difference_and_a_real_one_is_found_among_it(seed: int) -> None:
    async def scenario() -> Verified:
        fleet = await filled()
        rng = random.Random(seed)

        async def slow(cluster: str, method: str, message: bytes) -> Delivery | None:
            await asyncio.sleep(rng.random() * 0.05)
            return None

        async def write() -> None:
            while True:
                keys = rng.sample(range(1, 300), 5)
                await fleet.write("Upsert", memory.rows("docs", {key: f"{rng.random()}" for key in keys}), "log")
                await fleet.write("Delete", memory.delete("docs", [rng.randrange(1, 300)]), "log")
                await asyncio.sleep(rng.random() * 0.3)

        fleet.clusters.hook = slow
        writing = asyncio.create_task(write())
        await asyncio.sleep(0.5)
        upsert(fleet, "b", {0: "really other"})
        told = await verifier(fleet).verify(DOCS)
        writing.cancel()
        await asyncio.wait([writing])
        await fleet.__aexit__()
        return told

    told = virtual_time.run(scenario(), seed)
    assert told.differing["b"].keys == {"missing": [], "extra": [], "other": [0]}


def test_a_cluster_that_is_behind_or_out_is_left_out_and_said_so() -> None:
    async def scenario() -> Verified:
        fleet = await filled("a", "b", "c", "d")
        fleet.clusters.down.add("c")
        fleet.clusters.drained.add("d")
        await fleet.write("Upsert", memory.rows("docs", {1: "newer"}), "one")
        while (await position_of(fleet.log, "c")).standing is not Standing.AWAY:
            await asyncio.sleep(0.1)
        told = await verifier(fleet).verify(DOCS)
        await fleet.__aexit__()
        return told

    told = virtual_time.run(scenario())
    assert told.left_out == {"c": "it is away", "d": "it is drained"}
    assert told.rows.keys() == {"a", "b"}
    assert told.well


def test_what_is_not_the_same_beside_rows_is_a_problem() -> None:
    async def scenario() -> list[list[str]]:
        fleet = await filled()
        for name, on in (("only a", ["a"]), ("released", ["a", "b"])):
            memory.make(fleet.clusters, name, on, {1: "one"})
        fleet.clusters.servers["b"].find("default", "released").loaded = False
        for cluster, column in (("a", "text"), ("b", "words")):
            server = fleet.clusters.servers[cluster]
            server.answer("CreateCollection", memory.collection("other", column=column), "")
        found = [
            (await verifier(fleet).verify(("", name))).problems for name in ("only a", "released", "other", "nowhere")
        ]
        await fleet.__aexit__()
        return found

    missing, released, other, nowhere = virtual_time.run(scenario())
    assert missing == ["cluster b does not have it"]
    assert released == ["it is not loaded on b, so its rows cannot be read"]
    assert any("text" in one or "words" in one for one in other)
    assert len(nowhere) == 2


# Repair.


def test_the_log_says_what_is_right_whoever_is_in_the_majority() -> None:
    async def scenario() -> None:
        fleet = await filled("a", "b", "c")
        await fleet.write("Upsert", memory.rows("docs", {1: "last in the log"}))
        await fleet.write("Delete", memory.delete("docs", [2]))
        await fleet.in_sync()
        for cluster in ("b", "c"):
            upsert(fleet, cluster, {1: "wrong", 2: "wrong"})
        report = await checked(fleet, repair=True)
        assert report.well, report.as_json()
        for cluster in ("a", "b", "c"):
            assert text_of(fleet, cluster, 1) == "last in the log"
            assert text_of(fleet, cluster, 2) is None
        await fleet.in_sync()
        assert fleet.differences() == []
        await fleet.__aexit__()

    virtual_time.run(scenario())


def test_without_the_log_the_majority_says_and_without_one_whom_the_operator_names() -> None:
    async def scenario() -> None:
        fleet = await filled("a", "b", "c")
        upsert(fleet, "c", {700: "only c"})
        upsert(fleet, "a", {800: "a"})
        upsert(fleet, "b", {800: "b"})
        report = await checked(fleet, repair=True)
        one = report.collections[0]
        assert one.repaired is not None
        assert one.repaired.undecided == [800]
        assert "name a cluster with --from" in one.failure
        assert text_of(fleet, "c", 700) is None
        assert [text_of(fleet, cluster, 800) for cluster in "abc"] == ["a", "b", None]
        await fleet.in_sync()
        report = await checked(fleet, repair=True, trusted="b")
        assert report.well, report.as_json()
        assert [text_of(fleet, cluster, 800) for cluster in "abc"] == ["b", "b", "b"]
        await fleet.in_sync()
        assert fleet.differences() == []
        await fleet.__aexit__()

    virtual_time.run(scenario())


@pytest.mark.parametrize("seed", range(5))
def test_a_repair_undoes_nothing_that_is_written_meanwhile(seed: int) -> None:
    async def scenario() -> None:
        fleet = await filled()
        rng = random.Random(seed)
        remove(fleet, "b", *range(0, 300, 7))
        upsert(fleet, "b", dict.fromkeys(range(1, 300, 7), "wrong"))
        fleet.clusters.step_s = 0.005
        last: dict[int, str | None] = {}

        async def write() -> None:
            for turn in range(150):
                key = rng.randrange(300)
                if rng.random() < 0.3:
                    await fleet.write("Delete", memory.delete("docs", [key]), "log")
                    last[key] = None
                else:
                    await fleet.write("Upsert", memory.rows("docs", {key: f"turn {turn}"}), "log")
                    last[key] = f"turn {turn}"
                await asyncio.sleep(rng.random() * 0.02)

        writing = asyncio.create_task(write())
        await checked(fleet, repair=True, trusted="a")
        await writing
        await fleet.in_sync()
        assert fleet.differences() == []
        for key, text in last.items():
            assert text_of(fleet, "a", key) == text_of(fleet, "b", key) == text
        await fleet.__aexit__()

    virtual_time.run(scenario(), seed)


def test_a_collection_that_is_missing_is_not_mended_row_by_row() -> None:
    async def scenario() -> None:
        fleet = await filled()
        del fleet.clusters.servers["b"].collections["default", "docs"]
        report = await checked(fleet, repair=True)
        assert not report.well
        assert report.collections[0].now.problems == ["cluster b does not have it"]
        assert report.collections[0].repaired is None
        with pytest.raises(ConfigError, match="there is no cluster 'x'; write one of a, b"):
            await checked(fleet, repair=True, trusted="x")
        with pytest.raises(ConfigError, match="no cluster has a collection 'x'"):
            await checked(fleet, wanted=["x"])
        await fleet.__aexit__()

    virtual_time.run(scenario())


def test_clusters_are_compared_without_a_log_too() -> None:
    async def scenario() -> None:
        clusters = MemoryClusters("a", "b")
        memory.make(clusters, "docs", ["a", "b"], dict.fromkeys(range(50), "row"))
        clusters.servers["b"].answer("Upsert", memory.rows("docs", {7: "other"}), "")
        loop = asyncio.get_running_loop()
        told = await Verifier(clusters, SETTINGS, random.Random(1), loop).verify(DOCS)
        assert told.differing["b"].keys["other"] == [7]

    virtual_time.run(scenario())


def test_a_cluster_that_stops_meanwhile_ends_the_comparison_with_its_name() -> None:
    async def scenario() -> None:
        fleet = await filled()
        remove(fleet, "b", 1)

        async def stop(cluster: str, method: str) -> None:
            if (cluster, method) == ("b", "Query"):
                fleet.clusters.down.add("b")

        fleet.clusters.asked = stop
        with pytest.raises(SiteFailed, match="cluster b"):
            await verifier(fleet).verify(DOCS)
        await fleet.__aexit__()

    virtual_time.run(scenario())


# Adoption.


async def adopting(fleet: Fleet, most_rows: int = 1_000) -> None:
    description = fleet.clusters.servers["a"].answer("DescribeCollection", b"\x1a\x03old", "")
    await Adoption(verifier(fleet), most_rows).check(read_shape(description), fleet.loop.time() + 10)


def test_a_collection_that_was_there_before_is_taken_only_if_all_have_the_same() -> None:
    async def scenario() -> None:
        fleet = await filled("a", "b")
        memory.make(fleet.clusters, "old", ["a"], {1: "one", 2: "two"})
        with pytest.raises(WriteRefused, match="cluster b does not have it"):
            await adopting(fleet)
        memory.make(fleet.clusters, "old", ["b"], {1: "one"})
        with pytest.raises(WriteRefused, match=r"b \(1 missing, 0 extra, 1 different\)|b \(1 missing, 0 extra, 0"):
            await adopting(fleet)
        upsert(fleet, "b", {1: "one", 2: "two"}, "old")
        await adopting(fleet)
        with pytest.raises(
            WriteRefused, match=r"with 2 rows it is too large .* Run `haclient verify old --adopt` once"
        ):
            await adopting(fleet, most_rows=1)
        fleet.clusters.drained.add("b")
        with pytest.raises(WriteRefused, match=r"not every cluster can be compared: b \(it is drained\)"):
            await adopting(fleet)
        await fleet.__aexit__()

    virtual_time.run(scenario())


def test_the_operator_has_collections_adopted() -> None:
    async def scenario() -> None:
        fleet = await filled("a", "b")
        memory.make(fleet.clusters, "old", ["a", "b"], {1: "one", 2: "two"})
        memory.make(fleet.clusters, "bad", ["a"], {1: "one"})
        report = await checked(fleet, adopt=True, wanted=["old", "bad"])
        assert [(one.found.collection, one.adopted, one.failure) for one in report.collections] == [
            ("bad", False, "cluster b does not have it"),
            ("old", True, ""),
        ]
        facts = await fleet.log.facts()
        assert fact_of(("", "old")) in facts
        assert fact_of(("", "bad")) not in facts
        await fleet.__aexit__()

    virtual_time.run(scenario())


def test_a_log_that_is_trimmed_while_it_is_waited_for_a_cluster() -> None:
    async def scenario() -> None:
        fleet = await filled(rows=3)
        old = await position_of(fleet.log, "a")
        await fleet.write("Upsert", memory.rows("docs", {1: "newer"}))
        await fleet.in_sync()
        new = await position_of(fleet.log, "a")
        await fleet.__aexit__()
        await fleet.log.put({f"{POSITION}a": old.encode()})

        async def move_on(operation: str, when: str) -> None:
            if (operation, when) == ("read", "before"):  # the log is behind the cluster's place as it was read
                looking.hook = None
                await fleet.log.put({f"{POSITION}a": new.encode()})
                await fleet.log.trim(new.low)

        looking = MemoryLog(fleet.store, move_on)
        await wait_applied(looking, "a", DOCS, new.low, fleet.loop)
        assert looking.hook is None

    virtual_time.run(scenario())
