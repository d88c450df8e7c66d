"""What the commands share: options, exit codes, how failures are told, and reaching clusters and log.

Decision made here: exit code 0 means what was asked is well, 1 that it is not, 2 that the question was wrong (then the
message is on stderr, and there is no traceback).
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
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn, TypeVar, final

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn

from haclient.config import Config
from haclient.errors import ConfigError, HAClientError
from haclient.replication.clusters import Clusters
from haclient.replication.log import MutationLog

T = TypeVar("T")

#: Shows progress: how much there is (0 if it is not known), how much is done, and a line of text.
Show = Callable[[int, int, str], None]

OK: Final = 0
NOT_WELL: Final = 1
BAD_INPUT: Final = 2

ConfigOption = Annotated[Path | None, typer.Option("--config", help="TOML file; see examples/haclient.toml.")]
UriOption = Annotated[str | None, typer.Option("--uri", help="Several URIs separated by commas.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


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


def on_fleet(
    config: Path | None, uri: str | None, work: Callable[[Reach], Coroutine[Any, Any, T]], *, start: bool = True
) -> T:
    """Do something with the log and the clusters; end the process if that fails."""

    async def run() -> T:
        async with _reach(Config.load(uri, config), start=start) as reach:
            return await work(reach)

    try:
        return asyncio.run(run())
    except HAClientError as error:
        fail(error)
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
def bar(title: str, *, quiet: bool) -> Generator[Show]:
    """Show a progress bar on stderr, if that is a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[text]}"))
    console = Console(stderr=True, highlight=False)
    with Progress(*columns, console=console, disable=quiet or not console.is_terminal, transient=True) as bar:
        task = bar.add_task(title, total=None, text="")

        def show(total: int, done: int, text: str) -> None:
            bar.update(task, total=max(total, done) if total else None, completed=done, text=escape(text))

        yield show


def print_json(value: Any) -> None:
    """Print one JSON value: in lines if somebody looks, else in one."""
    print(json.dumps(value, indent=2 if sys.stdout.isatty() else None, default=str))


def fail(error: HAClientError) -> NoReturn:
    """Tell an error on stderr and end the process: 2 for wrong input, 1 for anything else."""
    for line in str(error).splitlines():
        typer.echo(f"haclient: {line}", err=True)
    raise typer.Exit(BAD_INPUT if isinstance(error, ConfigError) else NOT_WELL)
