"""Which backups are kept, and how the others are deleted.

Decisions made here:

* What a kept backup goes on from is kept as well, and so is the newest backup, however old it is: when backups have
  stopped being made, the last one is worth most.
* A backup that is being deleted says so first, loses its manifest next and its files then, so no moment shows one that
  looks whole and is not. What was cut off is gone on with the next time. Folders of backups that are still being
  written, or were cut off while they were, are left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime, timedelta

from haclient.errors import ConfigError
from haclient.recovery.manifest import DELETING, MANIFEST, Manifest, list_backups
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
    if keep_last < 1 and keep_days <= 0:
        raise ConfigError("say what to keep: the newest backups by their number, or by their age in days, or both")
    newest = sorted(manifests, key=lambda one: (one.created, one.id), reverse=True)
    parents = {one.id: one.parent for one in newest}
    oldest = now - timedelta(days=keep_days)
    kept: set[str] = set()
    for at, one in enumerate(newest):
        if at < max(keep_last, 1) or (keep_days > 0 and one.created >= oldest):
            backup = one.id
            while backup and backup not in kept:
                kept.add(backup)
                backup = parents.get(backup, "")
    return _children_first([one.id for one in newest if one.id not in kept], parents)


def _children_first(backups: list[str], parents: dict[str, str]) -> list[str]:
    """Order backups by how many they go on from; clocks may be wrong."""

    def depth(backup: str) -> int:
        seen = {backup}
        while (backup := parents.get(backup, "")) and backup not in seen:
            seen.add(backup)
        return len(seen)

    return sorted(backups, key=depth, reverse=True)


def prune(
    store: Store,
    now: datetime,
    *,
    keep_last: int = 0,
    keep_days: float = 0.0,
    report: Callable[[str], None] = lambda _: None,
) -> list[str]:
    """Delete what `plan` says, and what an earlier run had begun to delete; it blocks.

    Args:
        store: Where the backups are.
        now: The time.
        keep_last: How many of the newest to keep.
        keep_days: Age up to which all are kept, days.
        report: Told the name of each backup when it is gone.

    Returns:
        The names of those deleted.

    Raises:
        ConfigError: Neither number nor age is given.
        StoreFailed: The storage failed; run it again to go on.
    """
    listing = list_backups(store)
    wanted = plan(listing.backups, now, keep_last=keep_last, keep_days=keep_days)
    begun = [name for name in listing.unusable if store.exists(f"{name}/{DELETING}")]
    for backup in [*begun, *wanted]:
        delete(store, backup)
        report(backup)
    return [*begun, *wanted]


def delete(store: Store, backup: str) -> None:
    """Delete one backup, or what is left of it.

    Raises:
        StoreFailed: The storage failed; run it again to go on.
    """
    marker = f"{backup}/{DELETING}"
    store.write(marker, b"")
    store.delete(f"{backup}/{MANIFEST}")
    for stored in store.files(backup):
        if stored.path != marker:
            store.delete(stored.path)
    store.delete_folder(backup)
