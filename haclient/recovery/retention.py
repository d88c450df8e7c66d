"""Which backups are kept, and how the others are deleted."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime

from haclient.recovery.manifest import Manifest
from haclient.recovery.store import Store


def plan(manifests: Iterable[Manifest], now: datetime, *, keep_last: int = 0, keep_days: float = 0.0) -> list[str]:
    """Say which backups to delete, in the order in which to do it: none before one that goes on from it.

    Args:
        manifests: All backups.
        now: The time.
        keep_last: How many of the newest to keep.
        keep_days: Age up to which all are kept, days.

    Raises:
        ConfigError: Neither is given.
    """
    raise NotImplementedError


def prune(
    store: Store,
    now: datetime,
    *,
    keep_last: int = 0,
    keep_days: float = 0.0,
    report: Callable[[str], None] = lambda _: None,
) -> list[str]:
    """Delete what `plan` says, and what an earlier run had begun to delete; it blocks.

    Returns:
        The names of those deleted.
    """
    raise NotImplementedError
