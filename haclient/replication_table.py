"""What the commands for replicated writes show, as pure functions of what was found.

Decision made here: as in `haclient.status_table`, whatever a server or the log says is text, never markup.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from haclient.replication.audit import Audited, Report
from haclient.replication.operator import ClusterAt, EntryView, LogView
from haclient.replication.reseed import Advance
from haclient.replication.verify import Verified
from haclient.status_table import plain

#: Keys named for each kind of difference.
_NAMED = 5


def bytes_text(size: float) -> str:
    """Write a number of bytes, for example ``3.2 MB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1_000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1_000
    return f"{size:.1f} TB"


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        right = name in {"rows", "equal", "applied", "behind", "missing", "extra", "different"}
        table.add_column(name, justify="right" if right else "left", overflow="fold")
    return table


# Reseeding.


def advance(now: Advance) -> str:
    """Say in one line how far a reseed is."""
    left = f", {now.left_s:.0f} s left" if now.left_s is not None else ""
    return (
        f"{now.collections} of {now.of} collections, {now.rows:,} rows, {bytes_text(now.size)}, "
        f"{now.rate:,.0f} rows/s{left}"
    )


def reseeded(cluster: str, done: Advance) -> RenderableType:
    """Say how a reseed went."""
    lines = [
        plain(
            f"{cluster}: filled from {done.donor}: {done.collections} collections, {done.rows:,} rows, "
            f"{bytes_text(done.size)} in {done.seconds:.1f} s ({done.rate:,.0f} rows/s). The log brings what was "
            "written meanwhile; see haclient log show"
        )
    ]
    return Group(*lines, *(plain(f"note: {note}", "yellow") for note in done.notes))


# Verifying.


def verified(report: Report) -> RenderableType:
    """Draw what was found: one row for each collection and cluster."""
    table = _table("collection", "cluster", "rows", "equal", "missing", "extra", "different", "")
    for one in report.collections:
        _collection(table, one)
    rate = report.rows / report.seconds if report.seconds else 0.0
    verdict = "all the same" if report.well else "not the same"
    last = f"{verdict}; {report.rows:,} rows read in {report.seconds:.1f} s ({rate:,.0f} rows/s)"
    notes = [note for one in report.collections for note in _notes(one)]
    return Group(table, *notes, plain(last, "green" if report.well else "bold red"))


def _collection(table: Table, one: Audited) -> None:
    now = one.now
    name = f"{now.database or 'default'}.{now.collection}"
    for cluster, rows in now.rows.items():
        told = now.differing.get(cluster)
        counts = (told.missing, told.extra, told.other) if told is not None else (0, 0, 0)
        what = "compared with" if cluster == now.reference else "differs" if told is not None else "the same"
        cells = [name, cluster, f"{rows:,}", f"{now.equal:,}", *(f"{count:,}" for count in counts)]
        style = "bold red" if told is not None else ""
        table.add_row(*(plain(cell, style) for cell in cells), plain(what, style))
        name = ""
    for cluster, why in now.left_out.items():
        table.add_row(plain(name), plain(cluster), *[""] * 5, plain(f"left out: {why}", "yellow"))
        name = ""


def _notes(one: Audited) -> Iterable[Text]:
    now = one.now
    name = now.collection
    for problem in now.problems:
        yield plain(f"{name}: {problem}", "bold red")
    for cluster, told in now.differing.items():
        for kind, keys in told.keys.items():
            if keys:
                more = ", ..." if len(keys) > _NAMED else ""
                yield plain(f"{name}: {kind} on {cluster}: {', '.join(map(repr, keys[:_NAMED]))}{more}")
    if now.moving:
        yield plain(f"{name}: {now.moving} keys were written each time they were looked at; verify again", "yellow")
    if one.repaired is not None:
        yield from _mended(name, one.found, one)
    if one.adopted:
        yield plain(f"{name}: its writes are mirrored from now on", "green")
    if one.failure:
        yield plain(f"{name}: {one.failure}", "bold red")


def _mended(name: str, before: Verified, one: Audited) -> Iterable[Text]:
    assert one.repaired is not None
    for cluster in before.rows:
        written, deleted = one.repaired.written.get(cluster, 0), one.repaired.deleted.get(cluster, 0)
        if written or deleted:
            yield plain(f"{name}: mended on {cluster}: {written} rows written, {deleted} deleted")


# The log.


def log(view: LogView) -> RenderableType:
    """Draw how far every cluster is."""
    table = _table("cluster", "standing", "applied", "behind", "stopped")
    for one in view.clusters:
        style = "" if one.well else "bold red" if one.parked or one.standing == "needs_reseed" else "yellow"
        standing = one.standing + (", drained" if one.drained else "")
        cells = [one.name, standing, f"{one.applied:,}", f"{one.behind:,}", "\n".join(_stopped(one))]
        table.add_row(*(plain_lines(cell, style) for cell in cells))
    bounds = view.bounds
    count = bounds.head - bounds.first + 1
    held = f"entries {bounds.first:,} to {bounds.head:,}, " if count else ""
    return Group(table, plain(f"log: {held}{count:,} in all, {bytes_text(bounds.size)}"))


def _stopped(one: ClusterAt) -> Iterable[str]:
    if one.blocked:
        yield f"takes no writes: {one.blocked}"
    for stream, (seq, reason) in one.parked.items():
        yield f"{stream} at {seq}: {reason or 'going on'}"


def entry(view: EntryView) -> RenderableType:
    """Draw what is known of an entry."""
    table = Table(box=None, show_header=False, pad_edge=False)
    keys = ", ".join(map(repr, view.keys)) + (f", ... ({view.rows:,} in all)" if view.rows > len(view.keys) else "")
    about = ", ".join(f"{name}={value!r}" for name, value in view.about.items())
    for name, value in (
        ("entry", f"{view.seq}"),
        ("appended", datetime.fromtimestamp(view.at, UTC).isoformat(sep=" ", timespec="seconds")),
        ("call", f"{view.method}, {bytes_text(view.size)}"),
        ("collection", view.stream),
        ("about", about),
        ("keys", keys),
        *((f"refused by {cluster}", reason) for cluster, reason in view.refused.items()),
        *((f"stopped on {cluster}", reason) for cluster, reason in view.parked.items()),
    ):
        if value:
            table.add_row(plain(name, "bold"), plain(value))
    return table


def plain_lines(text: str, style: str = "") -> Text:
    """Make text of several lines, without markup or control characters."""
    return Text("\n").join(plain(line, style) for line in text.split("\n"))
