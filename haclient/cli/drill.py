"""The command ``haclient drill``: rehearse failures, and get availability, recovery and loss as numbers.

Decision made here: what is broken on purpose is a fleet that the drill starts itself. A fleet that is there already is
touched only if that is said twice: by its configuration, and by an option that nobody writes by accident.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from haclient.cli.common import NOT_WELL, OK, fail
from haclient.errors import ConfigError, HAClientError

if TYPE_CHECKING:
    from haclient.drill.record import Trial
    from haclient.drill.report.results import Results
    from haclient.drill.run import Advance, Make
    from haclient.drill.scenario import Scenario

#: Every scenario that comes with haclient.
_ALL = "all"


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(drill)


def drill(
    scenarios: Annotated[list[str] | None, typer.Argument(help="Names, files (.toml), or all.")] = None,
    engine: Annotated[
        Literal["lite", "milvus"], typer.Option(help="Servers to start: milvus-lite, or Milvus 2.3.5.")
    ] = "lite",
    trials: Annotated[int, typer.Option(help="Trials of each scenario.", min=1)] = 1,
    seed: Annotated[int, typer.Option(help="Of moments, targets and keys; the trials' seeds follow it.")] = 1,
    seconds: Annotated[
        float | None, typer.Option(help="Length of the load, in place of the scenario's.", min=1)
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write every call and every figure.")] = None,
    junit_file: Annotated[Path | None, typer.Option("--junit", help="Write the verdicts for CI.")] = None,
    html_file: Annotated[Path | None, typer.Option("--html", help="Write a report to look at.")] = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="Drill the fleet of this file, in place of one of its own.")
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes-break-my-fleet", help="Say that the fleet of --config may be hurt.")
    ] = False,
    keep: Annotated[Path | None, typer.Option(help="Keep data, histories and logs in this folder.")] = None,
    show: Annotated[bool, typer.Option("--list", help="List the scenarios, and do nothing.")] = False,
) -> None:
    """Break a fleet on purpose under load, and measure what the application notices.

    Starts its own servers on this machine, and leaves nothing behind. With --config and --yes-break-my-fleet a fleet is
    hurt that is there already: between the load and the servers, by draining, and by releasing a collection that the
    drill makes and drops; everything else is refused. The exit code is 0 if all that the scenarios expect was kept, 1
    if not, 2 if the input is wrong.
    """
    console = Console(highlight=False)
    try:
        wanted = _wanted(scenarios or [], seconds)
        if (config is not None) is not yes:
            raise ConfigError("--config and --yes-break-my-fleet belong together: that fleet is hurt on purpose")
        if show or not wanted:
            console.print(_listed(wanted or _wanted([_ALL], None)))
            raise typer.Exit
        with _folder(keep) as folder:
            ground = _staging(config, wanted) if config else _own(engine, wanted)
            results = _run(ground, trials, seed, folder)
    except HAClientError as error:
        fail(error)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    _write(results, json_file, junit_file, html_file)
    from haclient.drill.report import terminal  # noqa: PLC0415 - as below

    console.print(terminal.table(results))
    raise typer.Exit(OK if all(verdict.kept for verdict in results.verdicts()) else NOT_WELL)


def _wanted(names: Sequence[str], seconds: float | None) -> list[Scenario]:
    """Read the scenarios that are asked for."""
    from haclient.drill.scenario import load, shipped  # noqa: PLC0415 - pydantic's models, for this command alone

    known = shipped()
    paths: dict[Path, None] = {}
    for name in names:
        if name == _ALL:
            paths.update(dict.fromkeys(known.values()))
        elif name in known:
            paths[known[name]] = None
        elif name.endswith(".toml"):
            paths[Path(name)] = None
        else:
            raise ConfigError(f"scenario {name!r} is not known; write a file.toml, all, or one of {', '.join(known)}")
    found = [load(path) for path in paths]
    if twice := {one.name for one in found if sum(one.name == other.name for other in found) > 1}:
        raise ConfigError(f"two scenarios are named {', '.join(sorted(twice))}; give one of the files another name")
    if seconds is None:
        return found
    return [one.model_copy(update={"load": one.load.model_copy(update={"seconds": seconds})}) for one in found]


def _listed(scenarios: Sequence[Scenario]) -> Table:
    grid = Table(box=None, pad_edge=False)
    for name in ("scenario", "engines", "what happens"):
        grid.add_column(name, no_wrap=name != "what happens")
    for one in scenarios:
        grid.add_row(one.name, ", ".join(one.engines), escape(one.title))
    return grid


@contextlib.contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    folder = keep or Path(tempfile.mkdtemp(prefix="haclient-drill-"))
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise ConfigError(f"--keep {folder}: the folder is not empty; name another one")
    try:
        yield folder.absolute()
    finally:
        if keep is None:
            shutil.rmtree(folder, ignore_errors=True)


class _Ground(NamedTuple):
    """What is hurt: its name, the scenarios that can be run on it, and what makes or reaches it."""

    engine: str
    scenarios: Sequence[Scenario]
    make: Make


def _own(engine: Literal["lite", "milvus"], scenarios: Sequence[Scenario]) -> _Ground:
    """A fleet that the drill starts itself."""
    from haclient.drill.run import refuse, started  # noqa: PLC0415 - pymilvus takes a second to import

    return _Ground(engine, _possible(scenarios, lambda one: refuse(one, engine), engine), started(engine))


def _staging(config: Path, scenarios: Sequence[Scenario]) -> _Ground:
    """Somebody's fleet."""
    from haclient.drill import run, staging  # noqa: PLC0415 - pymilvus takes a second to import

    fitted = [staging.fitted(scenario, config) for scenario in scenarios]
    possible = _possible(fitted, lambda one: run.refuse(one, "staging") or staging.refuse(one), str(config))
    return _Ground("staging", possible, staging.staging(config))


