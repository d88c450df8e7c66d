"""The commands for backups: ``haclient backup`` (create, list, verify, prune) and ``haclient restore``.

Decision made here: ``haclient backup FOLDER`` makes a backup, the other things that are done with backups have names of
their own: what is typed most is shortest.
"""

from __future__ import annotations

import asyncio
import os
import platform
import random
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup

from haclient.cli.common import NOT_WELL, ConfigOption, JsonOption, Reach, UriOption, bar, fail, on_fleet, print_json
from haclient.config import Config
from haclient.errors import ConfigError, HAClientError

if TYPE_CHECKING:
    from haclient.recovery.manifest import Manifest
    from haclient.recovery.source import Fleet
    from haclient.recovery.store import Store
    from haclient.recovery.target import Target
    from haclient.replication.reseed import Advance

T = TypeVar("T")

UrlArgument = Annotated[str, typer.Argument(help="Where backups are: a folder, or s3://bucket/prefix.")]
CollectionOption = Annotated[
    list[str] | None, typer.Option("--collection", help="Name, or database.name; all unless given.")
]
ClusterOption = Annotated[str, typer.Option("--cluster", help="The cluster, as haclient status shows it.")]


class _CreateUnlessNamed(TyperGroup):
    """``backup FOLDER`` is ``backup create FOLDER``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = ["create", *args]
        return super().parse_args(ctx, args)


backup_app = typer.Typer(
    help="Back up collections while writes go on: haclient backup FOLDER makes a backup.",
    cls=_CreateUnlessNamed,
    no_args_is_help=True,
)


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.add_typer(backup_app, name="backup")
    app.command()(restore)


@backup_app.command()
def create(
    url: UrlArgument,
    collection: CollectionOption = None,
    incremental: Annotated[
        bool, typer.Option("--incremental", help="Only what the mutation log holds since the last backup.")
    ] = False,
    cluster: ClusterOption = "",
    workers: Annotated[int, typer.Option(help="Collections read at once.", min=1)] = 2,
    reread: Annotated[
        bool, typer.Option(help="Without a mutation log: read everything twice, to tell whether it changed meanwhile.")
    ] = True,
    keep_log_hours: Annotated[
        float, typer.Option(help="How long the log keeps what follows, for the next incremental backup.", min=0.0)
    ] = 24.0,
    config: ConfigOption = None,
    uri: UriOption = None,
    as_json: JsonOption = False,
) -> None:
    """Back up databases and collections: what they are, and their rows as Parquet.

    With a mutation log it is what every cluster holds at one entry of the log, without stopping writes. One that was
    cut off goes on if the same command is given again. The exit code is 0 if it is done, 1 if it could not be done, 2
    if the input is wrong.
    """
    from haclient.recovery import backup, tail  # noqa: PLC0415 - pymilvus takes a second to import
    from haclient.recovery.source import Fleet  # noqa: PLC0415

    if incremental and (collection or cluster):
        fail(ConfigError("--incremental goes on from a backup, with its collections: leave out the other options"))
    task = backup.Task(tuple(sorted(collection or ())), cluster, workers, reread, keep_log_hours * 3_600.0)

    async def run(reach: Reach) -> Manifest | None:
        store, settings = open_at(url), reach.config.replication
        fleet = Fleet(reach.clusters, settings, reach.log, reach.holder, reach.rng, reach.loop, time.time)
        with bar("backing up", quiet=as_json) as show:
            if incremental:
                return await tail.incremental(store, fleet, task.keep_s)
            return await backup.full(store, fleet, task, lambda now: show(now.expected, now.rows, _line(now)))

    done = on_fleet(config, uri, run)
    if as_json:
        print_json(_as_json(done) if done is not None else None)
    elif done is None:
        typer.echo("nothing has been written since the last backup")
    else:
        _tell(done)


@backup_app.command("list")
def list_(url: UrlArgument, as_json: JsonOption = False) -> None:
    """List backups, the oldest first, and what looks like one and is none.

    The exit code is 0 if all can be read, 1 if not, 2 if the input is wrong.
    """
    from haclient.recovery import manifest  # noqa: PLC0415 - pyarrow takes long to import

    listing = _blocking(lambda: manifest.list_backups(open_at(url)))
    if as_json:
        print_json({"backups": [_as_json(one) for one in listing.backups], "unusable": listing.unusable})
    else:
        table = Table("backup", "begun", "kind", "entry", "collections", "rows", "size", box=None, pad_edge=False)
        for one in listing.backups:
            told = _as_json(one)
            at = f"{one.created:%Y-%m-%d %H:%M:%S}"
            kind = one.kind if one.kind == "full" else f"since {one.parent}"
            seq = "" if one.seq is None else str(one.seq)
            rows = f"{told['rows']:,}" if one.kind == "full" else f"{told['entries']:,} entries"
            table.add_row(one.id, at, kind, seq, str(told["collections"]), rows, _size(told["bytes"]))
        console = Console(highlight=False, markup=False)
        console.print(table)
        for name, why in listing.unusable.items():
            console.print(f"{name}: {why}")
    raise typer.Exit(NOT_WELL if listing.unusable else 0)


@backup_app.command("verify")
def verify_(
    url: UrlArgument,
    backup: Annotated[str, typer.Argument(metavar="ID", help="A backup; the newest unless given.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Read a backup through, with all that it goes on from, and compare it with its manifest.

    The exit code is 0 if it can be restored, 1 if not, 2 if the input is wrong.
    """
    from haclient.recovery import check, manifest  # noqa: PLC0415 - pyarrow takes long to import

    def run() -> check.Findings:
        store = open_at(url)
        listed = [backup] if backup else [one.id for one in manifest.list_backups(store).backups[-1:]]
        if not listed:
            raise ConfigError(f"there is no backup at {store.url}")
        with bar("verifying", quiet=as_json) as show:
            return check.verify(store, listed[0], lambda now: show(now.of_bytes, now.bytes, _size(now.bytes)))

    found = _blocking(run)
    if as_json:
        print_json({"well": found.well, **asdict(found)})
    else:
        for problem in found.problems:
            typer.echo(problem)
        verdict = "can be restored" if found.well else "is damaged"
        typer.echo(
            f"{found.backups[-1] if found.backups else backup} {verdict}; {found.files} files, {found.rows:,} rows, "
            f"{_size(found.bytes)} read"
        )
    raise typer.Exit(0 if found.well else NOT_WELL)


