"""Which engine keeps the mutation log.

Decision made here: the setting ``log`` alone says it; an engine's module is imported only when it is used.
"""

from __future__ import annotations

from collections.abc import Callable

from haclient.config.replication import ETCD, Replication
from haclient.replication.log import MutationLog


def open_log(settings: Replication, wall_clock: Callable[[], float]) -> MutationLog:
    """Make the log that the settings name; it is not opened yet.

    Args:
        settings: Where it is, and its bounds; ``log`` must not be "".
        wall_clock: Seconds since 1970, for the times shown with entries. Leases are counted in loop time.
    """
    if settings.log.startswith(ETCD):
        from haclient.replication.etcd import EtcdLog  # noqa: PLC0415 - httpx, for this engine alone

        return EtcdLog(settings, wall_clock)
    from haclient.replication.sqlite import SqliteLog  # noqa: PLC0415 - not on every platform

    return SqliteLog(settings, wall_clock)
