"""One server process of a drill: start, wait until it answers, kill, freeze, stop, start again.

Decision made here: a server belongs to us until it is reaped. It runs in a session of its own (Ctrl-C in
the terminal reaches us, not it), it is killed when we are (``PR_SET_PDEATHSIG``, and ``atexit`` where that
is missing), and its port stays reserved between a kill and a restart. The object is bound to no event
loop, so that one server can outlive many tests.
"""

from __future__ import annotations

import abc
import asyncio
import atexit
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from haclient.errors import HAClientError

#: Seconds between two looks at a process or a port that is not there yet.
POLL_S = 0.02
HOST = "127.0.0.1"

# Runs between fork and exec in place of `preexec_fn`, which is unsafe in a process with threads.
# Signals ignored by us (SIGINT under nohup, SIGPIPE in every Python) would stay ignored in the server.
_LEASH = """
import os, signal, sys
for name in ("SIGINT", "SIGPIPE", "SIGXFSZ"):
    signal.signal(getattr(signal, name), signal.SIG_DFL)
try:
    import ctypes
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
except (ImportError, AttributeError, OSError):
    pass
if os.getppid() != int(sys.argv[1]):
    os._exit(1)
os.execvp(sys.argv[2], sys.argv[2:])
"""


class ServerNotStarted(HAClientError):
    """A server did not come up, or died; the message carries the end of its log."""


