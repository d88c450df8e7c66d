"""The commands for planning: ``haclient plan`` and ``haclient plan slo``.

Decision made here: what was assumed is shown beside what was worked out of it, and every result ends with a sentence
that says what it means.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.console import Console

from haclient.cli.common import NOT_WELL, OK, JsonOption, fail, print_json
from haclient.errors import ConfigError, HAClientError
from haclient.planning import units
from haclient.planning.options import Ack, Log

if TYPE_CHECKING:
    from haclient.drill.report.results import Results
    from haclient.planning.measured import Failures
    from haclient.planning.slo import Objective, Spent

#: Time for each answer of Prometheus, seconds.
_TIMEOUT_S: Final = 30.0


def _quantity(read: Callable[[str], float], metavar: str, text: str, default: str | bool = False) -> Any:
    """Return an option with a unit; its default is shown as it would be written."""

    def parse(value: str | float) -> float:
        try:
            return value if isinstance(value, float) else read(value)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None

    return typer.Option(parser=parse, metavar=metavar, help=text, show_default=default)


_time, _share = partial(_quantity, units.duration, "TIME"), partial(_quantity, units.share, "SHARE")
_FROM: Final = "Measured instead"
#: Assumed of failovers unless they were rehearsed: share that works, seconds.
_COVERAGE, _RTO_S, _WRITE_RTO_S = 0.99, 1.0, 2.0

DrillOption = Annotated[
    Path | None, typer.Option(help="JSON file of haclient drill.", rich_help_panel=_FROM, show_default=False)
]
PrometheusOption = Annotated[
    str, typer.Option(help="A Prometheus server that scrapes haclient: http://host:9090.", rich_help_panel=_FROM)
]
WindowOption = Annotated[float, _time("Length of time that counts.", "30d")]

plan_app = typer.Typer(invoke_without_command=True)


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.add_typer(plan_app, name="plan")


@plan_app.callback()
def plan(
    context: typer.Context,
    mtbf: Annotated[float | None, _time("Mean time that a copy works between two failures: 30d.")] = None,
    mttr: Annotated[float | None, _time("Mean time until it works again: 5m.")] = None,
    events: Annotated[
        Path | None,
        typer.Option(help='Both, from the log of a proxy (log = "json").', rich_help_panel=_FROM, show_default=False),
    ] = None,
    prometheus: PrometheusOption = "",
    window: WindowOption = 30 * units.UNITS["d"],
    drill: DrillOption = None,
    copies: Annotated[int, typer.Option(help="How many copies to go up to.", min=1, max=9)] = 3,
    beta: Annotated[float, _share("Share of failures that take down all copies at once.", "5%")] = 0.05,
    coverage: Annotated[float | None, _share("Share of failures that are led around.", "99%, or the drill's")] = None,
    rto: Annotated[float | None, _time("How long reads fail meanwhile.", "1s, or the drill's")] = None,
    write_rto: Annotated[float | None, _time("How long writes fail meanwhile.", "2s, or the drill's")] = None,
    ack: Annotated[Ack, typer.Option(help="What a write waits for.")] = "one",
    log: Annotated[Log, typer.Option(help="The mutation log: on one disk, or in etcd with three members.")] = "sqlite",
    log_mtbf: Annotated[float | None, _time("MTBF of the log's disk, or of each member.", "a copy's")] = None,
    log_mttr: Annotated[float | None, _time("MTTR of the same.", "a copy's")] = None,
    cost_per_copy: Annotated[
        float | None, typer.Option(help="A month, in any currency.", min=0, show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show how available one, two, three copies are, what limits them, and what each nine costs.

    How a copy fails is given (--mtbf and --mttr) or measured (--events or --prometheus); how failures are led around is
    given or measured (--drill). The exit code is 0, 1 if Prometheus gives no answer, 2 if the input is wrong.
    """
    from haclient.planning import table  # noqa: PLC0415 - what drills need, for this command alone
    from haclient.planning.availability import Behaviour  # noqa: PLC0415
    from haclient.planning.measured import failovers  # noqa: PLC0415
    from haclient.planning.options import Setting, options  # noqa: PLC0415

    if context.invoked_subcommand is not None:
        sources = filter(None, map(context.get_parameter_source, context.params))
        if any(source.name != "DEFAULT" for source in sources):
            raise typer.BadParameter(f"write the options behind {context.invoked_subcommand}")
        return
    with _told():
        measure = bool(events or prometheus)
        if measure and mtbf is not None and mttr is not None:
            raise ConfigError("arguments: --mtbf and --mttr leave nothing to measure; drop them, or the other option")
        seen = _failures(events, prometheus, window) if measure else None
        rehearsed = failovers(_results(drill)) if drill else None
        mtbf_s, mttr_s = _first(mtbf, seen and seen.mtbf_s), _first(mttr, seen and seen.mttr_s)
        behaviour = Behaviour(
            mtbf_s=mtbf_s,
            mttr_s=mttr_s,
            beta=beta,
            coverage=_first(coverage, rehearsed and rehearsed.coverage, _COVERAGE),
            rto_s=_first(rto, rehearsed and rehearsed.rto_s["reads"], _RTO_S),
        )
        setting = Setting(
            reads=behaviour,
            write_rto_s=_first(write_rto, rehearsed and rehearsed.rto_s["writes"], _WRITE_RTO_S),
            log=Behaviour(mtbf_s=_first(log_mtbf, mtbf_s), mttr_s=_first(log_mttr, mttr_s), beta=beta),
            engine=log,
            ack=ack,
            cost_per_copy=cost_per_copy,
        )
        found = options(setting, copies)
    if as_json:
        print_json(table.as_json(setting, found, seen, rehearsed))
        return
    console = Console(highlight=False)
    for fact in table.facts(setting, seen, rehearsed):
        console.print(fact)
    console.print(table.availability(found))
    if cost_per_copy is not None:
        console.print(table.costs(found))
    console.print(table.conclusion(found))


