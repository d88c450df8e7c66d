"""The commands for replicated writes: ``haclient reseed``, ``verify`` and ``log``.

Decision made here: they work on the log and the clusters themselves, so they need no running proxy; what an applier has
to do it does in whatever process it is. These processes apply nothing.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from haclient.cli.common import NOT_WELL, ConfigOption, JsonOption, Reach, UriOption, bar, fail, on_fleet, print_json
from haclient.errors import ConfigError

if TYPE_CHECKING:
    from haclient.replication.audit import Report
    from haclient.replication.operator import EntryView, LogView
    from haclient.replication.reseed import Advance

log_app = typer.Typer(help="The mutation log: how far every cluster is, and what has stopped.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command()(reseed)
    app.command()(verify)
    app.add_typer(log_app, name="log")


def reseed(
    cluster: Annotated[str, typer.Argument(help="The cluster to fill, as haclient status shows it.")],
    donor: Annotated[str, typer.Option("--from", help="The cluster to copy; else the one that is furthest.")] = "",
    config: ConfigOption = None,
    uri: UriOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    in_place: Annotated[
        bool, typer.Option("--in-place", help="Keep collections whose schema is right; write what differs.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Fill a cluster from another one while writes go on; what only it has is dropped.

    One that was cut off goes on where it stopped. Users are not copied, as no server tells a password. The exit code is
    0 if it is done, 1 if it could not be done, 2 if the input is wrong.
    """
    from haclient import replication_table  # noqa: PLC0415 - pymilvus takes a second to import
    from haclient.replication import reseed as work  # noqa: PLC0415

    if not yes and not typer.confirm(f"Everything in cluster {cluster} that its donor has not is dropped. Go on?"):
        raise typer.Exit(NOT_WELL)

    async def run(reach: Reach) -> Advance:
        with bar(f"filling {cluster}", quiet=as_json) as show:
            return await work.reseed(
                reach.needs_log(),
                reach.clusters,
                reach.config.replication,
                cluster,
                holder=reach.holder,
                rng=reach.rng,
                loop=reach.loop,
                donor=donor,
                in_place=in_place,
                report=lambda now: show(now.expected, now.rows, replication_table.advance(now)),
            )

    done = on_fleet(config, uri, run)
    if as_json:
        print_json({"cluster": cluster, **asdict(done)})
    else:
        Console(highlight=False).print(replication_table.reseeded(cluster, done))


def verify(
    collections: Annotated[list[str] | None, typer.Argument(help="Names, or database.name; all unless given.")] = None,
    repair: Annotated[bool, typer.Option("--repair", help="Mend rows that differ.")] = False,
    trusted: Annotated[
        str, typer.Option("--from", help="The cluster that is right where log and majority do not say.")
    ] = "",
    adopt: Annotated[bool, typer.Option("--adopt", help="Mirror writes to collections that are the same.")] = False,
    config: ConfigOption = None,
    uri: UriOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare the clusters row by row while writes go on, and show or mend what differs.

    The exit code is 0 if all clusters hold the same (in the end), 1 if not, 2 if the input is wrong.
    """
    from haclient import replication_table  # noqa: PLC0415 - pymilvus takes a second to import
    from haclient.replication.audit import audit  # noqa: PLC0415

    if trusted and not repair:
        fail(ConfigError("--from says which rows are right for --repair; give both"))

    async def run(reach: Reach) -> Report:
        with bar("comparing", quiet=as_json) as show:
            return await audit(
                reach.clusters,
                reach.config.replication,
                reach.log,
                collections or (),
                holder=reach.holder,
                rng=reach.rng,
                loop=reach.loop,
                repair=repair,
                trusted=trusted,
                adopt=adopt,
                report=lambda done, name: show(0, done.rows, f"{name}: {done.rows:,} rows read"),
            )

    done = on_fleet(config, uri, run)
    if as_json:
        print_json(done.as_json())
    else:
        Console(highlight=False).print(replication_table.verified(done))
    raise typer.Exit(0 if done.well else NOT_WELL)


# The log.


@log_app.command()
def show(config: ConfigOption = None, uri: UriOption = None, as_json: JsonOption = False) -> None:
    """Show how far every cluster has applied the log, and which collections have stopped.

    The exit code is 0 if every cluster keeps up, 1 if not, 2 if the input is wrong.
    """
    from haclient import replication_table  # noqa: PLC0415 - pymilvus takes a second to import
    from haclient.replication import operator  # noqa: PLC0415

    async def run(reach: Reach) -> LogView:
        return await operator.look(reach.needs_log(), reach.clusters)

    view = on_fleet(config, uri, run, start=False)
    if as_json:
        print_json(view.as_json())
    else:
        Console(highlight=False).print(replication_table.log(view))
    raise typer.Exit(0 if all(one.well for one in view.clusters) else NOT_WELL)


@log_app.command()
def inspect(
    seq: Annotated[int | None, typer.Argument(help="Number of an entry.")] = None,
    parked: Annotated[bool, typer.Option("--parked", help="Every entry at which a collection has stopped.")] = False,
    config: ConfigOption = None,
    uri: UriOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what an entry of the log is about: call, collection, keys, sizes; never values or passwords.

    The exit code is 0 if it is shown, 2 if the input is wrong.
    """
    from haclient import replication_table  # noqa: PLC0415 - pymilvus takes a second to import
    from haclient.replication import operator  # noqa: PLC0415

    if (seq is None) is not parked:
        fail(ConfigError("give either the number of an entry or --parked"))

    async def run(reach: Reach) -> list[EntryView]:
        log = reach.needs_log()
        seqs = [seq] if seq is not None else []
        if parked:
            seqs = sorted({one.seq for _, _, one in await operator.parked_streams(log, reach.clusters)})
        return [await operator.inspect(log, reach.clusters, one) for one in seqs]

    views = on_fleet(config, uri, run, start=False)
    if as_json:
        print_json([view.as_json() for view in views])
        return
    console = Console(highlight=False)
    for view in views:
        console.print(replication_table.entry(view), "")
    if not views:
        console.print("nothing has stopped")


@log_app.command()
def skip(
    cluster: Annotated[str, typer.Argument(help="The cluster that has stopped.")],
    seq: Annotated[int, typer.Argument(help="The entry at which it has stopped.")],
    config: ConfigOption = None,
    uri: UriOption = None,
) -> None:
    """Have a cluster pass over an entry that it cannot take, and go on with the collection.

    It differs from the others then: see haclient verify --repair. The exit code is 0 if its applier will do so, 2 if
    the input is wrong.
    """
    from haclient.replication import operator  # noqa: PLC0415 - pymilvus takes a second to import

    async def run(reach: Reach) -> str:
        return await operator.skip(reach.needs_log(), cluster, seq)

    stream = on_fleet(config, uri, run, start=False)
    typer.echo(f"{cluster}: {stream} goes on behind entry {seq}")


@log_app.command()
def retry(
    cluster: Annotated[str, typer.Argument(help="The cluster that has stopped.")],
    collection: Annotated[str, typer.Argument(help="Name, or database.name; all that have stopped unless given.")] = "",
    config: ConfigOption = None,
    uri: UriOption = None,
) -> None:
    """Have a cluster try again the entries that it could not take.

    The exit code is 0 if its applier will do so, 2 if the input is wrong.
    """
    from haclient.replication import operator  # noqa: PLC0415 - pymilvus takes a second to import

    async def run(reach: Reach) -> list[str]:
        return await operator.retry(reach.needs_log(), cluster, collection)

    for stream in on_fleet(config, uri, run, start=False):
        typer.echo(f"{cluster}: {stream} is tried again")
