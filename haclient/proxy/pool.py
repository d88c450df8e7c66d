"""The workers: one per slot, replaced when they end unasked, exchanged without losing a call.

Decision made here: what workers should be (configuration, drained names) is kept here as a state, and every worker is
brought to it, whether it runs already or comes later; so no message can be missed. What ended workers have counted
stays counted. One process more than is needed has started already, since that takes seconds in which the connections
of a worker that died would wait.
"""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final, final

from haclient.config import Config
from haclient.proxy import control, metrics, settings
from haclient.proxy.journal import Journal
from haclient.proxy.process import Spawn, WorkerProcess
from haclient.proxy.report import Totals
from haclient.proxy.totals import add

#: Wait before a worker is replaced that had not run for long, seconds; doubled each time.
_BACK_OFF_S: Final = 0.25
_MOST_BACK_OFF_S: Final = 5.0
#: Running for this long, seconds, makes up for the crashes before.
_WELL_S: Final = 60.0
#: A worker that has not said anything for so many seconds cannot be expected to serve, or ever to come back.
QUIET: Final = 5
_LOST: Final = 30


@final
class _Slot:
    """A place for a worker, with the socket that stays.

    Attributes:
        current: The worker that has the place; one that is being replaced does not.
        crashes: Workers that ended here unasked, one soon after the other.
    """

    __slots__ = ("crashes", "current", "listening", "number")

    def __init__(self, number: int, listening: socket.socket) -> None:
        self.number = number
        self.listening = listening
        self.current: WorkerProcess | None = None
        self.crashes = 0


