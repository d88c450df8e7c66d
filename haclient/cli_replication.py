"""The commands for replicated writes: ``haclient reseed``, ``verify`` and ``log``.

Decision made here: they work on the log and the clusters themselves, so they need no running proxy; what an applier has
to do it does in whatever process it is. These processes apply nothing.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import random
import sys
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NoReturn, TypeVar, final

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn

from haclient.config import Config
from haclient.errors import ConfigError, HAClientError
from haclient.replication.clusters import Clusters
from haclient.replication.log import MutationLog

if TYPE_CHECKING:
    from haclient.replication.audit import Report
    from haclient.replication.operator import EntryView, LogView
    from haclient.replication.reseed import Advance

T = TypeVar("T")

#: Shows progress: how much there is (0 if it is not known), how much is done, and a line of text.
Show = Callable[[int, int, str], None]

NOT_WELL: Final = 1
BAD_INPUT: Final = 2

ConfigOption = Annotated[Path | None, typer.Option("--config", help="TOML file; see examples/haclient.toml.")]
UriOption = Annotated[str | None, typer.Option("--uri", help="Several URIs separated by commas.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]

log_app = typer.Typer(help="The mutation log: how far every cluster is, and what has stopped.", no_args_is_help=True)


@final
@dataclass(frozen=True, slots=True)
class Reach:
    """What a command works on.

    Attributes:
        config: What is configured.
        clusters: The fleet.
        log: The mutation log; None if none is configured.
        holder: Name of this process.
        rng: Source of randomness.
        loop: The running event loop.
    """

    config: Config
    clusters: Clusters
    log: MutationLog | None
    holder: str
    rng: random.Random
    loop: asyncio.AbstractEventLoop

    def needs_log(self) -> MutationLog:
        """Return the log.

        Raises:
            ConfigError: There is none.
        """
        if self.log is None:
            text = "replication.log is not set, and without the mutation log there is nothing to show or to replay"
            raise ConfigError(f'{text}; write mode = "mirror" and log = "..." under [replication] of the file')
        return self.log


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
        with _bar(f"filling {cluster}", quiet=as_json) as show:
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

    done = _run(config, uri, run)
    if as_json:
        _print_json({"cluster": cluster, **asdict(done)})
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
        _fail(ConfigError("--from says which rows are right for --repair; give both"))

    async def run(reach: Reach) -> Report:
        with _bar("comparing", quiet=as_json) as show:
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

    done = _run(config, uri, run)
    if as_json:
        _print_json(done.as_json())
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

    view = _run(config, uri, run, start=False)
    if as_json:
        _print_json(view.as_json())
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
        _fail(ConfigError("give either the number of an entry or --parked"))

    async def run(reach: Reach) -> list[EntryView]:
        log = reach.needs_log()
        seqs = [seq] if seq is not None else []
        if parked:
            seqs = sorted({one.seq for _, _, one in await operator.parked_streams(log, reach.clusters)})
        return [await operator.inspect(log, reach.clusters, one) for one in seqs]

    views = _run(config, uri, run, start=False)
    if as_json:
        _print_json([view.as_json() for view in views])
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

    stream = _run(config, uri, run, start=False)
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

    for stream in _run(config, uri, run, start=False):
        typer.echo(f"{cluster}: {stream} is tried again")


# What the commands share.


def _run(
    config: Path | None, uri: str | None, work: Callable[[Reach], Coroutine[Any, Any, T]], *, start: bool = True
) -> T:
    """Do something with the log and the clusters; end the process if that fails."""

    async def run() -> T:
        async with _reach(Config.load(uri, config), start=start) as reach:
            return await work(reach)

    try:
        return asyncio.run(run())
    except HAClientError as error:
        _fail(error)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


@asynccontextmanager
async def _reach(config: Config, *, start: bool) -> AsyncGenerator[Reach]:
    """Open the log, and look at every endpoint if the clusters themselves are needed."""
    from haclient.events import EventBus  # noqa: PLC0415 - pymilvus takes a second to import
    from haclient.host import Host  # noqa: PLC0415
    from haclient.replication.engines import open_log  # noqa: PLC0415

    loop, rng, settings = asyncio.get_running_loop(), random.Random(), config.replication
    # A core that mirrors would apply the log, too.
    plain = config.model_copy(update={"replication": settings.model_copy(update={"mode": "none"}), "source": None})
    host = Host(plain, lambda: plain, EventBus(), what="command")
    log = open_log(settings, time.time) if settings.log else None
    try:
        core = await host.enter()
        if start:
            await core.start()
            await core.refresh()
        if log is not None:
            await log.open()
        holder = f"{platform.node()}/{os.getpid()}/{rng.getrandbits(32):08x}"
        yield Reach(config, core.clusters, log, holder, rng, loop)
    finally:
        if log is not None:
            await log.aclose()
        await host.aclose()


@contextmanager
def _bar(title: str, *, quiet: bool) -> Generator[Show]:
    """Show a progress bar on stderr, if that is a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[text]}"))
    console = Console(stderr=True, highlight=False)
    with Progress(*columns, console=console, disable=quiet or not console.is_terminal, transient=True) as bar:
        task = bar.add_task(title, total=None, text="")

        def show(total: int, done: int, text: str) -> None:
            bar.update(task, total=max(total, done) if total else None, completed=done, text=escape(text))

        yield show


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2 if sys.stdout.isatty() else None, default=str))


def _fail(error: HAClientError) -> NoReturn:
    for line in str(error).splitlines():
        typer.echo(f"haclient: {line}", err=True)
    raise typer.Exit(BAD_INPUT if isinstance(error, ConfigError) else NOT_WELL)
