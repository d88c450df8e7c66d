"""Which clusters and endpoints there are: configured, discovered, recognised, and let go.

Decision made here: an endpoint that is the same before and after a change keeps its connections and all that is
known of it; one that is gone finishes its calls before its connections are closed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import final

from haclient.call import Transport
from haclient.config import ClusterConfig, Config, EndpointConfig
from haclient.errors import ConfigError
from haclient.events import ClusterRecognised, EventBus, FleetReconfigured
from haclient.fleet import identity
from haclient.fleet.breaker import Gate
from haclient.fleet.node import Cluster, Node

#: Makes the transport to one endpoint; ``probe`` asks for the one that carries probes.
Connect = Callable[[ClusterConfig, EndpointConfig, bool], Transport]
#: Told of a gate's transition: node, state before, state after, reason.
GateChanged = Callable[[Node, int, int, str], None]


@final
class Membership:
    """The clusters and endpoints of a fleet.

    Args:
        config: What is configured.
        connect: Makes transports.
        gate_changed: Hears of every gate's transitions.
        bus: Takes events.
        loop: Runs the tasks that close what is gone.
        clock: Loop time in seconds.

    Attributes:
        clusters: In the order configured.
        added: Called with every new endpoint.
        removed: Called with every endpoint that goes.
    """

    def __init__(
        self,
        config: Config,
        connect: Connect,
        gate_changed: GateChanged,
        bus: EventBus,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float],
    ) -> None:
        self.clusters: list[Cluster] = []
        self.added: Callable[[Node], None] = _ignore
        self.removed: Callable[[Node], None] = _ignore
        self._config = config
        self._connect = connect
        self._gate_changed = gate_changed
        self._bus = bus
        self._loop = loop
        self._clock = clock
        #: Endpoints that are gone and finish their calls, and the tasks that wait for it.
        self._closing: dict[asyncio.Task[None], Node] = {}
        for wanted in config.clusters:
            cluster = Cluster(wanted)
            self.clusters.append(cluster)
            for endpoint in wanted.endpoints:
                self._add(cluster, endpoint)

    def nodes(self) -> Iterator[Node]:
        """Every endpoint, in the order configured."""
        return (node for cluster in self.clusters for node in cluster.nodes)

    def recognise(self) -> Iterator[tuple[str, str]]:
        """Compare what the endpoints hold; merge clusters given apart that are one.

        Yields:
            (name of the cluster that stays, name of the one merged into it).

        Raises:
            ConfigError: Endpoints declared as one cluster hold different collections.
        """
        for cluster in self.clusters:
            for node, other in identity.strangers(cluster):
                node.refused = (
                    f"declared in cluster {cluster.name!r} beside {other.name}, but it holds other collections "
                    "(same names, different ids): it belongs to another cluster; give it a [[cluster]] of its own"
                )
                raise ConfigError(f"endpoint {node.name}: {node.refused}")
        while (pair := identity.same(self.clusters)) is not None:
            first, second = pair
            for node in second.nodes:
                node.cluster = first
            first.nodes.extend(second.nodes)
            self.clusters.remove(second)
            self._bus.emit(ClusterRecognised(at=self._clock(), clusters=(first.name, second.name)))
            yield first.name, second.name

    def replace(self, config: Config) -> None:
        """Go over to what another configuration names."""
        old = {(node.cluster.config, node.address): node for node in self.nodes()}
        kept: set[Node] = set()
        added: list[str] = []
        self._config = config
        self.clusters = []
        for wanted in config.clusters:
            cluster = Cluster(wanted)
            self.clusters.append(cluster)
            for endpoint in wanted.endpoints:
                node = next((n for (c, a), n in old.items() if a == endpoint.address and _alike(c, wanted)), None)
                if node is None or node in kept:
                    added.append(self._add(cluster, endpoint).name)
                else:
                    node.cluster, node.name, node.gate.settings = cluster, endpoint.name, config.breaker
                    cluster.nodes.append(node)
                    kept.add(node)
        removed = [node for node in old.values() if node not in kept]
        for node in removed:
            self._retire(node)
        self._report(added, removed, len(kept))

    def set_endpoints(self, cluster: Cluster, endpoints: list[EndpointConfig]) -> bool:
        """Replace a cluster's endpoints by those discovery has found; False if they are the same."""
        wanted = {endpoint.address: endpoint for endpoint in endpoints}
        have = {node.address: node for node in cluster.nodes}
        if wanted.keys() == have.keys():
            return False
        added = [self._add(cluster, wanted[address]).name for address in wanted.keys() - have.keys()]
        removed = [have[address] for address in have.keys() - wanted.keys()]
        for node in removed:
            cluster.nodes.remove(node)
            self._retire(node)
        self._report(added, removed, len(have) - len(removed))
        return True

    def _report(self, added: list[str], removed: list[Node], kept: int) -> None:
        names = tuple(node.name for node in removed)
        self._bus.emit(FleetReconfigured(at=self._clock(), added=tuple(added), removed=names, kept=kept))

    def _add(self, cluster: Cluster, endpoint: EndpointConfig) -> Node:
        settings = self._config.breaker
        gate = Gate(endpoint.name, settings, self._clock, lambda b, a, r: self._gate_changed(node, b, a, r))
        data = self._connect(cluster.config, endpoint, False)
        probe = self._connect(cluster.config, endpoint, True)
        node = Node(endpoint.name, endpoint.address, cluster, data, probe, gate)
        cluster.nodes.append(node)
        self.added(node)
        return node

    def _retire(self, node: Node) -> None:
        node.drained = True
        self.removed(node)
        task = self._loop.create_task(self._close(node))
        self._closing[task] = node
        task.add_done_callback(lambda done: self._closing.pop(done, None))

    async def _close(self, node: Node) -> None:
        limit = self._clock() + self._config.timeouts.read_s
        while node.flights and self._clock() < limit:  # noqa: ASYNC110 - rare, and free for the hot path
            await asyncio.sleep(0.05)
        await node.data.aclose()
        await node.probe.aclose()

    async def aclose(self) -> None:
        """Close every transport; calls under way fail."""
        closing = dict(self._closing)
        for task in closing:
            task.cancel()
        await asyncio.gather(*closing, return_exceptions=True)
        for node in [*self.nodes(), *closing.values()]:
            await node.data.aclose()
            await node.probe.aclose()


def _alike(old: ClusterConfig, new: ClusterConfig) -> bool:
    """Whether connections made for one serve the other: the same credentials and TLS."""
    same = {"name", "endpoints", "zone", "priority", "weight", "asynchronous", "healthz_url", "discovery"}
    return old.model_copy(update={k: getattr(new, k) for k in same}) == new


def _ignore(node: Node) -> None:
    """Nobody watches endpoints come and go yet."""
