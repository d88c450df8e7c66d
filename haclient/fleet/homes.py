"""Which cluster takes the calls that must not change cluster: pages of an iterator, jobs, segments, timestamps.

Decision made here: what names a cluster by an id of that cluster goes there, in whatever process it is asked. The rest
goes to the collection's home, on which every process with the same configuration settles alike while all is well.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final, final

from haclient.call import Call
from haclient.errors import Unavailable
from haclient.fleet import breaker, identity
from haclient.fleet.node import Cluster, Key

if TYPE_CHECKING:
    from haclient.fleet.fleet import Fleet

_MOST: Final = 1_024


@final
class Homes:
    """The homes of collections."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._names: dict[Key, str] = {}

    def of(self, call: Call, collection_id: int = 0) -> str | None:
        """Return the name of the cluster that a pinned call goes to; None if there is only one.

        Args:
            call: The call. The first one about a collection settles its home; it stays while one of the cluster's
                endpoints is in rotation.
            collection_id: The id by which the call names its collection, 0 if it does not.

        Raises:
            Unavailable: No cluster has a collection of that id.
        """
        fleet = self._fleet
        if fleet.single_cluster():
            return None
        key = (call.database, call.collection)
        if identity.proves(collection_id):
            return self._by_id(call, key, collection_id)
        here = {
            cluster.name: cluster
            for cluster in fleet.clusters
            if cluster.name not in call.behind and any(not n.drained for n in cluster.nodes)
        }
        name = self._names.get(key)
        if name not in here and here:
            if len(self._names) >= _MOST:
                self._names.clear()
            name = self._names[key] = min(here.values(), key=lambda cluster: self._fitness(cluster, key)).name
        return name if name in here else None

    def _by_id(self, call: Call, key: Key, collection_id: int) -> str:
        """Return the cluster that has the id; if none is known to, the first of those that may have it."""
        possible = []
        for cluster in self._fleet.clusters:
            catalogues = [node.catalogue for node in cluster.nodes]
            if any(collection_id in catalogue.values() for catalogue in catalogues):
                return cluster.name
            if not any(identity.proves(catalogue.get(key, 0)) for catalogue in catalogues):
                possible.append(cluster)  # it has not been seen yet, or the collection has another name there
        if not possible:
            raise Unavailable(
                f"{call.method.name} {call.collection}: this page of an iterator belongs to a collection with id "
                f"{collection_id}, which no cluster has now. Begin the iterator anew.",
                call.attempts,
            )
        return min(possible, key=lambda cluster: self._fitness(cluster, key)).name

    def rename(self, old: str, new: str) -> None:
        """Give everything of one cluster to another: they turned out to be one."""
        self._names = {key: new if name == old else name for key, name in self._names.items()}

    def _fitness(self, cluster: Cluster, key: Key) -> tuple[bool, bool, int, bool, bytes]:
        """Order clusters as homes: one that serves first, then as the balancer does, then by a hash of both names."""
        nodes = [node for node in cluster.nodes if not node.drained]
        well = any(node.gate.state != breaker.OPEN and node.ready.get(key) is not False for node in nodes)
        zone = self._fleet.balancer.zone
        mark = hashlib.blake2b("\0".join((cluster.name, *key)).encode(), digest_size=8).digest()
        return not well, cluster.follows, cluster.priority, bool(zone) and cluster.zone != zone, mark
