"""A worker's server: its core, its listening socket, and the connections of its clients."""

from __future__ import annotations

import asyncio
import socket
from typing import final

from haclient.config import Config
from haclient.core import Core
from haclient.events import EventBus


@final
class Server:
    """Serves clients of one process, on one event loop.

    Args:
        config: What is configured.
        bus: Takes events.
        loop: The loop to live on.

    Attributes:
        core: The fleet and its policies.
    """

    core: Core

    def __init__(self, config: Config, bus: EventBus, loop: asyncio.AbstractEventLoop) -> None:
        raise NotImplementedError

    async def start(self, listening: socket.socket) -> None:
        """Look at the endpoints, then take connections from a bound, listening socket.

        Raises:
            ConfigError: See `haclient.core.Core.start`.
        """

    def reload(self, config: Config) -> None:
        """Go over to another configuration, and read TLS files again, without dropping a connection.

        Raises:
            ConfigError: A file cannot be read; nothing has changed then.
        """

    async def drain(self, grace_s: float) -> int:
        """Take no more connections, send GOAWAY, and wait for the calls under way.

        Returns:
            How many calls were cut off because they took longer than ``grace_s`` seconds.
        """

    async def aclose(self) -> None:
        """Close every connection and the core."""

    @property
    def connections(self) -> int:
        """Connections of clients."""
        return 0

    @property
    def calls(self) -> int:
        """Calls under way."""
        return 0

    @property
    def memory_bytes(self) -> int:
        """Bytes of requests and replies held."""
        return 0

    @property
    def shed(self) -> int:
        """Calls refused so far because there was too much to do."""
        return 0
