import pytest
from wire_peer import Memory


@pytest.fixture
async def memory(monkeypatch):
    network = Memory(monkeypatch)
    yield network
    for channel in network.channels:
        await channel.aclose()
        assert channel.in_flight == 0
        assert len(channel.deadlines) == 0
