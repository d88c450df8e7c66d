"""A mutation that a cluster refuses: void for all, or that cluster's own trouble."""

from __future__ import annotations

import asyncio

from haclient.replication.clusters import Member
from haclient.replication.log import Stream
from haclient.replication.position import POSITION, Parked, Position, Standing
from haclient.replication.refusals import REFUSED, Refusal, Verdict, forgotten, refuse, settle, void_entries
from haclient.replication.roles import decided
from tests.servers.memory_log import MemoryLog, MemoryStore
from tests.virtual_time import run

A: Stream = ("", "a")
MEMBERS = ["x", "y", "z"]
XY = [Member("x"), Member("y")]


def refused_by(*clusters: str) -> Refusal:
    return Refusal(dict.fromkeys(clusters, "no"))


def test_everybody_refuses_it() -> None:
    positions = {name: Position(low=4) for name in MEMBERS}
    assert settle(refused_by("x", "y"), positions, "x", A, 5) == (Verdict.WAIT, [])
    assert settle(refused_by(*MEMBERS), positions, "x", A, 5) == (Verdict.VOID, [])


def test_another_one_has_it() -> None:
    positions = {"x": Position(low=4), "y": Position(low=5)}
    assert settle(refused_by("x"), positions, "x", A, 5) == (Verdict.PARK, [])


def test_who_is_away_and_has_not_begun_it_does_not_count_if_it_stays_so() -> None:
    away = Position(low=3, standing=Standing.AWAY, begun=4)
    assert settle(refused_by("x"), {"x": Position(low=4), "y": away}, "x", A, 5) == (Verdict.VOID, ["y"])
    away.begun = 5
    assert settle(refused_by("x"), {"x": Position(low=4), "y": away}, "x", A, 5) == (Verdict.WAIT, [])


def test_who_is_away_may_have_the_collection_that_another_one_lacks() -> None:
    """A cluster that has lost its disk does not talk the others out of what was acknowledged."""
    positions = {"x": Position(low=4), "y": Position(low=3, standing=Standing.AWAY, begun=4)}
    assert settle(refused_by("x"), positions, "x", A, 5, lacks=True) == (Verdict.WAIT, [])
    assert settle(refused_by("x", "y"), positions, "x", A, 5, lacks=True) == (Verdict.VOID, [])


def test_who_stopped_before_it_or_is_copied_does_not_count() -> None:
    parked = Position(low=9, parked={A: Parked(4, "no")})
    copied = Position(standing=Standing.RESEEDING)
    positions = {"x": Position(low=4), "y": parked, "z": copied}
    assert settle(refused_by("x"), positions, "x", A, 5) == (Verdict.VOID, ["y"])
    parked.parked[A].reason = ""
    assert settle(refused_by("x"), positions, "x", A, 5)[0] is Verdict.WAIT, "it is on its way again"


def test_what_is_settled_stays_settled() -> None:
    void = Refusal({"y": "no"}, b"", void=True)
    assert settle(void, {"x": Position(low=4), "z": Position(low=7)}, "x", A, 5) == (Verdict.VOID, [])


def test_who_follows_is_not_waited_for() -> None:
    positions = {"x": Position(low=4), "far": Position(low=2, begun=7, follows=0)}
    assert settle(refused_by("x"), positions, "x", A, 5, following=["far"]) == (Verdict.VOID, [])
    assert settle(refused_by("x"), positions, "x", A, 5, lacks=True, following=["far"]) == (Verdict.VOID, [])
    assert settle(refused_by("x"), positions, "x", A, 5) == (Verdict.WAIT, []), "it counts by now"


def test_what_a_cluster_has_or_may_have_since_it_counted_is_not_void() -> None:
    """A main cluster that follows since a failover: it has not heard of it, is away, has come back."""
    positions = {"x": Position(low=4), "old": Position(low=4, begun=4)}
    assert settle(refused_by("x"), positions, "x", A, 5, following=["old"]) == (Verdict.WAIT, [])
    positions["old"] = Position(low=4, begun=4, standing=Standing.AWAY)
    assert settle(refused_by("x"), positions, "x", A, 5, following=["old"]) == (Verdict.VOID, ["old"])
    positions["old"] = Position(low=4, begun=5, standing=Standing.AWAY)
    assert settle(refused_by("x"), positions, "x", A, 5, following=["old"]) == (Verdict.PARK, [])
    positions["old"] = Position(low=4, begun=5, follows=5)
    assert settle(refused_by("x"), positions, "x", A, 5, following=["old"]) == (Verdict.WAIT, [])
    assert settle(refused_by("x", "old"), positions, "x", A, 5, following=["old"]) == (Verdict.VOID, [])
    positions["old"] = Position(low=5, follows=3)
    assert settle(refused_by("x"), positions, "x", A, 5, following=["old"]) == (Verdict.PARK, [])


