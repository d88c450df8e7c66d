"""A TCP proxy that misbehaves on command.

Decision made here: faults are put on the network side of a healthy server, on live connections, without
root. Each direction of each connection is a queue with a timer; a fault is a frozen value (`Toxics`) that
says when, in what pieces and whether the queue may be delivered, so changing it changes what is already
under way, and nothing but open sockets is there to leak.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, Self, cast, final

from haclient.drill.servers.process import HOST, ReservedPort

Direction = Literal["up", "down"]

#: Bytes that one direction of one connection may hold before its source is no longer read.
HIGH_WATER_BYTES = 256 * 1024


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Toxics:
    """What is done to one direction of every connection; the default does nothing."""

    #: Each piece of data waits so long; throughput is not reduced.
    latency_s: float = 0.0
    #: Up to so much more, drawn per piece; order is kept.
    jitter_s: float = 0.0
    #: Bytes per second for each connection; 0 is no limit.
    bandwidth_bytes_per_s: float = 0.0
    #: Deliver in pieces of at most so many bytes; 0 is no limit.
    slice_bytes: int = 0
    #: Pause between two pieces.
    slice_gap_s: float = 0.0
    #: Data and end-of-stream wait and arrive once this is lifted (a partition that TCP outlives).
    stall: bool = False
    #: Data and end-of-stream are read and thrown away. A connection that lost any is reset when this is lifted.
    drop: bool = False

    def __post_init__(self) -> None:
        for name in ("latency_s", "jitter_s", "bandwidth_bytes_per_s", "slice_bytes", "slice_gap_s"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative")


_NONE = Toxics()


@final
class ToxicProxy:
    """Forwards TCP connections to one target, with faults that can be changed at any moment.

    An async context manager. "up" is from client to target, "down" is from target to client. A target that
    refuses shows as a connection that is accepted and reset; use `refuse` for a true refusal.

    Args:
        target_port: Port of the target.
        target_host: Its host.
        port: Where to listen on loopback; 0 takes a free port, which is kept while it refuses.
        rng: Draws the jitter.
    """

    def __init__(
        self, target_port: int, target_host: str = HOST, *, port: int = 0, rng: random.Random | None = None
    ) -> None:
        self.target = (target_host, target_port)
        self.accepted = 0  #: Connections accepted so far.
        self.bytes_up = 0  #: Bytes delivered to the target.
        self.bytes_down = 0  #: Bytes delivered to clients.
        self._rng = rng or random.Random()
        self._reserved = ReservedPort(port)
        self._toxics: dict[Direction, Toxics] = {"up": _NONE, "down": _NONE}
        self._cuts: dict[Direction, _Cut | None] = {"up": None, "down": None}
        self._wire: tuple[bytes, Callable[[], None]] | None = None
        self._server: asyncio.Server | None = None
        self._links: set[_Link] = set()
        self._closed = False
        self._empty: asyncio.Event | None = None

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._reserved.number

    @property
    def address(self) -> str:
        """``host:port``."""
        return f"{HOST}:{self.port}"

    @property
    def uri(self) -> str:
        """What pymilvus and haclient take."""
        return f"http://{self.address}"

    @property
    def connections(self) -> int:
        """Connections held now, of which one side may be gone."""
        return len(self._links)

    @property
    def up(self) -> Toxics:
        """Faults of requests; assign to change them."""
        return self._toxics["up"]

    @up.setter
    def up(self, toxics: Toxics) -> None:
        self._change("up", toxics)

    @property
    def down(self) -> Toxics:
        """Faults of replies; assign to change them."""
        return self._toxics["down"]

    @down.setter
    def down(self, toxics: Toxics) -> None:
        self._change("down", toxics)

    def delay(self, latency_s: float, jitter_s: float = 0.0) -> None:
        """Delay replies."""
        self.down = replace(self.down, latency_s=latency_s, jitter_s=jitter_s)

    def limit(self, bytes_per_s: float) -> None:
        """Limit the bandwidth of replies, for each connection."""
        self.down = replace(self.down, bandwidth_bytes_per_s=bytes_per_s)

    def drip(self, slice_bytes: int = 1, gap_s: float = 0.05) -> None:
        """Deliver replies a few bytes at a time."""
        self.down = replace(self.down, slice_bytes=slice_bytes, slice_gap_s=gap_s)

    def black_hole(self) -> None:
        """Accept and read, and answer nothing, on connections old and new; the target hears nothing either."""
        self.up, self.down = replace(self.up, drop=True), replace(self.down, drop=True)

    def one_way(self, lost: Direction = "down") -> None:
        """Lose one direction: with "down" the target acts on requests whose replies never arrive."""
        setattr(self, lost, replace(self._toxics[lost], drop=True))

    def partition(self) -> None:
        """Hold everything back in both directions until `heal`; then it arrives, late."""
        self.up, self.down = replace(self.up, stall=True), replace(self.down, stall=True)

    def reset_all(self) -> int:
        """Reset (RST) both sides of every connection; returns how many there were."""
        links = list(self._links)
        for link in links:
            link.reset()
        return len(links)

    def cut_after(self, size: int, direction: Direction = "down", *, times: int | None = None) -> None:
        """Reset a connection once it has carried exactly ``size`` more bytes.

        Args:
            size: Bytes to deliver first, counted on each connection from now or from its start.
            direction: Which direction is counted; "down" breaks in mid-reply.
            times: How many connections to cut; None cuts every one until `heal`.
        """
        self._cuts[direction] = _Cut(size, times)
        for link in self._links:
            link.flow(direction).restart_count()
            link.flow(direction).deliver()

    def trip(self, words: bytes, then: Callable[[], None]) -> None:
        """Call ``then`` whenever a request brings these words, which then never arrives; until `heal`."""
        self._wire = words, then

    def refuse(self) -> None:
        """Close the listener: new connections are refused, existing ones live on."""
        if self._server is not None:
            self._server.close()
            self._server = None

    async def accept(self) -> None:
        """Listen (again) on the same port."""
        if self._server is None:
            loop = asyncio.get_running_loop()
            self._server = await loop.create_server(
                lambda: _Link(self).client, HOST, self.port, reuse_address=True, backlog=1024
            )

    async def heal(self) -> None:
        """Lift every fault; connections that lost data are reset, as nothing else is true to TCP."""
        self._cuts = {"up": None, "down": None}
        self._wire = None
        self.up, self.down = _NONE, _NONE
        await self.accept()

    async def aclose(self) -> None:
        """Close the listener and reset every connection."""
        self.refuse()
        self._closed = True
        dials = [link.dial for link in self._links if link.dial is not None]
        self.reset_all()
        await asyncio.gather(*dials, return_exceptions=True)
        if self._links:  # each leaves when the loop has closed its sockets
            self._empty = asyncio.Event()
            await self._empty.wait()
        self._reserved.close()

    async def __aenter__(self) -> Self:
        try:
            await self.accept()
        except BaseException:
            self._reserved.close()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        host, port = self.target
        state = "accepting" if self._server is not None else "refusing"
        return f"<ToxicProxy {self.port}->{host}:{port} {state} connections={self.connections}>"

    def _change(self, direction: Direction, toxics: Toxics) -> None:
        self._toxics[direction] = toxics
        for link in list(self._links):
            flow = link.flow(direction)
            if flow.lost and not toxics.drop:
                link.reset()
            else:
                flow.deliver()


@final
@dataclass(slots=True)
class _Cut:
    size: int
    times: int | None


@final
class _Link:
    """One client's connection, the connection made for it to the target, and a flow each way."""

    def __init__(self, proxy: ToxicProxy) -> None:
        self.proxy = proxy
        self.client = _Side(self)
        self.server = _Side(self)
        self.up = _Flow(self, "up", self.client, self.server)
        self.down = _Flow(self, "down", self.server, self.client)
        self.client.outgoing, self.client.incoming = self.up, self.down
        self.server.outgoing, self.server.incoming = self.down, self.up
        self.dial: asyncio.Task[None] | None = None

    def flow(self, direction: Direction) -> _Flow:
        return self.up if direction == "up" else self.down

    def opened(self, side: _Side) -> None:
        if side is not self.client:
            self.up.deliver()
            return
        self.proxy.accepted += 1
        self.proxy._links.add(self)
        if self.proxy._closed:  # accepted by the loop before the listener closed
            self.reset()
        elif self.proxy.up.drop and self.proxy.down.drop:
            self.up.lost = True  # a black hole has nothing behind it
        else:
            self.dial = asyncio.get_running_loop().create_task(self._dial())

    async def _dial(self) -> None:
        try:
            await asyncio.get_running_loop().create_connection(lambda: self.server, *self.proxy.target)
        except OSError:
            self.client.reset()
        finally:
            self.dial = None
            self.leave()

    def reset(self) -> None:
        if self.dial is not None:
            self.dial.cancel()
        self.client.reset()
        self.server.reset()

    def leave(self) -> None:
        """Forget this link once both sides are gone."""
        if self.client.gone and self.dial is None and (self.server.gone or self.server.transport is None):
            self.up.stop()
            self.down.stop()
            self.proxy._links.discard(self)
            if self.proxy._empty is not None and not self.proxy._links:
                self.proxy._empty.set()


