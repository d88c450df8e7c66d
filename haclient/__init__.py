"""haclient: an HA-aware client for Milvus whose reads survive the failure of any single server.

    from haclient import AsyncMilvusClient  # or MilvusClient, for blocking code

    client = AsyncMilvusClient(uri=["http://10.0.0.1:19530", "http://10.0.0.2:19530"])

Everything else of it is pymilvus' own `AsyncMilvusClient` or `MilvusClient`.
"""

from __future__ import annotations

from importlib.metadata import version as _version
from typing import TYPE_CHECKING, Any

from haclient.acknowledge import acknowledged
from haclient.errors import (
    AccessDenied,
    CallError,
    ConfigError,
    DeadlineExceeded,
    HAClientError,
    PoisonedCall,
    Unavailable,
    WriteNotConfirmed,
    WriteRefused,
)

if TYPE_CHECKING:
    from haclient.client import AsyncMilvusClient
    from haclient.sync import MilvusClient

__version__ = _version("haclient")

__all__ = [
    "AccessDenied",
    "AsyncMilvusClient",
    "CallError",
    "ConfigError",
    "DeadlineExceeded",
    "HAClientError",
    "MilvusClient",
    "PoisonedCall",
    "Unavailable",
    "WriteNotConfirmed",
    "WriteRefused",
    "__version__",
    "acknowledged",
]


def __getattr__(name: str) -> Any:
    """Import pymilvus (about a second) only when a client is wanted."""
    if name == "AsyncMilvusClient":
        from haclient.client import AsyncMilvusClient  # noqa: PLC0415

        return AsyncMilvusClient
    if name == "MilvusClient":
        from haclient.sync import MilvusClient  # noqa: PLC0415

        return MilvusClient
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