@plan_app.command()
def slo(
    target: Annotated[float, _share("Share of calls to be answered: 99.95%.")],
    window: WindowOption = 30 * units.UNITS["d"],
    total: Annotated[float | None, typer.Option(help="Calls in a window.", min=1, rich_help_panel=_FROM)] = None,
    bad: Annotated[float | None, typer.Option(help="Of them, those that failed.", min=0, rich_help_panel=_FROM)] = None,
    prometheus: PrometheusOption = "",
    drill: DrillOption = None,
    rules: Annotated[bool, typer.Option("--rules", help="Print recording and alerting rules for Prometheus.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show the error budget of an objective, how fast it is spent, and when somebody is to be told.

    What has been spent is given (--total and --bad) or measured. The exit code is 0, 1 if the budget is overdrawn, 2 if
    the input is wrong.
    """
    from haclient.planning import table  # noqa: PLC0415 - for this command alone
    from haclient.planning.rules import text  # noqa: PLC0415
    from haclient.planning.slo import Objective, alerts  # noqa: PLC0415

    with _told():
        objective = Objective(target=target, window_s=window)
        spent = _spent(objective, total, bad, prometheus, drill)
    if rules:
        print(text(objective), end="")
        return
    if as_json:
        print_json(table.slo_json(objective, spent))
    else:
        console = Console(highlight=False)
        console.print(table.budget(objective, spent), table.alerts(alerts(objective)), sep="\n")
        console.print(table.spending(objective, spent))
    raise typer.Exit(NOT_WELL if spent is not None and spent.left < 0 else OK)


def _spent(
    objective: Objective, total: float | None, bad: float | None, prometheus: str, drill: Path | None
) -> Spent | None:
    """Return what is said of the budget, None if nothing is."""
    from haclient.planning.measured import calls  # noqa: PLC0415 - what drills need, for these options alone
    from haclient.planning.prometheus import Prometheus  # noqa: PLC0415
    from haclient.planning.slo import Spent  # noqa: PLC0415

    if (total is None) is not (bad is None):
        raise ConfigError("arguments: --total and --bad say something together only; give both")
    if sum((total is not None, bool(prometheus), drill is not None)) > 1:
        raise ConfigError("arguments: give only one of --total and --bad, --prometheus, --drill")
    if prometheus:
        with Prometheus(prometheus, _TIMEOUT_S) as server:
            total, bad = server.calls(objective.window_s)
        if not total:
            raise ConfigError("Prometheus has counted no call in the window: does it scrape haclient?")
    elif drill:
        total, bad = calls(_results(drill))
    if total is None or bad is None:
        return None
    return Spent(objective=objective, total=total, bad=bad)


def _failures(events: Path | None, prometheus: str, window_s: float) -> Failures:
    """Measure how copies fail."""
    from haclient.planning.measured import failures  # noqa: PLC0415 - for these options alone
    from haclient.planning.prometheus import Prometheus  # noqa: PLC0415

    if events and prometheus:
        raise ConfigError("arguments: --events and --prometheus both measure how copies fail; give one of them")
    if prometheus:
        with Prometheus(prometheus, _TIMEOUT_S) as server:
            return server.failures(window_s)
    assert events is not None
    try:
        with events.open(errors="replace") as lines:
            return failures(lines)
    except OSError as error:
        raise ConfigError(f"events {events}: {error.strerror}") from error


def _results(drill: Path) -> Results:
    """Read what a drill has left."""
    try:
        from haclient.drill.report.results import read_json  # noqa: PLC0415 - reports need more packages
    except ImportError as error:
        raise ConfigError(f'--drill needs more packages ({error}): pip install "haclient[drill]"') from error
    return read_json(drill)


def _first(*values: float | None) -> float:
    """Return the first value that is known."""
    for value in values:
        if value is not None:
            return value
    raise ConfigError("how a copy fails is not known; write for example --mtbf 30d --mttr 5m, or --events proxy.log")


@contextmanager
def _told() -> Generator[None]:
    """Turn what is wrong into a line and an exit code."""
    try:
        yield
    except HAClientError as error:
        fail(error)
    except ValueError as error:
        fail(ConfigError(f"arguments: {error}"))
