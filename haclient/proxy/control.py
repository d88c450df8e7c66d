"""The control channel between the supervisor and a worker: one JSON object per line over a socket pair.

Decision made here: only questions wait. What is told is dropped while the other end does not read, and when the other
end is gone every question fails at once, so neither can hold the other up.

    {"id": 1, "ask": "drain", "value": ["a"]}      a question
    {"id": 1, "ok": null}                          its answer
    {"id": 1, "error": "..."}                      or why there is none
    {"tell": "report", "value": {...}}             something told
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import Any, Final, final

from haclient.errors import HAClientError

#: Longest line, bytes; the metrics of a thousand endpoints are a hundredth of it.
LINE_BYTES: Final = 1 << 26
#: What may wait to be written before what is told is dropped, bytes.
_BACKLOG_BYTES: Final = 1 << 20

#: Answers a question, given what is asked and a value; raises `HAClientError` to refuse.
Answer = Callable[[str, Any], Awaitable[Any]]
#: Hears what is told.
Hear = Callable[[str, Any], None]

_log = logging.getLogger("haclient.proxy")


class Refused(HAClientError):
    """The other end answered that it cannot; the message is its own."""


class NoAnswer(HAClientError):
    """The other end is gone, or took too long."""


@final
class Channel:
    """One end of a control channel; made by `connect`.

    Args:
        reader: Reads lines of at most `LINE_BYTES`.
        writer: Writes them.
        answer: Answers the other end's questions, several at once.
        hear: Hears what the other end tells.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answer: Answer, hear: Hear) -> None:
        self._reader = reader
        self._writer = writer
        self._answer = answer
        self._hear = hear
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._last_id = 0
        self._answering: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Serve this end until the other one is gone, or says what cannot be understood."""
        try:
            while line := await self._reader.readline():
                self._take(json.loads(line))
        except OSError:
            pass  # killed with something unread: gone all the same
        except (ValueError, LookupError, TypeError) as error:
            _log.warning("the control channel broke: %r", error)
        finally:
            for future in self._asked.values():
                future.cancel()
            for task in self._answering:
                task.cancel()
            await asyncio.gather(*self._answering, return_exceptions=True)
            self.close()

    def _take(self, frame: dict[str, Any]) -> None:
        if "ask" in frame:
            task = asyncio.ensure_future(self._respond(frame["id"], frame["ask"], frame.get("value")))
            self._answering.add(task)
            task.add_done_callback(self._answering.discard)
        elif "tell" in frame:
            try:
                self._hear(frame["tell"], frame.get("value"))
            except Exception:
                _log.exception("what the other end told (%s) was lost", frame["tell"])
        elif (future := self._asked.get(frame["id"])) is not None and not future.done():
            if "error" in frame:
                future.set_exception(Refused(frame["error"]))
            else:
                future.set_result(frame["ok"])

    async def _respond(self, number: int, what: str, value: Any) -> None:
        try:
            frame = {"id": number, "ok": await self._answer(what, value)}
        except HAClientError as error:
            frame = {"id": number, "error": str(error)}
        except Exception as error:
            _log.exception("%s failed", what)
            frame = {"id": number, "error": f"{what} failed ({type(error).__name__}); its log says where"}
        line = _line(frame)
        if len(line) > LINE_BYTES:
            line = _line(
                {"id": number, "error": f"the answer to {what} has {len(line)} bytes; {LINE_BYTES} may be sent"}
            )
        self._writer.write(line)

    async def ask(self, what: str, value: Any = None, *, timeout_s: float) -> Any:
        """Ask the other end, and wait for its answer.

        Args:
            what: The question.
            value: What goes with it, as JSON.
            timeout_s: Longest wait, seconds.

        Raises:
            Refused: It cannot.
            NoAnswer: It is gone, or took longer.
        """
        self._last_id += 1
        number = self._last_id
        future = self._asked[number] = asyncio.get_running_loop().create_future()
        try:
            if self._writer.is_closing():
                raise NoAnswer(f"{what}: the other end is gone")
            self._writer.write(_line({"id": number, "ask": what, "value": value}))
            async with asyncio.timeout(timeout_s):
                await asyncio.wait([future])
        except TimeoutError:
            raise NoAnswer(f"{what}: no answer within {timeout_s:g} s") from None
        finally:
            del self._asked[number]
        if future.cancelled():
            raise NoAnswer(f"{what}: the other end went before it answered")
        return future.result()

    def tell(self, what: str, value: Any) -> None:
        """Tell the other end, unless it is gone or does not read."""
        if self._writer.is_closing() or self._writer.transport.get_write_buffer_size() > _BACKLOG_BYTES:
            return
        line = _line({"tell": what, "value": value})
        if len(line) <= LINE_BYTES:
            self._writer.write(line)

    def close(self) -> None:
        """Close this end; `run` ends at the other one."""
        self._writer.close()


async def connect(end: socket.socket, answer: Answer, hear: Hear) -> Channel:
    """Make a channel of one end of a socket pair, which it owns from now on; see `Channel`."""
    reader, writer = await asyncio.open_unix_connection(sock=end, limit=LINE_BYTES)
    return Channel(reader, writer, answer, hear)


def _line(frame: dict[str, Any]) -> bytes:
    return json.dumps(frame, default=str, separators=(",", ":")).encode() + b"\n"
