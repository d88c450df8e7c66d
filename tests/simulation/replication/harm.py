"""What goes wrong in a run, and how it is made well again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from haclient.replication.roles import decided
from tests.simulation.replication import world as states
from tests.simulation.replication.client import Client
from tests.simulation.replication.processes import Process
from tests.simulation.replication.scenario import Fault

if TYPE_CHECKING:
    from tests.simulation.replication.run import Run


class Harm:
    """The faults of a run."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._ahead: list[Any] = []

    def begin(self) -> None:
        """Let them come."""
        run = self._run
        self._ahead = [run.world.later(fault.at, self._happen, fault) for fault in run.scenario.faults]
        self._ahead += [run.world.later(at, self._fail_over, counted) for at, counted in run.scenario.failovers]

    def curse(self) -> None:
        """Have clusters refuse, or die of, what they are to."""
        for operation, cluster, what in self._run.scenario.curses:
            server = self._run.world.servers[cluster]
            (server.refuses if what == "refuses" else server.dies_of).update(operation.marks)

    def end(self) -> None:
        """Make everything well but for the curses."""
        run = self._run
        run.world.say("all is well but for what is refused")
        run.log.clear()
        for timer in self._ahead:
            timer.cancel()
        for server in run.world.servers.values():
            server.armed, server.slow = "", 1.0
            server.blocked = server.flaky = server.mute = False
            if server.drained:
                self._drain(server.name, False)
            if server.state != states.UP:
                server.set(states.UP)
        for client in run.clients:
            if client.process is not None:
                client.process.spare()
                self._go_on(client.process)

    def lift(self) -> None:
        """Take the curses away."""
        self._run.world.say("nothing is refused any more")
        for server in self._run.world.servers.values():
            server.refuses.clear()
            server.dies_of.clear()

    def _happen(self, fault: Fault) -> None:
        if fault.what.startswith("log"):
            self._log(fault)
        elif isinstance(fault.who, int):
            self._process(fault)
        else:
            self._server(fault)

    def _fail_over(self, counted: tuple[str, ...]) -> None:
        """Decide who counts, as an operator does who does not wait."""
        run = self._run
        run.world.say(f"from now on {', '.join(counted)} count")
        run.checker.failed_over(counted)
        assert run.store.put(decided(run.world.members, counted), {}, None)

    # Clusters.

    def _server(self, fault: Fault) -> None:
        world = self._run.world
        server, what = world.servers[fault.who], fault.what
        world.say(f"{server.name}: {what} for {fault.for_s:.3f}")
        if what == "crash":
            server.crash(fault.for_s)
        elif what in (states.STOPPED, states.NOT_READY):
            if server.state == states.UP:
                server.set(what)
                world.later(fault.for_s, self._mend, server, what)
        elif what == "slow":
            server.slow = 20.0 + 200.0 * world.draw()
            world.later(fault.for_s, setattr, server, "slow", 1.0)
        elif what in ("blocked", "flaky", "mute"):
            setattr(server, what, True)
            world.later(fault.for_s, setattr, server, what, False)
        elif what == "reset":
            server.reset()
        elif what == "arm":
            server.armed = "before" if world.draw() < 0.4 else "after"
        elif what == "drain":
            self._drain(server.name, True)
            world.later(fault.for_s, self._drain, server.name, False)

    @staticmethod
    def _mend(server: states.Server, state: str) -> None:
        if server.state == state:
            server.set(states.UP)

    def _drain(self, name: str, drained: bool) -> None:
        run = self._run
        run.world.servers[name].drained = drained
        run.world.look()
        run.checker.drained_at[name] = run.loop.time()

    # Processes.

    def _process(self, fault: Fault) -> None:
        client = self._run.clients[fault.who]
        process = client.process
        if process is None or not process.alive:
            return
        if fault.what == "die":
            process.after(fault.count, self._die, client, process, fault.for_s)
        elif fault.what == "stop process":
            process.after(fault.count, self._stop, process, fault.for_s)
        elif client.closing is None:
            client.closing = process.create_task(self._close(client, process, fault.for_s))

    def _die(self, client: Client, process: Process, down_s: float) -> None:
        run = self._run
        if process.alive and client.closing is None:
            run.world.say(f"{process.name} dies")
            process.die()
            run.checker.restless = True
            run.world.died(process)
            run.disturbed(process)
            run.world.later(down_s, client.start)

    def _stop(self, process: Process, for_s: float) -> None:
        run = self._run
        if process.alive and not process.stopped:
            run.world.say(f"{process.name} is stopped")
            process.stop()
            run.checker.restless = True
            run.disturbed(process)
            run.world.later(for_s, self._go_on, process)

    def _go_on(self, process: Process) -> None:
        if process.alive and process.stopped:
            self._run.world.say(f"{process.name} goes on")
            process.go_on()

    async def _close(self, client: Client, process: Process, down_s: float) -> None:
        """End a process in good order, and start it again."""
        run = self._run
        run.disturbed(process)
        await client.aclose()
        run.world.say(f"{process.name} has closed")
        client.closing = client.process = None
        run.world.later(down_s, client.start)

    # The log.

    def _log(self, fault: Fault) -> None:
        run = self._run
        run.world.say(f"{fault.what} for {'all' if fault.who is None else fault.who} for {fault.for_s:.3f}")
        run.log[fault.who] = fault.what
        run.disturbed(None)
        run.world.later(fault.for_s, run.log.pop, fault.who, None)
