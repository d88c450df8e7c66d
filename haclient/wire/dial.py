"""Make a TCP, TLS or Unix connection to one target, trying every address its name has now.

Decision made here: the name is resolved at every connect, addresses race with a short stagger (RFC 8305), and
the addresses already in use by sibling connections come last, so that several connections to a name with
several addresses spread over them.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Final, TypeVar, final

from haclient.errors import ConnectFailed

P = TypeVar("P", bound=asyncio.Protocol)
#: Start with the next address when one has not answered for this long (RFC 8305 section 5).
STAGGER_S: Final = 0.25


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where one endpoint is.

    Attributes:
        host: Name or address; "" with a Unix socket.
        port: TCP port.
        unix_path: Path of a Unix socket, instead of host and port.
        tls: Context from `haclient.wire.tls.client_context`, or None for plain text.
        server_name: Name the certificate must carry (and SNI); default is ``host``.
        authority: The ``:authority`` of requests; default is ``host:port``.
    """

    host: str = ""
    port: int = 19530
    unix_path: str = ""
    tls: ssl.SSLContext | None = None
    server_name: str = ""
    authority: str = ""

    def __str__(self) -> str:
        if self.unix_path:
            return f"unix:{self.unix_path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def effective_authority(self) -> str:
        """What goes out as ``:authority``."""
        return self.authority or (self.server_name or "localhost" if self.unix_path else str(self))


async def dial(
    loop: asyncio.AbstractEventLoop, target: Target, factory: Callable[[], P], in_use: Collection[str] = ()
) -> P:
    """Connect and return the protocol made by ``factory``, its transport set.

    Args:
        loop: The running loop.
        target: Where to.
        factory: Makes the protocol.
        in_use: Addresses (``host:port``) to try last.

    Raises:
        ConnectFailed: With what was tried and why it failed.
    """
    if target.unix_path:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        return await _finish(loop, target, factory, await _connect(loop, sock, target.unix_path, target))
    try:
        found = await loop.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ConnectFailed(f"{target}: the name cannot be resolved: {error}") from error
    # One entry per address: a resolver may repeat them.
    addresses: list[tuple[int, Any]] = list({info[4]: (info[0], info[4]) for info in found}.values())
    if not addresses:
        raise ConnectFailed(f"{target}: the name has no address")
    addresses.sort(key=lambda item: f"{item[1][0]}:{item[1][1]}" in in_use)
    sock = await _race(loop, target, _interleave(addresses))
    return await _finish(loop, target, factory, sock)


def _interleave(addresses: list[tuple[int, Any]]) -> list[tuple[int, Any]]:
    """Alternate between address families, first one first (RFC 8305 section 4)."""
    first = [item for item in addresses if item[0] == addresses[0][0]]
    other = [item for item in addresses if item[0] != addresses[0][0]]
    mixed: list[tuple[int, Any]] = []
    for index in range(max(len(first), len(other))):
        mixed += first[index : index + 1] + other[index : index + 1]
    return mixed


async def _connect(loop: asyncio.AbstractEventLoop, sock: socket.socket, address: Any, target: Target) -> socket.socket:
    try:
        sock.setblocking(False)
        await _sock_connect(loop, sock, address)
    except OSError as error:
        sock.close()
        # asyncio's own text repeats the address; the system's says what is wrong.
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise ConnectFailed(f"{target}: cannot connect to {_show(address)}: {reason}") from error
    except BaseException:
        sock.close()
        raise
    return sock


async def _sock_connect(loop: asyncio.AbstractEventLoop, sock: socket.socket, address: Any) -> None:
    """Connect a non-blocking socket.

    Not ``loop.sock_connect``: uvloop's forgets a refused socket only later, and takes the next one, which has the same
    file descriptor, for refused as well.
    """
    if sys.platform == "win32":  # its default loop has no add_writer
        await loop.sock_connect(sock, address)
        return
    code = sock.connect_ex(address)
    if code == errno.EINPROGRESS:
        writable = loop.create_future()
        loop.add_writer(sock.fileno(), _wake, writable)
        try:
            await writable
        finally:
            loop.remove_writer(sock.fileno())
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if code:
        raise OSError(code, os.strerror(code))


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


def _show(address: Any) -> str:
    return f"{address[0]}:{address[1]}" if isinstance(address, tuple) else str(address)


async def _race(loop: asyncio.AbstractEventLoop, target: Target, addresses: list[tuple[int, Any]]) -> socket.socket:
    """Try addresses with a stagger; the first that connects wins."""
    if len(addresses) == 1:
        family, address = addresses[0]
        return await _connect(loop, socket.socket(family, socket.SOCK_STREAM), address, target)
    todo = list(reversed(addresses))
    tasks: set[asyncio.Task[socket.socket]] = set()
    errors: list[str] = []
    winner: socket.socket | None = None
    try:
        while winner is None and (todo or tasks):
            if todo:
                family, address = todo.pop()
                sock = socket.socket(family, socket.SOCK_STREAM)
                tasks.add(loop.create_task(_connect(loop, sock, address, target)))
            done, tasks = await asyncio.wait(
                tasks, timeout=STAGGER_S if todo else None, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                error = task.exception()
                if error is not None:
                    errors.append(str(error))
                elif winner is None:
                    winner = task.result()
                else:
                    task.result().close()
    finally:
        for task in tasks:
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, socket.socket):
                result.close()
    if winner is None:
        raise ConnectFailed("; ".join(errors))
    return winner


async def _finish(loop: asyncio.AbstractEventLoop, target: Target, factory: Callable[[], P], sock: socket.socket) -> P:
    """Put TLS, if any, and the protocol on a connected socket."""
    if sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    options: dict[str, Any] = {}
    if target.tls is not None:
        options = {"ssl": target.tls, "server_hostname": target.server_name or target.host}
    try:
        transport, protocol = await loop.create_connection(factory, sock=sock, **options)
    except ssl.SSLCertVerificationError as error:
        _let_go(loop, sock)
        raise ConnectFailed(
            f"{target}: the server's certificate is not trusted: {error.verify_message} "
            f"(check the CA file and server_name)"
        ) from error
    except (OSError, ssl.SSLError) as error:
        _let_go(loop, sock)
        raise ConnectFailed(f"{target}: TLS handshake failed: {error}") from error
    except BaseException:
        _let_go(loop, sock)
        raise
    if transport.is_closing() and _is_uvloop(loop):
        sock.detach()
    tls = transport.get_extra_info("ssl_object")
    if tls is not None and tls.selected_alpn_protocol() != "h2":
        transport.abort()
        raise ConnectFailed(f"{target}: the server does not speak HTTP/2 over TLS (no ALPN h2)")
    return protocol


def _let_go(loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
    """Give up a socket whose transport has ended before it took the socket over.

    uvloop has closed the descriptor by then and has not told the socket, which would close the same number once more:
    by now it may be another connection's, or a file's.
    """
    if _is_uvloop(loop):
        sock.detach()
    else:
        sock.close()


def _is_uvloop(loop: asyncio.AbstractEventLoop) -> bool:
    return type(loop).__module__.partition(".")[0] == "uvloop"