@final
class Pool:
    """Keeps one worker in every slot.

    Args:
        config: What the workers are to do.
        sockets: One listening socket per slot, owned from now on.
        journal: Takes events.
        clock: Unix time.
        spawn: Starts a process.

    Attributes:
        config: What the workers do.
        drained: Names of clusters and endpoints that are out of rotation.
        restarts: Workers that were started because one had ended unasked.
        ended_metrics: What ended workers have counted.
        refused: Is given the reason if workers do not take the configuration that they were first started with.
    """

    def __init__(
        self,
        config: Config,
        sockets: Sequence[socket.socket],
        journal: Journal,
        clock: Callable[[], float],
        spawn: Spawn,
    ) -> None:
        self.config = config
        self.drained: frozenset[str] = frozenset()
        self.restarts = 0
        self.ended_metrics: list[metrics.Family] = []
        self.refused: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._slots = [_Slot(i, listening) for i, listening in enumerate(sockets)]
        self._journal = journal
        self._clock = clock
        self._spawn = spawn
        self._ended = Totals()
        self._alive: list[WorkerProcess] = []
        self._spare: WorkerProcess | None = None
        self._preparing = False
        self._served = False
        self._stopping = False
        self._rolling = False
        self._tasks: set[asyncio.Task[None]] = set()

    # What there is.

    @property
    def workers(self) -> list[WorkerProcess]:
        """Every worker whose process runs, by slot, the oldest first."""
        return sorted(self._alive, key=lambda worker: worker.slot)

    @property
    def serving(self) -> list[WorkerProcess]:
        """The workers that take connections and have said something lately."""
        return [worker for worker in self.workers if worker.state == "serving" and worker.silent < QUIET]

    @property
    def complete(self) -> bool:
        """Whether every slot has a worker that serves."""
        return all(slot.current is not None and slot.current.state == "serving" for slot in self._slots)

    def totals(self) -> Totals:
        """Add up what all workers have counted, ended ones too."""
        return add([self._ended, *(worker.report.totals for worker in self._alive)])

    async def measure(self) -> list[metrics.Family]:
        """Add up the metrics of all workers, ended ones too."""
        workers = self.workers
        found = await asyncio.gather(*(worker.measure() for worker in workers))
        # What has ended in the meantime is among the ended by now.
        alive = [(w, part) for w, part in zip(workers, found, strict=True) if w in self._alive]
        parts = [(w.slot if w is self._slots[w.slot].current else None, part) for w, part in alive]
        return metrics.add([(None, self.ended_metrics), *parts])

    # Starting and replacing.

    def start(self) -> None:
        """Start a worker in every slot, in the background."""
        for slot in self._slots:
            self._do(self._fill(slot))

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _fill(self, slot: _Slot) -> None:
        """Put a worker into a slot that has none, however often it takes."""
        while not self._stopping:
            if slot.crashes > 1:
                await asyncio.sleep(min(_BACK_OFF_S * 2.0 ** min(slot.crashes - 2, 16), _MOST_BACK_OFF_S))
            worker = await self._launch(slot)
            if worker is not None:
                await self._place(slot, worker)
                return
            slot.crashes += 1

    async def _place(self, slot: _Slot, worker: WorkerProcess) -> None:
        """Give a slot to a worker that serves; the one that had it finishes."""
        before, slot.current = slot.current, worker
        if before is not None:
            await before.finish(self.config.proxy.grace_s)

    async def _launch(self, slot: _Slot) -> WorkerProcess | None:
        """Start a worker and wait until it serves; None if it failed, which has been told."""
        worker, self._spare = self._spare, None
        try:
            if worker is None or worker.gone:
                worker = await self._new()
        except OSError as error:
            self._failed(slot, f"its process cannot be started: {error.strerror or error}")
            return None
        worker.place(slot.number, self._clock())
        self._alive.append(worker)
        self._do(self._look_after(slot, worker))
        if self._stopping:
            worker.kill()
            return None
        try:
            await self._bring_up(worker)
        except (control.Refused, control.NoAnswer) as error:
            worker.kill()
            if isinstance(error, control.Refused) and not self._served and not self.refused.done():
                self.refused.set_result(str(error))
            elif not self._stopping:
                self._failed(slot, str(error))
            return None
        self._served = True
        status = worker.status()
        self._journal.note("WorkerStarted", "info", f"worker {slot.number} serves", slot=slot.number, pid=status.pid)
        return worker

    async def _new(self) -> WorkerProcess:
        return await WorkerProcess.launch([slot.listening for slot in self._slots], self._journal.hear, self._spawn)

    async def _prepare(self) -> None:
        """Have a process ready for the next slot that needs one."""
        self._preparing = True
        try:
            self._spare = await self._new()
            if self._stopping:
                await self._dismiss()
        except OSError:
            pass  # there will be a better moment
        finally:
            self._preparing = False

    async def _dismiss(self) -> None:
        """Do without the process that was ready."""
        spare, self._spare = self._spare, None
        if spare is not None:
            spare.kill()
            await spare.wait()

    def _failed(self, slot: _Slot, reason: str) -> None:
        text = f"worker {slot.number} did not come up and is started again: {reason}"
        self._journal.note("WorkerFailed", "error", text, slot=slot.number, reason=reason)

    async def _bring_up(self, worker: WorkerProcess) -> None:
        """Start a worker, with whatever changes while it starts."""
        config, drained = self.config, self.drained
        await worker.serve({"config": settings.write(config), "drained": sorted(drained)})
        if self.config is not config:
            await worker.steer("reload", settings.write(self.config))
        if self.drained != drained:
            await worker.steer("drain", sorted(self.drained))

    async def _look_after(self, slot: _Slot, worker: WorkerProcess) -> None:
        """Wait for a worker's end; keep what it has counted, and replace it if it was not to end."""
        code = await worker.wait()
        self._alive.remove(worker)
        self._ended = add([self._ended, worker.report.totals])
        self.ended_metrics = metrics.add([(None, self.ended_metrics), (None, worker.metrics)])
        if slot.current is not worker or self._stopping:
            return
        slot.current = None
        self.restarts += 1
        slot.crashes = 1 if worker.age(self._clock()) >= _WELL_S else slot.crashes + 1
        pid, how = worker.status().pid, _ending(code)
        text = f"worker {slot.number} (process {pid}) {how} unasked and is replaced"
        self._journal.note("WorkerEnded", "error", text, slot=slot.number, pid=pid, code=code)
        await self._fill(slot)

    # Steering.

    def tick(self) -> None:
        """Look at the workers; call it once a second."""
        if self._spare is None and not self._preparing and self.complete and not self._stopping:
            self._do(self._prepare())
        for worker in self._alive:
            worker.silent += 1
            if worker.silent == _LOST and worker.state == "serving":
                text = f"worker {worker.slot} has not said anything for {_LOST} s and is killed"
                self._journal.note("WorkerLost", "error", text, slot=worker.slot)
                worker.kill()

    async def reload(self, config: Config) -> None:
        """Have every worker go over to another configuration, and read TLS files again."""
        self.config = config
        await self._tell_all("reload", settings.write(config))

    async def drain(self, names: frozenset[str]) -> None:
        """Have just these names out of rotation in every worker."""
        self.drained = names
        await self._tell_all("drain", sorted(names))

    async def _tell_all(self, what: str, value: object) -> None:
        workers = [worker for worker in self.workers if worker.state == "serving"]
        answers = await asyncio.gather(*(worker.steer(what, value) for worker in workers), return_exceptions=True)
        for worker, answer in zip(workers, answers, strict=True):
            if isinstance(answer, control.Refused):
                reason = f"worker {worker.slot}: {answer}"
                self._journal.note("ConfigRejected", "error", reason, slot=worker.slot, reason=str(answer))
            elif isinstance(answer, BaseException) and not isinstance(answer, control.NoAnswer):
                raise answer

    async def roll(self) -> None:
        """Replace every worker, one after the other; a connection waits in the socket, or finds both."""
        if self._rolling or self._stopping:
            return
        self._rolling = True
        try:
            await self._dismiss()  # it may have read older files
            for slot in self._slots:
                worker = await self._launch(slot)
                if worker is None:
                    text = "the rolling restart was given up: the workers that were not replaced yet go on"
                    self._journal.note("RollingRestart", "error", text)
                    return
                await self._place(slot, worker)
            self._journal.note("RollingRestart", "info", "every worker was replaced")
        finally:
            self._rolling = False

    async def stop(self, grace_s: float) -> int:
        """Finish the calls under way, and end every worker.

        Returns:
            How many calls were cut off.
        """
        self._stopping = True
        await self._dismiss()
        for slot in self._slots:
            slot.listening.close()  # the workers have the last ones, and close them with nobody left waiting
        for worker in self._alive:
            if worker.state == "starting":
                worker.kill()
        cut = await asyncio.gather(*(worker.finish(grace_s) for worker in self.workers))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        return sum(cut)

    def kill(self) -> None:
        """End every worker at once."""
        for worker in self._alive:
            worker.kill()


def _ending(code: int) -> str:
    if code >= 0:
        return f"ended with code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"
