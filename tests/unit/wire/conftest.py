import asyncio

import pytest
import uvloop
from wire_peer import Memory

from haclient.wire.limits import Budget


@pytest.fixture
async def memory(monkeypatch):
    network = Memory(monkeypatch)
    yield network
    for channel in network.channels:
        await channel.aclose()
        assert channel.in_flight == 0
        assert len(channel.deadlines) == 0


@pytest.fixture
def no_refills(monkeypatch):
    """No time passes for budgets, so that a flood is one on a slow machine, too."""
    spend = Budget.spend
    monkeypatch.setattr(Budget, "spend", lambda self, now: spend(self, self._then))


def pytest_asyncio_loop_factories(config, item):
    """Real sockets are tried on both loops."""
    factories = {"asyncio": asyncio.new_event_loop}
    if item.path.name == "test_wire_sockets.py":
        factories["uvloop"] = uvloop.new_event_loop
    return factories
