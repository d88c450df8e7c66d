"""Which endpoints are the same cluster, told by the ids of their collections.

Decision made here: ids decide, names do not. Milvus hands out collection ids from its timestamp oracle, so two
clusters practically never give the same name the same id, and two proxies of one cluster always do.
milvus-lite numbers collections from small integers in every server, so its ids prove nothing (`_PROOF`).
One equal id proves that two endpoints are of one cluster, whatever else differs: catalogues are listed at different
moments, and a collection may have been dropped and created anew between them. Endpoints are met through an index of
what they hold, never pair by pair: there may be a thousand.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from haclient.fleet.node import Cluster, Key, Node

#: A timestamp-oracle id is above this (it holds milliseconds since 1970 shifted left by 18 bits).
_PROOF = 1 << 40

Catalogue = Mapping[Key, int]


def proves(collection_id: int) -> bool:
    """Say whether an id can belong to one cluster only."""
    return collection_id > _PROOF


def compare(one: Catalogue, other: Catalogue) -> bool | None:
    """Say whether two catalogues are of the same cluster; None if they do not tell."""
    shared = [(one[key], other[key]) for key in one.keys() & other.keys()]
    telling = [(a, b) for a, b in shared if proves(a) and proves(b)]
    if not telling:
        return None
    return any(a == b for a, b in telling)


def strangers(cluster: Cluster) -> Iterator[tuple[Node, Node]]:
    """Yield (endpoint, earlier endpoint) where the first is not of the cluster it is declared in.

    Whoever was met later is the stranger, not the one that has served all along.
    """
    known = [node for node in cluster.nodes if node.catalogue and not node.refused]
    holders: dict[Key, Node] = {}
    for node in sorted(known, key=lambda node: node.met_at):
        telling = _telling(node)
        shared = [(holders[key], holders[key].catalogue[key] == number) for key, number in telling if key in holders]
        if shared and not any(equal for _, equal in shared):
            yield node, shared[0][0]
        else:
            for key, _ in telling:
                holders.setdefault(key, node)


def same(clusters: list[Cluster]) -> tuple[Cluster, Cluster] | None:
    """Return two clusters that turn out to be one, or None if all are different."""
    holders: dict[tuple[Key, int], Cluster] = {}
    for cluster in clusters:
        for node in cluster.nodes:
            for item in _telling(node):
                if holders.setdefault(item, cluster) is not cluster:
                    return holders[item], cluster
    return None


def _telling(node: Node) -> list[tuple[Key, int]]:
    return [item for item in node.catalogue.items() if proves(item[1])]
