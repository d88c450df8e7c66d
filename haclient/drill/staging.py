"""A fleet that is there already, to be hurt with its owner's word.

Decision made here: the drill has no shell on its hosts and no way to mend what it breaks there, so it does only what it
can take back by itself: what is between its own load and the servers, its own clients, and a collection of its own that
it makes and drops. Everything else is refused before anything begins.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final, final

from haclient.config import Config
from haclient.config.replication import ETCD
from haclient.config.sources import ETCD_TLS_FILES, TLS_FILES, make_absolute, read_toml
from haclient.drill.faults import FAULTS
from haclient.drill.fleet import Fleet, Say, Target
from haclient.drill.run import Make
from haclient.drill.scenario import Scenario, Topology
from haclient.drill.toxic import ToxicProxy
from haclient.errors import ConfigError
from haclient.sync import MilvusClient

_SHARES: Final = {"upsert": 0.0, "delete": 0.0}
_TARGETS: Final = ("cluster", "clusters")


@final
class StagingFleet(Fleet):
    """The clusters of a configuration file; see `Fleet`.

    Args:
        file: The configuration.
        folder: For the load's files.
        topology: What the scenario says of the load's processes; the rest is what the file says.
        say: Told what is being done.
    """

    engine = "staging"
    lasting = True

    def __init__(self, file: Path, folder: Path, topology: Topology, say: Say = lambda _: None) -> None:
        settings = Config.from_file(file)
        log = settings.replication.log if settings.replication.mode == "mirror" else ""
        known = {
            **topology.model_dump(),
            "clusters": len(settings.clusters),
            "remote": 0,
            "proxies": 0,
            "log": "" if not log else "etcd1" if log.startswith(ETCD) else "sqlite",
            "ack": settings.replication.ack,
        }
        super().__init__(folder, Topology.model_construct(**known), say)
        self._settings = settings
        self._source = file.absolute()
        self._links: dict[str, ToxicProxy] = {}

    @property
    def file(self) -> Path:
        """See `Fleet.file`: its owner's."""
        return self._source

    def config(self, *, direct: bool = False) -> dict[str, Any]:
        """See `Fleet.config`; credentials stay what the file says, names of environment variables included."""
        config = read_toml(self._source, str(self._source))
        folder = self._source.parent
        config.pop("proxy", None)
        make_absolute(config.get("replication", {}), ETCD_TLS_FILES, folder)
        if not str(config.get("replication", {}).get("log", "")).startswith(ETCD):
            make_absolute(config.get("replication", {}), ("log",), folder)
        for table, cluster in zip(config["cluster"], self._settings.clusters, strict=True):
            make_absolute(table, TLS_FILES, folder)
            if not direct:
                endpoint = cluster.endpoints[0]
                scheme = "https" if endpoint.secure or cluster.secure else "http"
                link = self._links[cluster.name]
                table["endpoints"] = [{"name": endpoint.name, "uri": f"{scheme}://{link.address}"}]
                table.setdefault("server_name", endpoint.host) if scheme == "https" else None
        return config

    def _alone(self, name: str) -> dict[str, Any]:
        """What a client of one cluster alone is configured with."""
        config = self.config(direct=True)
        config.pop("replication", None)
        return {**config, "cluster": [table for table in config["cluster"] if table["name"] == name]}

    async def build(self, stack: AsyncExitStack) -> None:
        """See `Fleet.build`: put something in between."""
        for cluster in self._settings.clusters:
            endpoint = cluster.endpoints[0]
            link = await stack.enter_async_context(ToxicProxy(endpoint.port, endpoint.host))
            self._links[cluster.name] = link
            connect = partial(MilvusClient, config=self._alone(cluster.name))
            self.clusters.append(Target(cluster.name, None, link, connect))

    async def whole(self) -> str:
        """See `Fleet.whole`."""
        for cluster in self.clusters:
            try:
                await cluster.ask(lambda client: client.list_collections(timeout=5))
            except Exception as error:
                return f"{cluster.name}: {error}"
        return ""


def staging(file: Path) -> Make:
    """Return what reaches the fleet of a configuration file.

    Raises:
        ConfigError: The file is wrong, or its clusters cannot be reached through something in between.
    """
    for cluster in Config.from_file(file).clusters:
        if any(endpoint.scheme != "tcp" for endpoint in cluster.endpoints):
            raise ConfigError(f"{file}: cluster {cluster.name}: only TCP endpoints can be drilled")

    def make(folder: Path, scenarios: Sequence[Scenario], say: Say) -> Fleet:
        return StagingFleet(file, folder, scenarios[0].topology, say)

    return make


def fitted(scenario: Scenario, file: Path) -> Scenario:
    """Return the scenario with the load that this fleet can take: where nothing is mirrored nobody writes."""
    if Config.from_file(file).replication.mode == "mirror":
        return scenario
    return scenario.model_copy(update={"load": scenario.load.model_copy(update=_SHARES)})


def refuse(scenario: Scenario) -> str:
    """Say why a scenario cannot be run on somebody's fleet, "" if it can."""
    for plan in scenario.fault:
        fault = FAULTS[plan.kind]
        if fault.means == "shell":
            return f"{plan.kind} needs a shell on the servers' hosts"
        if "staging" not in fault.engines:
            return f"{plan.kind} changes what the drill could not put right by itself"
        if plan.target.partition(":")[0] not in _TARGETS:
            return f"target {plan.target}: nothing but the load's own way to the clusters is touched"
    return ""
