"""milvus-lite servers for drills and the demo.

Decision made here: a server is ready when two real calls succeed (Connect and CheckHealth), not when its
port is open; both milvus-lite and Milvus accept connections before they serve.
"""

from __future__ import annotations

import base64
import importlib.util
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from haclient.drill.servers.plaincall import PlainCallFailed, call, check_status
from haclient.drill.servers.process import HOST, ServerNotStarted, ServerProcess

__all__ = ["LiteServer", "ServerNotStarted", "check_milvus"]


class LiteServer(ServerProcess):
    """``milvus-lite server`` from this interpreter's environment, in a process of its own.

    After a restart its indexed collections are there but released: they need ``load_collection``.

    Args:
        folder: Its data (``data/``) and log; kept at the end.
        port: The port to serve on; 0 takes a free one, which it keeps through restarts.
        name: What messages and the log's file name call it.
        workers: Size of its thread pool; None leaves milvus-lite's own (10).
        start_timeout_s: How long it may take until it answers.

    Raises:
        ServerNotStarted: On entering, if milvus-lite is not installed or the server does not come up.
    """

    # SIGTERM ends milvus-lite on the spot; SIGINT drains calls and closes the database.
    stop_signal = signal.SIGINT

    def __init__(
        self,
        folder: Path | str,
        *,
        port: int = 0,
        name: str = "milvus-lite",
        workers: int | None = None,
        start_timeout_s: float = 60,
    ) -> None:
        super().__init__(folder, port=port, name=name, start_timeout_s=start_timeout_s)
        self.workers = workers

    def command(self) -> Sequence[str]:
        """See `ServerProcess.command`."""
        if importlib.util.find_spec("milvus_lite") is None:
            raise ServerNotStarted("milvus-lite is not installed: pip install 'haclient[demo]'")
        where = ["--data-dir", str(self.folder / "data"), "--host", HOST, "--port", str(self.port)]
        pool = [] if self.workers is None else ["--max-workers", str(self.workers)]
        # -P: the folder it runs in is data, never a place to import from.
        return [sys.executable, "-P", "-m", "milvus_lite", "server", *where, *pool]

    def environment(self) -> Mapping[str, str]:
        """See `ServerProcess.environment`."""
        return {"PYTHONUNBUFFERED": "1"}

    async def check(self) -> None:
        """See `ServerProcess.check`."""
        await check_milvus(self.port)


async def check_milvus(port: int, token: str = "") -> None:
    """Return if a Milvus on this loopback port serves its catalogue; raise otherwise.

    That its collections are loaded is another question: read one to know.

    Args:
        port: Where it listens.
        token: ``user:password``, needed where authorisation is enabled.

    Raises:
        OSError: It does not listen, or the connection broke.
        PlainCallFailed: It says that it does not serve.
    """
    metadata = [("authorization", base64.b64encode(token.encode()).decode())] if token else []
    check_status(await call(HOST, port, "Connect", metadata=metadata))
    health = await call(HOST, port, "CheckHealth", metadata=metadata)
    if b"\x10\x01" not in check_status(health)[:4]:  # field 2, isHealthy
        raise PlainCallFailed(f"CheckHealth: {health[:300]!r}")
