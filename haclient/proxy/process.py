"""One worker's process as the supervisor sees it, and how it is started.

Decision made here: a worker inherits the listening sockets, which are the supervisor's, so connections that wait in one
outlive the process that did not come to accept them. Which of them is its own it is told when it is to serve, so that
any process that has started can take any place.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, Literal, Protocol, Self, final

from haclient.proxy import control
from haclient.proxy.metrics import Family
from haclient.proxy.report import Totals, WorkerReport, WorkerStatus

#: A worker that is not up after this time has failed, seconds; it needs 1 to 3.
START_S: Final = 60.0
#: An answer that is not there after this time will not be, seconds.
ANSWER_S: Final = 5.0

_NOTHING_YET: Final = WorkerReport(
    ready=False, reason="it is starting", connections=0, calls=0, memory_bytes=0, totals=Totals(), clusters=[]
)


class Process(Protocol):
    """What is needed of `asyncio.subprocess.Process`."""

    @property
    def pid(self) -> int:
        """Its number."""

    async def wait(self) -> int:
        """Return its exit code when it has ended; negative: the signal that ended it."""

    def kill(self) -> None:
        """End it at once."""


#: Starts a process, given its end of the control channel and the listening socket of every slot.
Spawn = Callable[[socket.socket, Sequence[socket.socket]], Awaitable[Process]]


async def spawn(end: socket.socket, listening: Sequence[socket.socket]) -> Process:
    """Start a worker's process."""
    inherited = [each.fileno() for each in (end, *listening)]
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",  # the folder it runs in is no place to import from
        "-m",
        "haclient.proxy.start",
        *map(str, inherited),
        stdin=asyncio.subprocess.DEVNULL,
        pass_fds=inherited,
        process_group=0,  # Ctrl-C in a terminal is for the supervisor
    )


@final
class WorkerProcess:
    """A worker; made by `launch`.

    Attributes:
        slot: Number of its place, once it has one.
        state: What it is doing.
        report: What it said of itself last.
        metrics: What it answered last when it was asked for its metrics.
        silent: How often it was looked at since it last said anything.
    """

    def __init__(self, process: Process) -> None:
        self.slot = -1
        self.state: Literal["starting", "serving", "draining"] = "starting"
        self.report = _NOTHING_YET
        self.metrics: list[Family] = []
        self.silent = 0
        self._process = process
        self._started = 0.0
        self._killed = False
        self._finishing: asyncio.Task[int] | None = None
        self._channel: control.Channel
        self._reading: asyncio.Task[None]

    @classmethod
    async def launch(
        cls,
        listening: Sequence[socket.socket],
        hear: Callable[[int, Mapping[str, Any]], None],
        start: Spawn,
    ) -> Self:
        """Start a process; it does not serve before it is told how.

        Args:
            listening: The socket of every slot.
            hear: Told of every event that it sees.
            start: Starts the process.

        Raises:
            OSError: The system has no room for it.
        """
        ours, theirs = socket.socketpair()
        worker = None
        try:
            with theirs:
                worker = cls(await start(theirs, listening))
            worker._channel = await control.connect(ours, _nothing_to_ask, worker._hearing(hear))
        except BaseException:
            ours.close()
            if worker is not None:
                worker.kill()
            raise
        worker._reading = asyncio.create_task(worker._channel.run())
        return worker

    def _hearing(self, hear: Callable[[int, Mapping[str, Any]], None]) -> control.Hear:
        def told(what: str, value: Any) -> None:
            self.silent = 0
            if what == "report":
                self.report = WorkerReport.model_validate(value)
            elif what == "event":
                hear(self.slot, value)

        return told

    @property
    def gone(self) -> bool:
        """Whether it has ended, or soon will have."""
        return self._reading.done()

    def place(self, slot: int, now: float) -> None:
        """Give it a place, at a Unix time."""
        self.slot, self._started = slot, now

    async def serve(self, how: Mapping[str, Any]) -> None:
        """Tell it to serve in its place, and how, and wait until it does; see `steer`."""
        await self.steer("start", {"slot": self.slot, **how}, START_S)
        self.state = "serving"

    async def steer(self, what: str, value: Any, timeout_s: float = ANSWER_S) -> None:
        """Have it do something, and hear how it is then; see `haclient.proxy.control.Channel.ask`."""
        self.report = WorkerReport.model_validate(await self._channel.ask(what, value, timeout_s=timeout_s))
        self.silent = 0

    async def measure(self) -> list[Family]:
        """Return its metrics; those of the last time if it does not answer."""
        with suppress(control.NoAnswer, control.Refused):
            self.metrics = await self._channel.ask("metrics", timeout_s=ANSWER_S)
        return self.metrics

    async def finish(self, grace_s: float) -> int:
        """Have it finish the calls under way, and end; who asks again waits for the same end.

        Returns:
            How many calls were cut off.
        """
        if self._finishing is None:
            self.state = "draining"
            self._finishing = asyncio.create_task(self._finish(grace_s))
        return await asyncio.shield(self._finishing)

    async def _finish(self, grace_s: float) -> int:
        try:
            last = await self._channel.ask("finish", grace_s, timeout_s=grace_s + ANSWER_S)
        except (control.NoAnswer, control.Refused):
            cut = self.report.calls
        else:
            cut = last["cut"]
            self.report = WorkerReport.model_validate(last["report"])
            self.metrics = last["metrics"]
        self._channel.close()
        try:
            async with asyncio.timeout(ANSWER_S):
                await self._process.wait()
        except TimeoutError:
            self.kill()
            await self._process.wait()
        return int(cut)

    def kill(self) -> None:
        """End it at once."""
        if not self._killed:  # a second signal could take the exit code from who waits for it
            self._killed = True
            with suppress(ProcessLookupError):
                self._process.kill()

    async def wait(self) -> int:
        """Return its exit code when it has ended and everything it said has been heard."""
        code = await self._process.wait()
        await asyncio.gather(self._reading, return_exceptions=True)
        return code

    def age(self, now: float) -> float:
        """Return how long it has had its place, seconds."""
        return now - self._started

    def status(self) -> WorkerStatus:
        """Say how it is."""
        return WorkerStatus(
            slot=self.slot,
            pid=self._process.pid,
            state=self.state,
            started=self._started,
            connections=self.report.connections,
            calls=self.report.calls,
            memory_bytes=self.report.memory_bytes,
        )


async def _nothing_to_ask(what: str, value: Any) -> Any:
    raise control.Refused(f"{what!r} is nothing that a worker can ask for")
