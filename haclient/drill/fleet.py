"""A fleet to be hurt: clusters, a log, proxies, and the processes of the load.

Decision made here: the load and the proxies reach every cluster and every member of etcd through a `ToxicProxy` in this
process, so any of them can be cut off; the drill itself goes past it. Servers, log and proxies live through many
trials; the load's processes through one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Self, TypeVar, final

from haclient.config import Config
from haclient.drill import rows
from haclient.drill.checker import Contents
from haclient.drill.scenario import Topology
from haclient.drill.servers.process import POLL_S, ServerProcess
from haclient.drill.toxic import ToxicProxy
from haclient.drill.worker import Order, idle_mark
from haclient.errors import ConfigError, HAClientError, LogError
from haclient.replication.engines import open_log
from haclient.replication.log import MutationLog
from haclient.replication.position import POSITION, Position, Standing

T = TypeVar("T")

#: Tells what is being done.
Say = Callable[[str], None]
#: How old a Bounded read may be, seconds.
BOUNDED_S: Final = 5.0
#: Time after which another process takes over from one that has gone silent, seconds.
LEASE_S: Final = 1.5
#: How long clusters may take to catch up once all is well, seconds.
PATIENCE_S: Final = 120.0
#: Where the load is, and the clusters that are not remote.
ZONE: Final = "near"


class DrillError(HAClientError):
    """The drill itself could not be carried out: this says nothing of haclient."""


@final
@dataclass(frozen=True, slots=True)
class Target:
    """Somebody who can be hurt.

    Attributes:
        name: What it is called in configuration and events.
        process: Its process; None if it is not ours.
        link: What the load reaches it through; None if nothing is in between.
        connect: Makes a client of it alone, past haclient's replication; None if it is no cluster.
    """

    name: str
    process: ServerProcess | None = None
    link: ToxicProxy | None = None
    connect: Callable[[], Any] | None = None

    async def ask(self, work: Callable[[Any], T]) -> T:
        """Do something with a client of this cluster alone, in a thread."""

        def do() -> T:
            assert self.connect is not None
            client = self.connect()
            try:
                return work(client)
            finally:
                client.close()

        return await asyncio.to_thread(do)


@final
class LoadProcess(ServerProcess):
    """A process of the load.

    Args:
        folder: Its files.
        order: What it is to do.
        module: What it runs.
    """

    def __init__(self, folder: Path, order: Order, module: str) -> None:
        super().__init__(folder, name=f"w{order.number}")
        self.order = order
        self.module = module

    def command(self) -> Sequence[str]:
        """See `ServerProcess.command`."""
        file = self.folder / f"{self.name}.json"
        file.write_text(json.dumps(asdict(self.order)))
        file.chmod(0o600)  # there may be tokens in it
        return [sys.executable, "-P", "-m", self.module, str(file)]

    def environment(self) -> Mapping[str, str]:
        """See `ServerProcess.environment`."""
        return {"PYTHONPATH": ":".join(path for path in sys.path if path)}  # it finds what we have found

    async def check(self) -> None:
        """See `ServerProcess.check`."""
        if not self._ready():
            raise FileNotFoundError(self.order.history)

    async def finish(self) -> None:
        """End its load, calls under way included; the client goes on."""
        self.signal(signal.SIGUSR1)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(3 * self.order.timeout_s):
                while self.alive and not idle_mark(self.order).exists():  # noqa: ASYNC110 - another process makes it
                    await asyncio.sleep(POLL_S)

    def _ready(self) -> bool:
        # The client opens its file first, and says in it that it is ready.
        file = Path(self.order.history)
        return file.exists() and file.stat().st_size > 0


class Fleet:
    """What a trial needs of a fleet, whoever started it; an async context manager.

    Args:
        folder: Data and logs.
        topology: What it is like.
        say: Told what is being done.
        plants: Bugs that the load's processes have; see `haclient.drill.worker.Order`.

    Attributes:
        clusters: All of them, in order.
        names: The collections of the trial under way.
    """

    #: What the clusters are.
    engine: str
    #: Whether it is there after the drill, so that nothing may be left behind in it.
    lasting = False

    def __init__(
        self, folder: Path, topology: Topology, say: Say = lambda _: None, plants: tuple[str, ...] = ()
    ) -> None:
        self.folder = folder
        self.topology = topology
        self.say = say
        self.clusters: list[Target] = []
        self.processes: list[LoadProcess] = []
        self.names = rows.Names("none")
        self._plants = plants
        self._stack = AsyncExitStack()
        self._log: MutationLog | None = None
        self._started = 0

    # Configurations.

    def config(self, *, direct: bool = False) -> dict[str, Any]:
        """What a member of the fleet is configured with; ``direct`` goes past the links."""
        raise NotImplementedError

    def client_config(self) -> dict[str, Any]:
        """What a process of the load is configured with, unless something else is wanted."""
        return self.config()

    @property
    def file(self) -> Path:
        """A file with the configuration, for commands."""
        return self.folder / "haclient.toml"

    @property
    def log(self) -> MutationLog:
        """The log, for looking at it."""
        assert self._log is not None
        return self._log

    # Its life.

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            self.folder.mkdir(parents=True, exist_ok=True)
            await self.build(stack)
            if self.topology.log:
                await self.open_log()
                stack.push_async_callback(self.close_log)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *exc: object) -> None:
        try:
            await self.stop_load()
        finally:
            await self._stack.aclose()

    async def build(self, stack: AsyncExitStack) -> None:
        """Start, or reach, what there is."""
        raise NotImplementedError

    async def whole(self) -> str:
        """Say what is the matter with it, "" if nothing is."""
        raise NotImplementedError

    async def open_log(self) -> None:
        """Open the log, to look at it."""
        self._log = open_log(Config.load(None, self.config(direct=True)).replication, time.time)
        await self._log.open()

    async def close_log(self) -> None:
        """Close it again."""
        await self.log.aclose()

    # Who can be hurt.

    async def targets(self, spec: str, rng: random.Random) -> list[Target]:
        """Choose whom a fault hurts; see `haclient.drill.scenario.FaultPlan`.

        Raises:
            ConfigError: There is none such in this fleet.
        """
        kind, _, which = spec.partition(":")
        found = await self._candidates(kind)
        if which == "leader":
            found = [await self.leader()]
        elif which and which != "all":
            found = found[int(which) : int(which) + 1] if which.isdecimal() else []
        if not found:
            raise ConfigError(f"target {spec!r}: this fleet has none; its topology is {self.topology!r}")
        return found if kind in ("clusters", "site") or which == "all" else [rng.choice(found)]

    async def _candidates(self, kind: str) -> list[Target]:
        match kind:
            case "cluster" | "clusters":
                return self.clusters
            case "site":
                return self.clusters[len(self.clusters) - self.topology.remote :] if self.topology.remote else []
            case "client":
                return [Target(process.name, process) for process in self.processes]
            case _:
                return []

    async def leader(self) -> Target:
        """The member of the log that leads."""
        raise ConfigError('this log has no leader; write log = "etcd3" in the topology')

    async def revive(self, target: Target) -> None:
        """Start again what was killed."""
        if isinstance(target.process, LoadProcess):
            order = target.process.order
            await self.start_process(target.process.folder, order, target.process.module)
        elif target.process is not None:
            await target.process.start()

    def drain(self, *names: str) -> None:
        """Have the load's processes take these clusters out of rotation, and put all others back."""
        for process in self.processes:
            file = Path(process.order.drained)
            draft = file.with_suffix(".new")
            draft.write_text(json.dumps(names))
            draft.replace(file)

    # The load.

    async def start_load(
        self,
        folder: Path,
        seed: int,
        load: Mapping[str, float],
        *,
        timeout_s: float,
        canaries: Sequence[Mapping[str, Any]] = (),
        configs: Sequence[dict[str, Any]] = (),
        module: str = "haclient.drill.worker",
    ) -> None:
        """Start the processes of the load.

        Args:
            folder: Their files.
            seed: Of their choices.
            load: Calls a second of all together (``rate``), and the shares of the kinds of calls.
            timeout_s: Limit of their calls.
            canaries: Questions whose answers their clients know.
            configs: What each is configured with; as the topology says unless given.
            module: What they run.
        """
        configs = configs or [self.client_config()] * self.topology.clients
        mix = {kind: share for kind, share in load.items() if kind != "rate"}
        rng = random.Random(seed)
        for config in configs:
            order = Order(
                number=0,
                trial=self.names.trial,
                seed=rng.getrandbits(32),
                history="",
                drained=str(folder / "drained.json"),
                config=_with_canaries(config, canaries),
                timeout_s=timeout_s,
                rate=load.get("rate", 0.0) / len(configs),
                mix=mix,
                plants=self._plants,
            )
            await self.start_process(folder, order, module)

    async def start_process(self, folder: Path, order: Order, module: str) -> None:
        """Start one more process of the load."""
        self._started += 1
        number = self._started
        order = replace(order, number=number, history=str(folder / f"{number}.history"), seed=order.seed + number)
        process = LoadProcess(folder, order, module)
        self.processes.append(process)
        await process.start()

    async def finish_load(self) -> None:
        """End their calls, those under way included; they remain members of the fleet."""
        await asyncio.gather(*(process.finish() for process in self.processes))

    async def stop_load(self) -> None:
        """End all of them."""
        try:
            await asyncio.gather(*(process.stop() for process in self.processes))
        finally:
            for process in self.processes:
                await process.close()
            self.processes.clear()

    # What is to be found out.

    async def positions(self) -> dict[str, Position]:
        """How far each cluster is."""
        facts = await self.log.facts(POSITION)
        return {name.removeprefix(POSITION): Position.decode(fact.value) for name, fact in facts.items()}

    async def caught_up(self, patience_s: float = PATIENCE_S) -> str:
        """Wait until every cluster has all that is in the log now; return what is the matter if one never has."""
        if not self.topology.log:
            return ""
        head = None
        matter = "the log does not answer"
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                while matter:
                    await asyncio.sleep(0.05)
                    with contextlib.suppress(LogError):
                        head = (await self.log.bounds()).head if head is None else head
                        matter = await self._behind(head)
        return matter

    async def _behind(self, head: int) -> str:
        positions = await self.positions()
        for cluster in self.clusters:
            position = positions.get(cluster.name)
            if position is None:
                return f"{cluster.name} has no position"
            if position.low < head or position.standing is not Standing.IN_SYNC or position.parked:
                return f"{cluster.name} is at {position}, the log's head is {head}"
        return ""

    async def contents(self) -> dict[str, Contents]:
        """Read every cluster directly."""
        read = (one.ask(lambda client: rows.contents(client, self.names)) for one in self.clusters)
        return dict(zip([one.name for one in self.clusters], await asyncio.gather(*read), strict=True))

    async def command(self, *arguments: str) -> str:
        """Run ``haclient``; return what it prints.

        Raises:
            DrillError: It failed.
        """
        program = [sys.executable, "-P", "-c", "from haclient.cli import main; main()"]
        process = await asyncio.create_subprocess_exec(
            *program,
            *arguments,
            "--config",
            str(self.file),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            output, _ = await process.communicate()
        except BaseException:
            process.kill()
            await process.wait()
            raise
        if process.returncode:
            raise DrillError(f"haclient {' '.join(arguments)} ended with {process.returncode}: {output.decode()}")
        return output.decode()


def _with_canaries(config: dict[str, Any], canaries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {**config, "health": {**config.get("health", {}), "canary": list(canaries)}} if canaries else config
