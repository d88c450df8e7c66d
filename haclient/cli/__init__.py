"""The command ``haclient``.

Decision made here: whatever takes long to import is imported by the command that needs it.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from typing import Annotated, Any, TypeAlias

import typer
from rich.console import Console
from rich.live import Live

from haclient import __version__, status_table
from haclient.cli import drill, planning, recovery, replication, sites
from haclient.cli.common import NOT_WELL, OK, ConfigOption, fail
from haclient.config import Config
from haclient.config.replication import Replication
from haclient.errors import ConfigError, HAClientError
from haclient.fleet.model import FleetView

#: Look at the fleet once.
Look: TypeAlias = Callable[[], Awaitable[FleetView]]

AdminOption = Annotated[str, typer.Option("--admin", help="Admin address of a proxy, for example 127.0.0.1:9091.")]
TokenOption = Annotated[str, typer.Option(envvar="HACLIENT_ADMIN_TOKEN", help="The proxy's admin_token.")]
TimeoutOption = Annotated[float, typer.Option(help="Seconds to wait for the answers.", min=0.1)]

app = typer.Typer(
    name="haclient",
    help="An HA-aware client for Milvus: reads survive the failure of any single server.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
planning.register(app)
replication.register(app)
recovery.register(app)
sites.register(app)
drill.register(app)


def main() -> None:
    """Run the command line."""
    app()


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"haclient {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    pass


@app.command()
def status(
    config: ConfigOption = None,
    uri: Annotated[str | None, typer.Option(help="One URI, or several separated by commas.")] = None,
    admin: AdminOption = "",
    token: TokenOption = "",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object (with --watch: one per line).")
    ] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Show it again and again until Ctrl-C.")] = False,
    every: Annotated[float, typer.Option(help="Seconds between two looks of --watch.", min=0.1)] = 2.0,
    timeout: TimeoutOption = 5.0,
) -> None:
    """Show every endpoint: its state, latency, collections, version and last error.

    Every endpoint and every loaded collection is really asked; with --admin, a running proxy says how it sees them.
    Without options, HACLIENT_CONFIG, HACLIENT_URI and MILVUS_URI say which. The exit code is 0 if at least one
    endpoint is up, 1 if none is, 2 if the input is wrong.
    """
    try:
        if admin and (config or uri):
            raise ConfigError("arguments: admin: is given together with config or uri; write only one of them")
        source = _proxy(admin, token, timeout) if admin else _servers(Config.load(uri, config), timeout)
        view = asyncio.run(_show(source, as_json, every if watch else None))
    except HAClientError as error:
        fail(error)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    raise typer.Exit(OK if status_table.up(view) else NOT_WELL)


async def _show(source: AbstractAsyncContextManager[Look], as_json: bool, every_s: float | None) -> FleetView:
    """Print the fleet once, or every so often until Ctrl-C; returns it as last seen."""
    console = Console(highlight=False)
    screen = every_s is not None and console.is_terminal and not as_json
    live = Live(console=console, screen=False, auto_refresh=False) if screen else None
    async with source as look:
        with live or nullcontext():
            while True:
                view = await look()
                if as_json:
                    indent = 2 if every_s is None and sys.stdout.isatty() else None
                    print(json.dumps(status_table.as_json(view), indent=indent), flush=True)
                elif live:
                    live.update(status_table.table(view), refresh=True)
                else:
                    console.print(status_table.table(view))
                if every_s is None:
                    return view
                await asyncio.sleep(every_s)


@asynccontextmanager
async def _servers(settings: Config, timeout_s: float) -> AsyncGenerator[Look, None]:
    """Ask every endpoint; those that do not answer in time are shown as they were known."""
    from haclient.client import AsyncMilvusClient  # noqa: PLC0415 - pymilvus takes a second to import

    # Who only looks does not stand for office.
    client = AsyncMilvusClient(config=settings.model_copy(update={"replication": Replication()}))

    async def look() -> FleetView:
        try:
            async with asyncio.timeout(timeout_s):
                return await sites.placed(settings, await client.refresh())
        except TimeoutError:
            return client.fleet

    try:
        yield look
    finally:
        await client.close()


@asynccontextmanager
async def _proxy(admin: str, token: str, timeout_s: float) -> AsyncGenerator[Look, None]:
    """Ask a running proxy."""
    from haclient.proxy.admin_client import AdminClient  # noqa: PLC0415 - httpx, for this option alone

    async with AdminClient(admin, token, timeout_s) as client:
        yield client.fleet


@app.command()
def drain(
    name: Annotated[str, typer.Argument(help="Name of an endpoint or a cluster, as haclient status shows it.")],
    admin: AdminOption,
    token: TokenOption = "",
    timeout: TimeoutOption = 5.0,
) -> None:
    """Take an endpoint or a cluster of a running proxy out of rotation; calls under way finish.

    The exit code is 0 if it is done, 1 if the proxy gives no answer, 2 if the input is wrong.
    """
    _set_drained(name, admin, token, timeout, drained=True)
    typer.echo(f"{name}: out of rotation")


@app.command()
def undrain(
    name: Annotated[str, typer.Argument(help="Name of an endpoint or a cluster, as haclient status shows it.")],
    admin: AdminOption,
    token: TokenOption = "",
    timeout: TimeoutOption = 5.0,
) -> None:
    """Put an endpoint or a cluster of a running proxy back into rotation.

    The exit code is 0 if it is done, 1 if the proxy gives no answer, 2 if the input is wrong.
    """
    _set_drained(name, admin, token, timeout, drained=False)
    typer.echo(f"{name}: in rotation")


def _set_drained(name: str, admin: str, token: str, timeout_s: float, *, drained: bool) -> None:
    from haclient.proxy.admin_client import AdminClient  # noqa: PLC0415 - httpx, for these commands alone

    async def ask() -> None:
        async with AdminClient(admin, token, timeout_s) as client:
            await client.drain(name, drained=drained)

    try:
        asyncio.run(ask())
    except HAClientError as error:
        fail(error)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


@app.command()
def proxy(
    config: ConfigOption = None,
    uri: Annotated[str | None, typer.Option(help="One URI, or several separated by commas.")] = None,
    listen: Annotated[str | None, typer.Option(help="Where clients connect: host:port.")] = None,
    admin: Annotated[str | None, typer.Option(help='Where the admin API is: host:port; "" is nowhere.')] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that serve clients.")] = None,
) -> None:
    """Serve Milvus clients of every language: failover, hedging and drain behind one address.

    The options win over [proxy] of the file, where the rest is. Without --config and --uri, HACLIENT_CONFIG,
    HACLIENT_URI and MILVUS_URI say which servers. Runs until SIGTERM or Ctrl-C; SIGHUP reads the configuration
    again. The exit code is 0 if every call under way was finished, 1 if some were cut off, 2 if the input is wrong.
    """
    try:
        from haclient.proxy import supervisor  # noqa: PLC0415 - the web framework, for this command alone
    except ImportError as error:
        what = f"haclient proxy needs more packages ({error.__cause__ or error})"
        fail(ConfigError(f'{what}; install them: pip install "haclient[proxy]"'))
    given: dict[str, Any] = {"listen": listen, "admin": admin, "workers": workers}
    given = {key: value for key, value in given.items() if value is not None}

    def load() -> Config:
        return Config.load(uri, config, **({"proxy": given} if given else {}))

    try:
        code = supervisor.run(load(), load)
    except HAClientError as error:
        fail(error)
    raise typer.Exit(code)


@app.command()
def demo(
    embedder: Annotated[str, typer.Option(help="hashing, or sentence-transformers[:MODEL].")] = "hashing",
    seconds: Annotated[float, typer.Option(help="How long questions are asked.")] = 25.0,
    rate: Annotated[float, typer.Option(help="Questions a second.")] = 20.0,
    seed: Annotated[int, typer.Option(help="Seed of the order of the questions.")] = 0,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the servers' folder in place.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as one line of JSON.")] = False,
) -> None:
    """Answer real questions while servers are killed, frozen and emptied; nothing to configure.

    Starts three milvus-lite servers in a temporary folder and ends with a report. The exit code is 0 if every
    question was answered rightly, 1 if not, 2 if the input is wrong.
    """
    from haclient.drill.demo import DemoOptions, run  # noqa: PLC0415 - numpy and pymilvus, for this command alone

    try:
        options = DemoOptions(embedder=embedder, seconds=seconds, rate=rate, seed=seed, keep=keep, json=as_json)
    except ConfigError as error:
        fail(error)
    raise typer.Exit(run(options))