def _possible(scenarios: Sequence[Scenario], refuse: Callable[[Scenario], str], where: str) -> list[Scenario]:
    reasons = {scenario.name: refuse(scenario) for scenario in scenarios}
    told = [f"{name}: refused: {reason}" for name, reason in reasons.items() if reason]
    if len(told) == len(reasons):
        raise ConfigError("\n".join([*told, f"none of these scenarios can be run on {where}"]))
    for line in told:
        typer.echo(line, err=True)
    return [scenario for scenario in scenarios if not reasons[scenario.name]]


def _run(ground: _Ground, trials: int, seed: int, folder: Path) -> Results:
    from haclient.drill.run import Plan, run  # noqa: PLC0415 - pymilvus takes a second to import

    logging.getLogger("haclient").setLevel(logging.CRITICAL)  # what happens is told, and is in the histories
    logging.getLogger("pymilvus").setLevel(logging.CRITICAL)
    console = Console(stderr=True, highlight=False)
    with _progress(console, trials * len(ground.scenarios)) as (report, ended):
        plan = Plan(
            scenarios=ground.scenarios,
            trials=trials,
            seed=seed,
            folder=folder,
            engine=ground.engine,
            make=ground.make,
            report=report,
            ended=ended,
        )
        return asyncio.run(run(plan))


@contextlib.contextmanager
def _progress(
    console: Console, total: int
) -> Iterator[tuple[Callable[[Advance], None], Callable[[Scenario, Trial], None]]]:
    """Show how far the run is: in a terminal as it goes on, and a line for each trial that has ended."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("", total=total)

        def report(now: Advance) -> None:
            which = f"{now.scenario} #{now.trial}" if now.scenario else ""
            bar.update(task, description=escape(f"{which}: {now.doing}"), completed=now.done)

        def ended(scenario: Scenario, trial: Trial) -> None:
            from haclient.drill.verdict import judge  # noqa: PLC0415 - for this command alone

            verdict = judge(scenario, [trial])
            missed = "; ".join(f"{one.name}: {one.seen}" for one in verdict.findings if not one.kept)
            told = f"not kept: {missed}" if missed else "kept"
            console.print(escape(f"{scenario.name}, seed {trial.seed}: {trial.error or told}"))

        yield report, ended


def _write(results: Results, json_file: Path | None, junit_file: Path | None, html_file: Path | None) -> None:
    from haclient.drill.report.results import write_json  # noqa: PLC0415 - for this command alone

    try:
        if json_file is not None:
            write_json(json_file, results)
        if junit_file is not None:
            from haclient.drill.report.junit import write_junit  # noqa: PLC0415 - as above

            write_junit(junit_file, results)
        if html_file is not None:
            from haclient.drill.report.html import write_html  # noqa: PLC0415 - as above

            write_html(html_file, results)
    except OSError as error:
        fail(HAClientError(f"the results could not be written: {error}"))
