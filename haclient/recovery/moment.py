"""Which backups bring back what was at a moment, and up to which entry of the log.

Decision made here: a full backup holds one entry of the log and none before it; those that go on from it hold each one
after it. A time means the last entry written by then, and only if a backup was made after it: else it is not known what
else was written before.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import final

from haclient.errors import ConfigError
from haclient.recovery.errors import BackupDamaged
from haclient.recovery.manifest import LogFile, Manifest, chain, list_backups
from haclient.recovery.segments import read_segment
from haclient.recovery.store import Store
from haclient.replication.log import Entry


@final
@dataclass(frozen=True, slots=True)
class Moment:
    """What is to be restored.

    Attributes:
        backups: The full one first, each of the others going on from the one before.
        seq: The last entry of the log that counts; None for a fleet without a log.
    """

    backups: tuple[Manifest, ...]
    seq: int | None

    @property
    def full(self) -> Manifest:
        """The full backup."""
        return self.backups[0]

    def settled(self, store: Store) -> Iterator[Entry]:
        """Read the log of the full backup; it blocks."""
        return _entries(store, self.full)

    def later(self, store: Store) -> Iterator[Entry]:
        """Read the log of the others, as far as it counts; it blocks."""
        for one in self.backups[1:]:
            yield from (entry for entry in _entries(store, one) if self.seq is None or entry.seq <= self.seq)

    def segments(self) -> Iterator[tuple[str, LogFile]]:
        """Go over all files of the log, each with its backup."""
        for one in self.backups:
            yield from ((one.id, file) for file in one.log)

    def segment(self, store: Store, backup: str, file: LogFile) -> Generator[list[Entry]]:
        """Read one of them, as far as it counts; it blocks."""
        for entries in read_segment(store, backup, file):
            yield [entry for entry in entries if self.seq is None or entry.seq <= self.seq]


def parse_at(text: str) -> int | datetime | None:
    """Read an entry's number or a time (ISO 8601; local, unless it says otherwise); None of "".

    Raises:
        ConfigError: It is neither.
    """
    if not text:
        return None
    if text.isdecimal():
        return int(text)
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except ValueError:
        raise ConfigError(
            f"--at {text}: write the number of an entry of the log, or a time such as 2026-03-01T12:00:00+00:00"
        ) from None


def find(store: Store, backup: str, at: int | datetime | None) -> Moment:
    """Find the backups to restore; it blocks.

    Args:
        store: Where they are.
        backup: Name of the last one; "" for the newest that will do.
        at: Which moment; None for the end of the backup.

    Raises:
        ConfigError: No backup holds that moment.
        BackupDamaged: The backup that is named, or one that it goes on from, is damaged.
    """
    candidates = [chain(store, backup)] if backup else _chains(store)
    if not candidates:
        raise ConfigError(f"there is no backup at {store.url}")
    if at is None:
        return Moment(tuple(candidates[0]), candidates[0][-1].seq)
    for backups in candidates:
        seq = _seq(store, backups, at)
        if seq is not None:
            needed = [one for one in backups if one is backups[0] or (one.from_seq or 0) < seq]
            return Moment(tuple(needed), seq)
    raise ConfigError(f"no backup holds that moment. {'. '.join(_told(one) for one in candidates)}")


def _chains(store: Store) -> list[list[Manifest]]:
    """Return every backup that no other one goes on from, with those that it goes on from; the newest first."""
    listing = list_backups(store)
    parents = {one.parent for one in listing.backups}
    found = []
    for last in reversed(listing.backups):
        if last.id not in parents:
            try:
                found.append(chain(store, last.id))
            except BackupDamaged:
                continue  # `haclient backup list` tells
    return found


def _seq(store: Store, backups: list[Manifest], at: int | datetime) -> int | None:
    """Return the last entry that counts; None if these backups do not hold that moment."""
    first, last = backups[0].seq, backups[-1].seq
    if first is None or last is None:
        return None
    if isinstance(at, int):
        return at if first <= at <= last else None
    if at > backups[-1].created:
        return None
    wanted = at.timestamp()
    if wanted < max((entry.at for entry in _entries(store, backups[0])), default=backups[0].created.timestamp()):
        return None
    later = (entry for one in backups[1:] for entry in _entries(store, one))
    return next((entry.seq - 1 for entry in later if entry.at > wanted), last)


def _told(backups: list[Manifest]) -> str:
    first, last = backups[0], backups[-1]
    if first.seq is None:
        return f"{first.id} is of a fleet without a log, of {first.created:%Y-%m-%dT%H:%M:%SZ}"
    if first is last:
        return f"{first.id} holds entry {first.seq} alone, for want of incremental backups that go on from it"
    return f"{last.id} holds entries {first.seq} to {last.seq}, up to {last.created:%Y-%m-%dT%H:%M:%SZ}"


def _entries(store: Store, backup: Manifest) -> Iterator[Entry]:
    for file in backup.log:
        for entries in read_segment(store, backup.id, file):
            yield from entries
