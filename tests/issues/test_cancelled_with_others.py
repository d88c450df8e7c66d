"""Searches that Milvus 2.3.5 cancels together with one that we gave up are no failures of the server.

It merges searches that wait, so the loser of a hedge took others along; three of them opened the breaker of the only
server that was left, and on a slow machine their retries spent the budget.
"""

import asyncio

import pytest

from haclient.call import Action
from haclient.config import Hedge, Retry
from haclient.events import EndpointChanged
from haclient.milvus.methods import named
from haclient.milvus.status import Flavour, classify
from tests.unit.fleet.fleet_fakes import REAL_ID, Server, World, ask, failure
from tests.virtual_time import run

REASON = (
    "failed to search/query delegator 1 for channel c1: fail to Search, QueryNode ID=1, reason=worker(1) query failed: "
)


@pytest.mark.parametrize(
    ("why", "action"), [("context canceled", Action.DROPPED), ("context deadline exceeded", Action.FAILOVER)]
)
def test_only_a_deadline_counts_against_the_server(why, action):
    verdict = classify(named("Search"), failure(65535, REASON + why), Flavour.REAL)
    assert (verdict.action, verdict.ambiguous) == (action, action is Action.DROPPED)


def test_many_dropped_at_once_are_asked_elsewhere_at_once():
    async def scenario():
        servers = Server(), Server(catalogue={"docs": REAL_ID + 1})
        world = World(*servers, retry=Retry(budget_ratio=0.0, budget_floor=0), hedge=Hedge(enabled=False))
        async with world:
            core = world.core()
            await core.start()
            servers[0].script["Search"] = failure(65535, REASON + "context canceled")
            replies = await asyncio.gather(*(ask(core) for _ in range(200)))
            assert all(reply.code == 0 for reply in replies)
            assert len(servers[0].calls()) > 20, "many were dropped"
            assert len(servers[1].calls()) == 200
            assert not [event for event in world.events if isinstance(event, EndpointChanged) and event.after == "down"]

    run(scenario())
