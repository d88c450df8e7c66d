"""Events as a stream a browser understands (server-sent events, HTML standard section 9.2).

Decision made here: the response owns what it reads from. Frameworks leave a generator behind where its client left,
to be closed by the garbage collector, and with it a subscription.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Final, final

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from haclient.proxy.report import EventReport

#: A quiet stream says this often that it lives, seconds.
KEEP_ALIVE_S: Final = 15.0


@final
class EventStream(StreamingResponse):
    """Server-sent events: ends with them or when the client leaves, and leaves nothing behind.

    Args:
        events: What is told; a comment says that the stream lives while there is nothing.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[EventReport]) -> None:
        self._events = events
        self._lines = self._write()
        super().__init__(self._lines)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send them."""
        self._next = asyncio.ensure_future(anext(self._events))
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._lines.aclose()
            self._next.cancel()
            await asyncio.wait([self._next])
            if isinstance(self._events, AsyncGenerator):
                await self._events.aclose()

    async def _write(self) -> AsyncGenerator[str, None]:
        while True:
            done, _ = await asyncio.wait([self._next], timeout=KEEP_ALIVE_S)
            if not done:
                yield ": nothing new\n\n"
                continue
            try:
                event = self._next.result()
            except StopAsyncIteration:
                return
            yield f"id: {event.id}\ndata: {event.model_dump_json()}\n\n"
            self._next = asyncio.ensure_future(anext(self._events))