@backup_app.command()
def prune(
    url: UrlArgument,
    keep_last: Annotated[int, typer.Option(help="How many of the newest to keep, incremental ones too.", min=0)] = 0,
    keep_days: Annotated[float, typer.Option(help="Age up to which all are kept, days.", min=0.0)] = 0.0,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Delete old backups; none that another one goes on from before that one.

    The exit code is 0 if it is done, 1 if not, 2 if the input is wrong.
    """
    from haclient.recovery import manifest, retention  # noqa: PLC0415 - pyarrow takes long to import

    now = datetime.fromtimestamp(time.time(), UTC)
    store = _blocking(lambda: open_at(url))
    keep: dict[str, Any] = {"keep_last": keep_last, "keep_days": keep_days}
    names = _blocking(lambda: retention.plan(manifest.list_backups(store).backups, now, **keep))
    for name in names:
        typer.echo(name)
    if names and not yes and not typer.confirm(f"Delete these {len(names)} backups?"):
        raise typer.Exit(NOT_WELL)
    deleted = _blocking(lambda: retention.prune(store, now, **keep))
    typer.echo(f"deleted {len(deleted)} backups")


def restore(
    url: UrlArgument,
    backup: Annotated[str, typer.Argument(metavar="ID", help="A backup; the newest unless given.")] = "",
    collection: Annotated[
        list[str] | None,
        typer.Option("--collection", help="Name or database.name, or either with =newname; all unless given."),
    ] = None,
    at: Annotated[str, typer.Option("--at", help="An entry of the log, or a time: what was there then.")] = "",
    cluster: ClusterOption = "",
    drop_existing: Annotated[
        bool, typer.Option("--drop-existing", help="Drop collections that are in the way.")
    ] = False,
    given_keys: Annotated[
        bool, typer.Option("--given-keys", help="Make auto_id collections ones whose keys the application gives.")
    ] = False,
    workers: Annotated[int, typer.Option(help="Files written at once.", min=1)] = 4,
    verify: Annotated[bool, typer.Option(help="Read everything back in the end.")] = True,
    config: ConfigOption = None,
    uri: UriOption = None,
    as_json: JsonOption = False,
) -> None:
    """Restore collections of a backup, to a cluster or, through the mutation log, to a fleet.

    One that was cut off goes on if the same command is given again. The exit code is 0 if it is done and was read back,
    1 if it could not be done, 2 if the input is wrong.
    """
    from haclient.recovery import moment  # noqa: PLC0415 - pymilvus takes a second to import
    from haclient.recovery import restore as work  # noqa: PLC0415

    async def run(settings: Config) -> Advance:
        store = open_at(url)
        when, names = moment.parse_at(at), work.parse_names(collection or ())
        found = await asyncio.to_thread(moment.find, store, backup, when)
        where = tuple(sorted(endpoint.name for one in settings.clusters for endpoint in one.endpoints))
        wish = work.Wish(names, (cluster, *where), workers, drop_existing, given_keys, verify)
        async with _target(settings, cluster) as (fleet, target):
            with bar("restoring", quiet=as_json) as show:
                return await work.restore(
                    store, fleet, target, found, wish, lambda now: show(now.expected, now.rows, _line(now))
                )

    try:
        done = asyncio.run(run(Config.load(uri, config)))
    except HAClientError as error:
        fail(error)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    told = {"backup": done.donor, "collections": done.collections, "rows": done.rows, "seconds": done.seconds}
    if as_json:
        print_json({**told, "bytes": done.size, "notes": done.notes})
    else:
        read_back = " and read back" if verify else ""
        typer.echo(f"restored{read_back}: {_line(done)}, in {done.seconds:.1f} s, from {done.donor}")
        for note in done.notes:
            typer.echo(f"note: {note}")


@asynccontextmanager
async def _target(settings: Config, cluster: str) -> AsyncGenerator[tuple[Fleet, Target]]:
    """Reach what is restored to: a fleet whose writes are mirrored, or one cluster."""
    from haclient.events import EventBus  # noqa: PLC0415 - pymilvus takes a second to import
    from haclient.host import Host  # noqa: PLC0415
    from haclient.recovery.source import Fleet  # noqa: PLC0415
    from haclient.recovery.target import Mirrored, OneCluster  # noqa: PLC0415

    mirrored = settings.replication.mode == "mirror"
    if mirrored and cluster:
        raise ConfigError("--cluster would write behind the mutation log's back: leave it out, and all clusters get it")
    if mirrored and not settings.replication.log:
        raise ConfigError('this process has no mutation log (replication.log = ""), so it cannot write')
    fixed = settings.model_copy(update={"source": None})
    host = Host(fixed, lambda: fixed, EventBus(), what="command")
    loop, rng = asyncio.get_running_loop(), random.Random()
    try:
        core = await host.enter()
        await core.start()
        await core.refresh()
        name = f"{platform.node()}/{os.getpid()}/{rng.getrandbits(32):08x}"
        fleet = Fleet(core.clusters, settings.replication, None, name, rng, loop, time.time)
        if core.mirror is not None and core.mirror.replicator is not None:
            yield fleet, Mirrored(fleet, core.mirror.replicator)
        else:
            yield fleet, OneCluster(fleet, cluster)
    finally:
        await host.aclose()


def open_at(url: str) -> Store:
    """Open where backups are.

    Raises:
        ConfigError: It is no such place, or the packages for it are missing.
    """
    try:
        from haclient.recovery.store import open_store  # noqa: PLC0415 - pyarrow takes long to import
    except ImportError as error:
        what = f"backups need more packages ({error})"
        raise ConfigError(f'{what}; install them: pip install "haclient[backup]"') from error
    return open_store(url)


def _blocking(work: Callable[[], T]) -> T:
    """Do something without a fleet; end the process if that fails."""
    try:
        return work()
    except HAClientError as error:
        fail(error)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def _line(now: Advance) -> str:
    from haclient.replication_table import advance  # noqa: PLC0415 - pymilvus takes a second to import

    return advance(now)


def _size(size: float) -> str:
    from haclient.replication_table import bytes_text  # noqa: PLC0415 - pymilvus takes a second to import

    return bytes_text(size)


def _as_json(one: Manifest) -> dict[str, Any]:
    """Return what is told of a backup."""
    return {
        "id": one.id,
        "created": one.created.isoformat(),
        "kind": one.kind,
        "parent": one.parent,
        "seq": one.seq,
        "exact": one.exact,
        "source": one.source,
        "collections": len(one.collections),
        "rows": sum(collection.count for collection in one.collections),
        "entries": sum(file.rows for file in one.log),
        "bytes": sum(file.bytes for file in one.files()),
        "notes": one.notes,
    }


def _tell(one: Manifest) -> None:
    """Say what has been made."""
    told = _as_json(one)
    what = f"{told['collections']} collections, {told['rows']:,} rows" if one.kind == "full" else f"since {one.parent}"
    of = f"as of entry {one.seq} of the log" if one.seq is not None else "as of one moment" if one.exact else "fuzzy"
    entries = f", {told['entries']:,} entries of the log" if told["entries"] else ""
    typer.echo(f"{one.id}: {what}{entries}, {_size(told['bytes'])}; {of}")
    for note in one.notes:
        typer.echo(f"note: {note}")
