"""The end of the mutation log, as part of a backup; and a backup that is nothing but that.

Decision made here: entries stay as they are, numbers and all, so what a backup has of the log is a piece of it. Left
out are the contents of what no cluster has carried out, and of what is about users, with their passwords.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from haclient.call import Kind
from haclient.errors import ConfigError, LogTrimmed
from haclient.milvus.methods import named
from haclient.recovery import journal, manifest
from haclient.recovery.journal import Head, Journal
from haclient.recovery.lineage import VOID
from haclient.recovery.manifest import LogFile, Manifest, log_path
from haclient.recovery.segments import write_segment
from haclient.recovery.source import Fleet
from haclient.recovery.store import Store
from haclient.recovery.threads import in_thread
from haclient.replication.donor import caught_up, choose
from haclient.replication.keep import KEPT, keep
from haclient.replication.log import BARRIER, Entry, MutationLog
from haclient.replication.refusals import REFUSED, Refusal, void_entries

#: Fact: the name of the log, by which backups of another log are told apart.
_NAME: Final = "backup/log"
#: Bytes of messages that are gathered to one file.
_FILE_BYTES: Final = 32 << 20
#: Entries that are read, and later on are in memory, together.
_AT_ONCE: Final = 256


async def log_id(log: MutationLog, fleet: Fleet) -> str:
    """Return the name of a log; it gets one at the first backup."""
    while True:
        known = (await log.facts(_NAME)).get(_NAME)
        if known is not None:
            return known.value.decode()
        await log.put({_NAME: f"{fleet.rng.getrandbits(64):016x}".encode()}, expect={_NAME: 0})


async def write_tail(log: MutationLog, store: Store, backup: str, after: int, through: int) -> list[LogFile]:
    """Write entries of the log behind one and up to another one, which every verdict on them has been passed on.

    Raises:
        LogTrimmed: They are no longer there.
    """
    void = void_entries(await log.facts(REFUSED))
    files: list[LogFile] = []
    while after < through:
        gathered: list[list[Entry]] = []
        size = 0
        while after < through and size < _FILE_BYTES:
            entries = await log.read(after, limit=min(_AT_ONCE, through - after))
            gathered.append([_told(entry, void) for entry in entries])
            size += sum(entry.size for entry in entries)
            after = entries[-1].seq
        files.append(await in_thread(_write, store, backup, log_path(len(files)), gathered))
    return files


def _told(entry: Entry, void: Mapping[int, Refusal]) -> Entry:
    """Return an entry without what does not belong into a backup."""
    if entry.seq not in void and named(entry.mutation.method).kind is not Kind.ACCESS:
        return entry
    return replace(entry, mutation=replace(entry.mutation, method=VOID, message=b""), size=0)


def _write(store: Store, backup: str, path: str, entries: Sequence[Sequence[Entry]]) -> LogFile:
    with write_segment(store, f"{backup}/{path}") as writer:
        for some in entries:
            writer.add(some)
    return writer.described(path)


async def incremental(store: Store, fleet: Fleet, keep_s: float) -> Manifest | None:
    """Make a backup of what the log holds since the newest one.

    Args:
        store: Where the other backups are.
        fleet: What is read.
        keep_s: Time for which the log keeps what comes after this backup, seconds.

    Returns:
        The backup; None if nothing has been written since.

    Raises:
        ConfigError: There is no backup to go on from, or no log, or it does not reach back far enough.
        BackupError: The store could not be written.
        LogError: The log failed.
    """
    log = fleet.log
    if log is None:
        raise ConfigError("without a mutation log nobody knows what was written since: make a full backup")
    known = await log_id(log, fleet)
    parent = await _parent(store, known)
    assert parent.seq is not None
    at, bounds = fleet.now(), await log.bounds()
    if bounds.head == parent.seq:
        return None
    if bounds.first > parent.seq + 1:
        raise ConfigError(
            f"the backup {parent.id} ends at entry {parent.seq} of the log, which begins at {bounds.first} by now: "
            "make a full backup. The log keeps what comes after a backup for --keep-log-hours, while it is less than "
            "half full: make incremental ones more often, or raise replication.max_entries and max_bytes"
        )
    cluster = await choose(log, fleet.clusters)
    # What every cluster refuses is known then.
    await caught_up(log, cluster, BARRIER, bounds.head, fleet.loop)
    begun = await _again(store, parent, known)
    head = Head(
        id=begun or manifest.new_id(at, fleet.rng),
        created=at,
        parent=parent.id,
        cluster=cluster,
        log_id=known,
        from_seq=parent.seq,
        writer=fleet.name,
    )
    await in_thread(Journal(store, head).begin)
    try:
        files = await write_tail(log, store, head.id, parent.seq, bounds.head)
    except LogTrimmed as error:
        raise ConfigError(f"the log has lost what was not backed up yet: {error}. Make a full backup") from error
    done = Manifest(
        id=head.id,
        created=at,
        kind="incremental",
        parent=parent.id,
        seq=bounds.head,
        from_seq=parent.seq,
        log_id=known,
        exact=True,
        source=parent.source,
        log=files,
    )
    await in_thread(manifest.finish, store, done)
    await keep(log, KEPT, bounds.head, fleet.wall() + keep_s)
    return done


async def _parent(store: Store, known: str) -> Manifest:
    """Return the newest backup of this log."""
    listing = await in_thread(manifest.list_backups, store)
    fit = [one for one in listing.backups if one.log_id == known and one.seq is not None]
    if not fit:
        why = "those that are there are of another log, or of none" if listing.backups else "there is none"
        raise ConfigError(f"there is no backup to go on from at {store.url}: {why}. Make a full one first")
    return max(fit, key=lambda one: (one.seq, one.created))


async def _again(store: Store, parent: Manifest, known: str) -> str:
    """Return the name of an incremental backup of the same parent that was cut off, "" if there is none."""
    heads = await in_thread(journal.unfinished, store)
    return next((one.id for one in heads if (one.parent, one.log_id) == (parent.id, known)), "")