@final
class _Side(asyncio.Protocol):
    """One of a link's two sockets."""

    outgoing: _Flow  # what this side sends us
    incoming: _Flow  # what it is to get

    def __init__(self, link: _Link) -> None:
        self.link = link
        self.transport: asyncio.Transport | None = None
        self.gone = False
        self.blocked = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.link.opened(self)

    def data_received(self, data: bytes) -> None:
        self.outgoing.push(data)

    def eof_received(self) -> bool:
        self.outgoing.push(b"")
        return True  # the other direction may go on

    def pause_writing(self) -> None:
        self.blocked = True

    def resume_writing(self) -> None:
        self.blocked = False
        self.incoming.deliver()

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone = True
        self.incoming.stop()
        if exc is not None:
            self.outgoing.broke()
        elif not self.outgoing.ended:
            self.outgoing.push(b"")
        self.link.leave()

    def reset(self) -> None:
        """Close with RST: what is still in the socket's buffers is gone (SO_LINGER of zero)."""
        if self.transport is not None and not self.gone:
            linger = struct.pack("ii", 1, 0)
            self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.transport.abort()


@final
class _Flow:
    """One direction of one link: pieces in order of arrival, delivered as the toxics allow."""

    def __init__(self, link: _Link, direction: Direction, source: _Side, sink: _Side) -> None:
        self.link = link
        self.direction: Direction = direction
        self.source = source
        self.sink = sink
        self.ended = False  #: The source has sent its end-of-stream.
        self.lost = False  #: Something was dropped, so what follows would make no sense.
        self._loop = asyncio.get_running_loop()
        self._queue: deque[tuple[float, float, bytes]] = deque()  # arrived, draw in 0..1, data (b"" is the end)
        self._held = 0
        self._free_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._counted = 0
        self._stopped = False

    def push(self, data: bytes) -> None:
        self.ended = self.ended or not data
        if self._stopped:
            return
        wire = self.link.proxy._wire
        if wire is not None and self.direction == "up" and wire[0] in data:
            wire[1]()
            return
        self._queue.append((self._loop.time(), self.link.proxy._rng.random(), data))
        self._held += len(data)
        self.deliver()
        source = self.source.transport
        if self._held > HIGH_WATER_BYTES and source is not None and not source.is_closing():
            source.pause_reading()

    def broke(self) -> None:
        """The source's connection broke: pass that on, unless nothing gets through."""
        toxics = self.link.proxy._toxics[self.direction]
        if toxics.drop or toxics.stall:
            self.lost = True
        else:
            self.sink.reset()

    def restart_count(self) -> None:
        self._counted = 0

    def stop(self) -> None:
        """Nobody is left to deliver to."""
        self._stopped = True
        self._queue.clear()
        self._drained(self._held)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def deliver(self) -> None:
        """Deliver what may be delivered now, and arm the timer for the rest."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        toxics = self.link.proxy._toxics[self.direction]
        if toxics.drop:
            self.lost = self.lost or bool(self._queue)
            self._queue.clear()
            self._drained(self._held)
            return
        while self._queue and not toxics.stall and not self.sink.blocked and self.sink.transport is not None:
            arrived, draw, data = self._queue[0]
            now = self._loop.time()
            due = max(arrived + toxics.latency_s + toxics.jitter_s * draw, self._free_at)
            if due > now:
                self._wait(due, self.deliver)
                return
            if not data:
                self._queue.popleft()
                self._end()
                return
            size, last = self._piece(len(data), toxics)
            if size == 0:
                self._cut()
                return
            self._queue[0] = (arrived, draw, data[size:])
            if size == len(data):
                self._queue.popleft()
            pause = toxics.slice_gap_s if toxics.slice_bytes else 0.0
            if toxics.bandwidth_bytes_per_s:
                pause += size / toxics.bandwidth_bytes_per_s
            self._free_at = now + pause if pause else 0.0
            self._send(data[:size])
            if last:
                self._cut()
                return

    def _piece(self, size: int, toxics: Toxics) -> tuple[int, bool]:
        """How many bytes may go in one piece, and whether the connection is to be cut after it."""
        if toxics.slice_bytes:
            size = min(size, toxics.slice_bytes)
        if toxics.bandwidth_bytes_per_s:
            size = min(size, max(1, int(toxics.bandwidth_bytes_per_s / 100)))  # about 10 ms' worth
        cut = self.link.proxy._cuts[self.direction]
        if cut is None or cut.times == 0 or self._counted + size < cut.size:
            return size, False
        return max(0, cut.size - self._counted), True

    def _send(self, data: bytes) -> None:
        assert self.sink.transport is not None
        self.sink.transport.write(data)
        self._counted += len(data)
        if self.direction == "up":
            self.link.proxy.bytes_up += len(data)
        else:
            self.link.proxy.bytes_down += len(data)
        self._drained(len(data))

    def _cut(self) -> None:
        cut = self.link.proxy._cuts[self.direction]
        if cut is not None and cut.times is not None:
            cut.times -= 1
        self._stopped = True
        self._reset_when_written()

    def _reset_when_written(self) -> None:
        sink = self.sink
        if not sink.gone and sink.transport is not None and sink.transport.get_write_buffer_size():
            self._wait(self._loop.time() + 0.001, self._reset_when_written)
        else:
            self.link.reset()

    def _end(self) -> None:
        """Pass on the source's end-of-stream."""
        sink = self.sink
        if sink.gone or sink.transport is None:
            return
        if self.source.gone:
            sink.transport.close()
        elif sink.transport.can_write_eof():
            sink.transport.write_eof()
            if sink.outgoing.ended and not sink.outgoing._queue:
                sink.transport.close()
                if self.source.transport is not None:
                    self.source.transport.close()

    def _drained(self, size: int) -> None:
        was_full = self._held > HIGH_WATER_BYTES
        self._held -= size
        source = self.source.transport
        if was_full and self._held <= HIGH_WATER_BYTES and source is not None and not source.is_closing():
            source.resume_reading()

    def _wait(self, when: float, then: Callable[[], None]) -> None:
        self._timer = self._loop.call_at(when, then)
