"""Makes the wire's channels from the configuration: where the fleet and the wire meet."""

from __future__ import annotations

import asyncio
import random
import ssl

from haclient.call import Transport
from haclient.config import ClusterConfig, Config, EndpointConfig
from haclient.fleet.membership import Connect
from haclient.wire.channel import Channel, ChannelOptions
from haclient.wire.dial import Target
from haclient.wire.limits import Limits
from haclient.wire.tls import client_context


def connector(config: Config, loop: asyncio.AbstractEventLoop, rng: random.Random) -> Connect:
    """Return the function that opens a channel to an endpoint.

    Probes get a single connection of their own, so they neither wait behind large replies nor age.
    """
    wire = config.wire
    limits = Limits(max_message_bytes=wire.max_message_bytes)
    data = ChannelOptions(
        connections=wire.connections,
        max_age_s=wire.max_connection_age_s,
        connect_timeout_s=config.timeouts.connect_s,
        limits=limits,
    )
    probing = ChannelOptions(connect_timeout_s=config.health.timeout_s, limits=limits)

    def connect(cluster: ClusterConfig, endpoint: EndpointConfig, probe: bool) -> Transport:
        return Channel(_target(cluster, endpoint), probing if probe else data, loop=loop, rng=rng)

    return connect


def _target(cluster: ClusterConfig, endpoint: EndpointConfig) -> Target:
    tls = tls_of(cluster) if endpoint.secure or cluster.secure else None
    return Target(
        host=endpoint.host,
        port=endpoint.port,
        unix_path=endpoint.path if endpoint.scheme == "unix" else "",
        tls=tls,
        server_name=cluster.server_name,
    )


def tls_of(cluster: ClusterConfig) -> ssl.SSLContext:
    """Make a context for connections to a cluster; it offers HTTP/2."""
    return client_context(
        ca_file=cluster.server_pem_path or cluster.ca_pem_path or None,
        cert_file=cluster.client_pem_path or None,
        key_file=cluster.client_key_path or None,
    )