def test_a_failover_meanwhile_is_taken_into_account() -> None:
    """The cluster that was to be passed over counts when the decision is written."""

    async def scenario() -> None:
        store = MemoryStore()
        log = MemoryLog(store)
        await log.open()
        far = Member("far", asynchronous=True)
        positions = {"x": Position(low=4), "far": Position(low=4, follows=0)}
        await log.put({f"{POSITION}{name}": one.encode() for name, one in positions.items()})
        turned = False

        async def meanwhile(operation: str, side: str) -> None:
            nonlocal turned
            if operation == "put" and side == "before" and not turned:
                turned = True
                assert await MemoryLog(store).put(decided([XY[0], far], ["x", "far"]))

        racing = MemoryLog(store, hook=meanwhile)
        assert await refuse(racing, [XY[0], far], "x", A, 5, "no", b"") is Verdict.WAIT
        assert turned

    run(scenario())


def test_a_cluster_that_comes_back_meanwhile_prevents_it() -> None:
    """The position relied upon changes between the look and the decision."""

    async def scenario() -> None:
        store = MemoryStore()
        log = MemoryLog(store)
        await log.open()
        away = Position(low=3, standing=Standing.AWAY, begun=4)
        await log.put({f"{POSITION}x": Position(low=4).encode(), f"{POSITION}y": away.encode()})
        back = Position(low=3, begun=4).encode()
        turned = False

        async def meanwhile(operation: str, side: str) -> None:
            nonlocal turned
            if operation == "put" and side == "before" and not turned:
                turned = True
                assert await MemoryLog(store).put({f"{POSITION}y": back})

        racing = MemoryLog(store, hook=meanwhile)
        assert await refuse(racing, XY, "x", A, 5, "no", b"reply") is Verdict.WAIT
        assert turned
        assert await refuse(log, XY, "y", A, 5, "nor I", b"other") is Verdict.VOID
        void = void_entries(await log.facts(REFUSED))
        assert (list(void), void[5].reply) == ([5], b"reply"), "the user gets the first server's words"
        assert forgotten(await log.facts(REFUSED), 6) == {f"{REFUSED}5": None}
        assert forgotten(await log.facts(REFUSED), 5) == {}

    run(scenario())


def test_who_passes_over_a_void_entry_has_not_applied_it() -> None:
    """Seed 37 of the simulation: the last of three that all refused an entry was parked."""

    async def scenario() -> None:
        store = MemoryStore()
        log = MemoryLog(store)
        await log.open()
        await log.put({f"{POSITION}x": Position(low=4).encode(), f"{POSITION}y": Position(low=4).encode()})
        assert await refuse(log, XY, "x", A, 5, "no", b"") is Verdict.WAIT
        turned = 0

        async def meanwhile(operation: str, side: str) -> None:
            nonlocal turned
            turned += 1
            if turned == 2:  # x has asked its first question
                other = MemoryLog(store)
                assert await refuse(other, XY, "y", A, 5, "nor I", b"") is Verdict.VOID
                await other.put({f"{POSITION}y": Position(low=5).encode()})

        racing = MemoryLog(store, hook=meanwhile)
        assert await refuse(racing, XY, "x", A, 5, "no", b"") is Verdict.VOID

    run(scenario())


def test_clusters_that_are_gone_are_not_waited_for() -> None:
    async def scenario() -> None:
        log = MemoryLog(MemoryStore())
        await log.open()
        await log.put({f"{POSITION}x": Position(low=4).encode(), f"{POSITION}old": Position(low=1).encode()})
        assert await refuse(log, XY[:1], "x", A, 5, "no", b"") is Verdict.VOID
        await asyncio.sleep(0)

    run(scenario())
