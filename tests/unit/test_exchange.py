"""Calls that are answered by calling back: what a cancellation at an awkward moment leaves behind."""

import asyncio
import gc
from types import SimpleNamespace

from haclient.call import Call
from haclient.exchange import Exchange
from haclient.milvus.methods import named


async def test_cancelled_before_its_first_step():
    """Nothing is begun, so that no coroutine is left that nobody awaits; nothing is called back."""
    begun, called = [], []

    async def stack(call):
        begun.append(call)

    core = SimpleNamespace(
        _read=lambda call: True,
        loop=asyncio.get_running_loop(),
        fleet=SimpleNamespace(clock=lambda: 0.0),
        _budget=SimpleNamespace(deposit=lambda now: None),
        _quarantine=SimpleNamespace(idle=False),
        _stack=stack,
        _observe=lambda call, answering, start: answering,
        _exchanges=set(),
    )
    exchange = Exchange(core, Call(named("Search"), b"", (), 1.0), called.append)
    exchange.start()
    exchange.cancel()
    await asyncio.gather(*core._exchanges, return_exceptions=True)
    gc.collect()  # an unawaited coroutine would complain now, which is an error here
    assert not begun
    assert not called
    assert not core._exchanges
