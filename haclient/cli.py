"""The command ``haclient``.

Decision made here: exit code 0 means what was asked is well, 1 that it is not, 2 that the question was wrong
(then the message is on stderr, and there is no traceback). Whatever takes long to import is imported by the
command that needs it.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import Annotated, Final, NoReturn

import typer
from rich.console import Console
from rich.live import Live

from haclient import __version__, status_table
from haclient.config import Config
from haclient.errors import ConfigError
from haclient.fleet.model import FleetView

OK: Final = 0
NOT_WELL: Final = 1
BAD_INPUT: Final = 2

app = typer.Typer(
    name="haclient",
    help="An HA-aware client for Milvus: reads survive the failure of any single server.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


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
    config: Annotated[Path | None, typer.Option(help="TOML file; see examples/haclient.toml.")] = None,
    uri: Annotated[str | None, typer.Option(help="One URI, or several separated by commas.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object (with --watch: one per line).")
    ] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Show it again and again until Ctrl-C.")] = False,
    every: Annotated[float, typer.Option(help="Seconds between two looks of --watch.", min=0.1)] = 2.0,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the servers' answers.", min=0.1)] = 5.0,
) -> None:
    """Show every endpoint: its state, latency, collections, version and last error.

    Every endpoint and every loaded collection is really asked. Without options, HACLIENT_CONFIG, HACLIENT_URI and
    MILVUS_URI say which. The exit code is 0 if at least one endpoint is up, 1 if none is, 2 if the input is wrong.
    """
    try:
        settings = Config.load(uri, config)
        view = asyncio.run(_show(settings, as_json, every if watch else None, timeout))
    except ConfigError as error:
        _refuse(str(error))
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    raise typer.Exit(OK if status_table.up(view) else NOT_WELL)


async def _show(settings: Config, as_json: bool, every_s: float | None, timeout_s: float) -> FleetView:
    """Print the fleet once, or every so often until Ctrl-C; returns it as last seen."""
    console = Console(highlight=False)
    view = FleetView((), 0.0)
    async with aclosing(_looks(settings, every_s, timeout_s)) as looks:
        if every_s is not None and console.is_terminal and not as_json:
            with Live(console=console, screen=False, auto_refresh=False) as live:
                async for view in looks:
                    live.update(status_table.table(view), refresh=True)
            return view
        async for view in looks:
            if as_json:
                indent = 2 if every_s is None and sys.stdout.isatty() else None
                print(json.dumps(status_table.as_json(view), indent=indent), flush=True)
            else:
                console.print(status_table.table(view))
    return view


async def _looks(settings: Config, every_s: float | None, timeout_s: float) -> AsyncGenerator[FleetView, None]:
    """Look at every endpoint once, or every so often."""
    from haclient.client import AsyncMilvusClient  # noqa: PLC0415 - pymilvus takes a second to import

    client = AsyncMilvusClient(config=settings)
    try:
        while True:
            try:
                async with asyncio.timeout(timeout_s):
                    view = await client.refresh()
            except TimeoutError:
                view = client.fleet
            yield view
            if every_s is None:
                return
            await asyncio.sleep(every_s)
    finally:
        await client.close()


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
        _refuse(str(error))
    raise typer.Exit(run(options))


def _refuse(message: str) -> NoReturn:
    for line in message.splitlines():
        typer.echo(f"haclient: {line}", err=True)
    raise typer.Exit(BAD_INPUT)


if __name__ == "__main__":
    main()
