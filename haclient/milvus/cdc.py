"""Milvus' own replication (CDC): how clusters say which of them is the primary.

Decision made here: a cluster speaks for itself. By its own configuration it is the primary if nothing replicates into
it; what it says of the others is what it believes.

Source: ``ReplicateConfiguration`` of milvus-proto's ``common.proto``; https://milvus.io/docs/milvus_cdc_overview.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from pymilvus.grpc_gen import milvus_pb2

from haclient.milvus.messages import Request
from haclient.milvus.methods import named
from haclient.milvus.shape import parse


@final
@dataclass(frozen=True, slots=True)
class Topology:
    """Who replicates into whom, as one cluster says.

    Attributes:
        uris: Where each cluster is, by its id.
        sources: Into each cluster that is replicated into, from where.
    """

    uris: Mapping[str, str]
    sources: Mapping[str, str]

    def primary(self, cluster: str) -> str:
        """Return the id of the cluster whose writes reach a cluster in the end: its own, if nobody's do."""
        seen: set[str] = set()
        while cluster in self.sources and cluster not in seen:
            seen.add(cluster)
            cluster = self.sources[cluster]
        return cluster


def ask() -> Request:
    """Return the request for a cluster's configuration."""
    message = milvus_pb2.GetReplicateConfigurationRequest().SerializeToString()
    return Request(named("GetReplicateConfiguration"), message)


def read(reply: bytes) -> Topology:
    """Read the answer to `ask`.

    Raises:
        ValueError: It is something else.
    """
    told = parse(milvus_pb2.GetReplicateConfigurationResponse, reply).configuration
    uris = {one.cluster_id: one.connection_param.uri for one in told.clusters}
    return Topology(uris, {one.target_cluster_id: one.source_cluster_id for one in told.cross_cluster_topology})