class ReservedPort:
    """A free loopback port that nobody else is given while this object is open.

    On Linux a socket that is bound but does not listen keeps the port from being chosen for another
    socket or an outgoing connection, refuses connections, and lets a server that sets SO_REUSEADDR
    (Go, gRPC, Envoy and asyncio do) bind the same port. Elsewhere the port is only likely to stay free.

    Args:
        number: The port wanted; 0 takes any free one.
    """

    def __init__(self, number: int = 0) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            if number:
                # A port asked for by number may still have connections of an earlier run in TIME_WAIT.
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.bind((HOST, number))
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        except OSError:
            self._socket.close()
            raise
        self.number: int = self._socket.getsockname()[1]
        if sys.platform != "linux":
            self._socket.close()

    def close(self) -> None:
        """Give the port back."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<ReservedPort {self.number}>"


class ServerProcess(abc.ABC):
    """A server in a process of its own; an async context manager that starts and ends it.

    A subclass says which `command` to run and how to `check` that it answers. On Linux the server dies with
    the thread that started it, so start servers from a thread that lives as long as they should.

    Args:
        folder: The server's data and log; made if it is missing, left in place at the end.
        port: The port it serves on; 0 takes a free one, which it keeps through restarts.
        name: What messages and the log's file name call it.
        start_timeout_s: How long it may take until it answers.
    """

    #: What asks this server to end by itself.
    stop_signal = signal.SIGTERM

    def __init__(self, folder: Path | str, *, port: int = 0, name: str = "server", start_timeout_s: float = 60) -> None:
        self.folder = Path(folder).absolute()
        self.name = name
        self.start_timeout_s = start_timeout_s
        self.log = self.folder / f"{name}.log"
        self._reserved: list[ReservedPort] = []
        self._wanted_port = port
        self._port = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._frozen = False

    @abc.abstractmethod
    def command(self) -> Sequence[str]:
        """Return the program and its arguments; called at each start."""

    @abc.abstractmethod
    async def check(self) -> None:
        """Return if the server serves; raise anything but cancellation if it does not yet."""

    def environment(self) -> Mapping[str, str]:
        """Return what to add to our own environment."""
        return {}

    def reserve(self) -> int:
        """Reserve one more port until `close`, for a server that needs several."""
        port = ReservedPort()
        self._reserved.append(port)
        return port.number

    @property
    def port(self) -> int:
        """The port it serves on; reserved at the first look."""
        if not self._port:
            reserved = ReservedPort(self._wanted_port)
            self._reserved.append(reserved)
            self._port = self._wanted_port = reserved.number
        return self._port

    @property
    def address(self) -> str:
        """``host:port``."""
        return f"{HOST}:{self.port}"

    @property
    def uri(self) -> str:
        """What pymilvus and haclient take."""
        return f"http://{self.address}"

    @property
    def pid(self) -> int | None:
        """Process id of the server itself, None while it does not run."""
        return self._process.pid if self._process is not None and self.alive else None

    @property
    def alive(self) -> bool:
        """Whether the process exists; a frozen one does."""
        return self._process is not None and self._process.poll() is None

    @property
    def frozen(self) -> bool:
        """Whether it is stopped by `freeze`."""
        return self._frozen and self.alive

    @property
    def exit_code(self) -> int | None:
        """How the last process ended (negative: by that signal), None if it runs or never ran."""
        return None if self._process is None else self._process.poll()

    async def start(self) -> None:
        """Start it and wait until it answers; does nothing if it runs already.

        Raises:
            ServerNotStarted: It died, or did not answer in time. No process is left behind.
        """
        if self.alive:
            return
        self.launch()
        try:
            await self.wait_ready()
        except BaseException:
            await self.kill()
            raise

    def launch(self) -> None:
        """Start the process without waiting for it to answer."""
        self.folder.mkdir(parents=True, exist_ok=True)
        port = self.port  # reserved before the command is asked for, which may name further ports
        leash = [sys.executable, "-I", "-S", "-c", _LEASH, str(os.getpid())]
        with self.log.open("ab") as log:
            log.write(f"--- {self.name} on port {port}\n".encode())
            log.flush()
            self._process = subprocess.Popen(  # noqa: S603 - the command is a subclass' own
                [*leash, *self.command()],
                cwd=self.folder,
                env={**os.environ, **self.environment()},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._frozen = False
        _owned.add(self)

    async def wait_ready(self) -> None:
        """Wait until `check` passes.

        Raises:
            ServerNotStarted: The process ended, or `start_timeout_s` passed.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.start_timeout_s
        last: Exception | None = None
        while loop.time() < deadline:
            if not self.alive:
                raise ServerNotStarted(f"{self.name} ended with code {self.exit_code} before it answered{self._tail()}")
            try:
                async with asyncio.timeout(min(5.0, deadline - loop.time())):
                    await self.check()
            except Exception as error:  # whatever it is, it is not ready yet
                last = error
            else:
                return
            await asyncio.sleep(POLL_S)
        raise ServerNotStarted(
            f"{self.name} at {self.address} did not answer within {self.start_timeout_s:g} s "
            f"(last: {last!r}){self._tail()}"
        )

    async def kill(self) -> None:
        """End it at once (SIGKILL, also a frozen one) and reap it."""
        self.signal(signal.SIGKILL)
        await self._wait_gone()

    async def stop(self, grace_s: float = 10) -> None:
        """Ask it to end, and kill it if it has not after ``grace_s`` seconds."""
        self.signal(self.stop_signal)
        self.thaw()  # a stopped process keeps the signal for later
        try:
            async with asyncio.timeout(grace_s):
                await self._wait_gone()
        except TimeoutError:
            await self.kill()

    async def restart(self) -> None:
        """Start it again on the same port and data; kills it first if it still runs."""
        await self.kill()
        await self.start()

    def freeze(self) -> None:
        """Stop it (SIGSTOP): connections are still accepted by the kernel, nothing is answered."""
        if not self.alive or self._process is None:
            return
        self.signal(signal.SIGSTOP)
        self._frozen = True
        if hasattr(os, "waitid"):  # not on every macOS
            # Every thread has stopped once this returns, so the next request is certain to hang.
            os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def thaw(self) -> None:
        """Let it run on (SIGCONT)."""
        self.signal(signal.SIGCONT)
        self._frozen = False

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process and its children, if it is alive."""
        if self.alive and self._process is not None:
            # It leads its own group. Not reaped yet, so the number cannot be another's.
            os.killpg(self._process.pid, number)

    async def close(self) -> None:
        """Kill it and give its ports back; it can be started again, on another port unless one was asked for."""
        try:
            await self.kill()
        finally:
            for port in self._reserved:
                port.close()
            self._reserved.clear()
            self._port = 0

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        state = "frozen" if self.frozen else "alive" if self.alive else "down"
        return f"<{type(self).__name__} {self.name} port={self._port or None} pid={self.pid} {state}>"

    async def _wait_gone(self) -> None:
        while self.alive:  # noqa: ASYNC110 - a process has no event that every platform and loop can wait for
            await asyncio.sleep(0.002)
        self._frozen = False
        _owned.discard(self)
        self.gone()

    def gone(self) -> None:  # noqa: B027 - most servers leave nothing
        """Clean up what the dead process left outside its folder; called once it is reaped."""

    def _tail(self, lines: int = 20) -> str:
        try:
            text = self.log.read_text(errors="replace")
        except OSError as error:
            return f"; no log: {error}"
        return "; end of " + str(self.log) + ":\n" + "\n".join(line[:300] for line in text.splitlines()[-lines:])


_owned: set[ServerProcess] = set()
_owner = os.getpid()


@atexit.register
def _kill_owned() -> None:
    if os.getpid() != _owner:  # a fork of ours that ends is no reason
        return
    for server in list(_owned):
        server.signal(signal.SIGKILL)
