"""Workers in the process of the test, on a loop where waiting for time takes none.

The supervisor, the workers, and the control channels between them are the real ones; faked are the server in a worker,
and that a worker is a process.
"""

import asyncio
import itertools
import os
import selectors
import socket
from contextlib import asynccontextmanager

from haclient.call import Call, Kind, Method
from haclient.config import Config
from haclient.errors import ConfigError
from haclient.events import EndpointChanged
from haclient.fleet.model import ClusterView, EndpointView, FleetView
from haclient.proxy import listening, logs
from haclient.proxy.supervisor import Supervisor
from haclient.proxy.worker import Worker

START = 1_000_000.0


class _Leaping(selectors.DefaultSelector):
    """Goes on to the next timer when there is nothing to read; what is sent over a socket pair is there at once."""

    def __init__(self):
        super().__init__()
        self.now = 0.0

    def select(self, timeout=None):
        found = super().select(0)
        if found or timeout == 0:
            return found
        assert timeout is not None, "everything waits, and no timer is set"
        self.now += max(timeout, 1e-9)
        return []


def run(work):
    """Run a test; it must leave no task behind."""

    def make():
        selector = _Leaping()
        loop = asyncio.SelectorEventLoop(selector)
        loop.time = lambda: selector.now
        return loop

    async def all_of():
        await work
        await asyncio.sleep(0.1)  # what was killed last may end
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        assert not rest, f"left behind: {rest}"

    with asyncio.Runner(loop_factory=make) as runner:
        runner.run(all_of())


class _Node:
    def __init__(self, name, cluster):
        self.name = name
        self.cluster = cluster
        self.drained = False


class _Cluster:
    def __init__(self, name):
        self.name = name


class FakeServer:
    """Serves nobody; does and says what the test wants.

    Attributes:
        did: What was asked of it, in order.
        hold: Calls that are under way when it is drained, until `release`.
    """

    def __init__(self, config, bus, plan):
        self.config = config
        self.bus = bus
        self.plan = plan
        self.did = []
        self.ready = True, ""
        self.connections, self.calls, self.memory_bytes, self.shed = 0, 0, 0, 0
        self.released = asyncio.Event()
        self.core = self
        self.fleet = _Fleet(self)
        self.nodes = []
        for cluster in config.clusters:
            named = _Cluster(cluster.name)
            self.nodes += [_Node(endpoint.name, named) for endpoint in cluster.endpoints]

    # As a server.

    async def start(self, listening):
        self.did.append("start")
        self.listening = listening
        listening.listen()
        await self.plan.starting(self)

    def reload(self, config):
        if self.plan.refuse_reload:
            raise ConfigError(self.plan.refuse_reload)
        self.did.append("reload")
        self.config = config

    async def drain(self, grace_s):
        self.did.append("drain")
        if self.calls:
            try:
                async with asyncio.timeout(grace_s):
                    await self.released.wait()
            except TimeoutError:
                return self.calls
            self.calls = 0
        return 0

    async def aclose(self):
        self.did.append("aclose")

    # As its core and its fleet.

    def view(self):
        clusters = [
            ClusterView(
                name, "", 0, 1.0,
                tuple(EndpointView(n.name, n.name, "drained" if n.drained else "up", 0.001, 0) for n in nodes),
            )
            for name, nodes in itertools.groupby(self.nodes, lambda node: node.cluster.name)
        ]  # fmt: skip
        return FleetView(tuple(clusters), 0.0)

    def drained(self):
        return {node.name for node in self.nodes if node.drained}

    # What happens to it.

    def call(self, outcome="ok", *, count=1):
        for _ in range(count):
            self.bus.count(_CALL, outcome, 0.01)

    def lose_endpoint(self):
        self.bus.emit(
            EndpointChanged(at=0.0, cluster="a", endpoint="a1", before="up", after="down", reason="it was killed")
        )


_CALL = Call(Method("Search", "/s/Search", Kind.READ), b"", (), 1.0)


class _Fleet:
    """A server's fleet: its ``drain`` is not the server's."""

    def __init__(self, server):
        self._server = server

    def nodes(self):
        return iter(self._server.nodes)

    def drain(self, name, drained=True):
        found = [node for node in self._server.nodes if name in (node.name, node.cluster.name)]
        if not found:
            raise ConfigError("nothing has that name")
        for node in found:
            node.drained = drained


