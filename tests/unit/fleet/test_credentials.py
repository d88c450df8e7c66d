"""One cluster refuses our credentials: its password was changed, or never right."""

from __future__ import annotations

import asyncio
import base64

import pytest

from haclient.call import Reply
from haclient.fleet.breaker import CLOSED
from tests.unit.fleet.fleet_fakes import SEARCH, Server, World, ask, cluster, until
from tests.virtual_time import run

REFUSAL = Reply(b"", 16, "auth check failure, please check username and password are correct")


def checking(password: str) -> Server:
    """A server that takes one password."""

    def guarded(name):
        usual = getattr(Server(), f"_{name}")

        def answer(request):
            given = base64.b64decode(request.metadata.get("authorization", "")).decode()
            return usual(request) if given == f"root:{password}" else REFUSAL

        return answer

    return Server(script={name: guarded(name) for name in ("Connect", "ShowCollections", "Search", "Query")})


def two_clusters(first: str, second: str) -> World:
    clusters = [
        cluster(name, f"s{i}", user="root", password=p) for i, (name, p) in enumerate((("a", first), ("b", second)))
    ]
    return World(checking("right"), checking("right"), clusters=clusters)


def test_reads_go_on_where_the_credentials_are_right():
    async def scenario():
        async with two_clusters("right", "old") as world:
            core = world.core()
            for _ in range(200):
                reply = await ask(core)
                assert reply.code == 0
                await asyncio.sleep(0.01)
            assert len(world.by_address["s1:19530"].calls()) <= 1, "one refusal is enough to know"
            assert all(node.gate.state == CLOSED for node in core.fleet.nodes()), "it is up, only of no use to us"

    run(scenario())


def test_it_takes_part_again_when_its_password_is_right_again():
    async def scenario():
        async with two_clusters("right", "old") as world:
            core = world.core()
            await ask(core)
            stranger = world.by_address["s1:19530"]
            stranger.script = checking("old").script
            denied = next(node for node in core.fleet.nodes() if node.cluster.name == "b")
            await until(lambda: not denied.denied)
            for _ in range(50):
                await ask(core)
            assert stranger.calls()

    run(scenario())


@pytest.mark.parametrize("passwords", [("old", "old"), ("old", "older")])
def test_the_refusal_reaches_the_caller_when_no_credentials_are_right(passwords):
    async def scenario():
        async with two_clusters(*passwords) as world:
            core = world.core()
            for _ in range(5):
                assert (await core.request(SEARCH, b"\x1a\x04docs", (), 5.0)).code == REFUSAL.code
            asked = sum(len(server.calls()) for server in world.by_address.values())
            assert asked <= 5 + 1, "no retry storm"
            assert all(node.gate.state == CLOSED for node in core.fleet.nodes())

    run(scenario())