class _Process:
    """A worker as a task of the test's."""

    def __init__(self, pid, work):
        self.pid = pid
        self.server = None
        self.code = 0
        self.task = asyncio.create_task(work)

    async def wait(self):
        await asyncio.wait([self.task])
        return self.code

    def kill(self):
        self.die(-9)

    def die(self, code):
        """End without a word."""
        if not self.task.done():
            self.code = code
            self.task.cancel()


class Plan:
    """What happens to the workers that are started.

    Attributes:
        servers: Every server made, oldest first.
        processes: Every process started.
        die_at_start: How many of the next workers die while they start.
        refuse_start: Why the next servers do not start.
        refuse_reload: Why no server takes another configuration.
        no_process: How many of the next processes cannot be started.
        go_on: A server starts when this is set.
        may_spawn: A process starts when this is set.
    """

    def __init__(self):
        self.servers = []
        self.processes = []
        self.die_at_start = 0
        self.refuse_start = ""
        self.refuse_reload = ""
        self.no_process = 0
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.may_spawn = asyncio.Event()
        self.may_spawn.set()

    async def starting(self, server):
        await self.go_on.wait()
        if self.refuse_start:
            raise ConfigError(self.refuse_start)
        if self.die_at_start:
            self.die_at_start -= 1
            self.processes[-1].die(1)
            await asyncio.Event().wait()

    async def spawn(self, end, listening):
        await self.may_spawn.wait()
        if self.no_process:
            self.no_process -= 1
            raise OSError(11, "Resource temporarily unavailable")

        def make(config, bus, loop):
            server = FakeServer(config, bus, self)
            self.servers.append(server)
            process.server = server
            return server

        worker = Worker([each.dup() for each in listening], make)
        theirs = socket.socket(fileno=os.dup(end.fileno()))
        process = _Process(1000 + len(self.processes), worker.run(theirs))
        process.task.add_done_callback(lambda _: [each.close() for each in worker._listening])
        self.processes.append(process)
        return process


TEXT = """
[[cluster]]
name = "a"
endpoints = ["a1:1", "a2:1"]
[proxy]
listen = "127.0.0.1:0"
admin = ""
"""


class Proxy:
    """A supervisor that runs, and its plan."""

    def __init__(self, monkeypatch, tmp_path, text=TEXT, workers=2):
        monkeypatch.setattr(logs, "configure", lambda *_: None)  # pytest has its own
        self.file = tmp_path / "haclient.toml"
        self.file.write_text(f"{text}workers = {workers}\n")
        self.plan = Plan()

    @asynccontextmanager
    async def running(self):
        """Start it and wait until every worker serves; stop it at the end."""
        self.start()
        await self.until(lambda: self.supervisor.pool.complete)
        try:
            yield self
        finally:
            for server in self.plan.servers:
                server.released.set()
            self.supervisor.stop()
            self.code = await self.task

    def start(self):
        config = Config.from_file(self.file)
        sockets = listening.bind(config.proxy.listen, config.proxy.workers)
        loop = asyncio.get_running_loop()
        self.clock = lambda: START + loop.time()
        self.supervisor = Supervisor(config, lambda: Config.from_file(self.file), sockets, self.plan.spawn, self.clock)
        self.sockets = sockets
        self.task = asyncio.create_task(self.supervisor.run())

    async def until(self, condition, within_s=600.0):
        async with asyncio.timeout(within_s):
            while not condition():
                await asyncio.sleep(0.01)

    async def crash(self, process, code=-9):
        """End a worker without a word, and wait until another one serves in its place."""
        process.die(code)
        await self.until(lambda: process.pid not in {worker.pid for worker in self.supervisor.fleet().workers})
        await self.until(lambda: self.supervisor.pool.complete)

    def alive(self):
        """The servers of the workers that serve now, by slot."""
        by_pid = {process.pid: process.server for process in self.plan.processes}
        return [by_pid[worker.pid] for worker in self.supervisor.fleet().workers if worker.state == "serving"]

    def events(self, kind=""):
        return [event for event in self.supervisor.recent(0) if kind in ("", event.kind)]
