"""The command for fleets with another site: ``haclient failover``.

Decision made here: whether the mutation log was lost with its site is not guessed. A log that has been used decides who
counts; a new one is begun only with ``--force``, after saying what is lost.
"""

from __future__ import annotations

import os
import time
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from haclient.cli.common import NOT_WELL, ConfigOption, JsonOption, Reach, UriOption, bar, fail, on_fleet, print_json
from haclient.config import Config
from haclient.config.replication import ETCD
from haclient.errors import ConfigError, HAClientError
from haclient.fleet.model import ClusterView, FleetView

if TYPE_CHECKING:
    from haclient.replication.failover import Role, Switched
    from haclient.replication.succession import Begun, Loss


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(failover)


async def placed(config: Config, view: FleetView) -> FleetView:
    """Add to what was seen of the clusters how far each is in the mutation log, if there is one that answers."""
    from haclient.replication import failover as work  # noqa: PLC0415 - pymilvus takes a second to import
    from haclient.replication.clusters import Member  # noqa: PLC0415
    from haclient.replication.engines import open_log  # noqa: PLC0415

    settings = config.replication
    if settings.mode != "mirror" or not settings.log:
        return view
    if not settings.log.startswith(ETCD) and not os.path.exists(settings.log):  # noqa: ASYNC240 - nobody waits
        return view  # who only looks makes none
    log = open_log(settings, time.time)
    try:
        await log.open()
        members = [Member(one.name, asynchronous=one.asynchronous) for one in config.clusters]
        roles = {role.name: role for role in await work.look(log, members, time.time())}
    except HAClientError:
        return view
    finally:
        await log.aclose()
    return replace(view, clusters=tuple(_placed(cluster, roles[cluster.name]) for cluster in view.clusters))


def _placed(cluster: ClusterView, role: Role) -> ClusterView:
    seconds = None if role.counts else role.seconds
    return replace(cluster, standing=role.standing, lag=role.entries, asynchronous=not role.counts, lag_s=seconds)


def failover(
    clusters: Annotated[list[str] | None, typer.Argument(help="The clusters that count from now on.")] = None,
    config: ConfigOption = None,
    uri: UriOption = None,
    force: Annotated[
        bool, typer.Option("--force", help="The main site is gone: do not wait; begin a new log if it is gone, too.")
    ] = False,
    wait: Annotated[float, typer.Option(help="Seconds in which they must have caught up.", min=0.0)] = 60.0,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    list_: Annotated[bool, typer.Option("--list", help="Only show which clusters count, and how far each is.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Have another site take over: the clusters named count from now on, and all others follow them.

    Waits until they have everything, so nothing is lost; with --force it does not wait. If the mutation log is lost
    with its site, name a new one in the configuration: with --force it begins with the one cluster named, and what that
    one lacks is lost; how much that is, as far as anybody knows, is shown first. Naming the former clusters goes back.
    The exit code is 0 if it is done, 1 if it could not be done, 2 if the input is wrong.
    """
    if list_ is bool(clusters):
        fail(ConfigError("name the clusters that are to count, or use --list alone"))
    names = list(dict.fromkeys(clusters or ()))

    async def run(reach: Reach) -> None:
        from haclient.replication.succession import is_new  # noqa: PLC0415 - pymilvus takes a second to import

        if list_:
            await _list(reach, as_json)
        elif await is_new(reach.needs_log()):
            await _begin(reach, names, force=force, yes=yes, as_json=as_json)
        else:
            await _switch(reach, names, force=force, wait_s=wait, yes=yes, as_json=as_json)

    on_fleet(config, uri, run, start=not list_)


async def _list(reach: Reach, as_json: bool) -> None:
    from haclient.replication import failover as work  # noqa: PLC0415

    roles = await work.look(reach.needs_log(), reach.clusters.members(), time.time())
    if as_json:
        print_json({"clusters": [asdict(role) for role in roles]})
        return
    for role in roles:
        typer.echo(_role(role))


def _role(role: Role) -> str:
    what = "counts" if role.counts else "follows"
    changed = "" if role.counts is role.configured else ", which is not what it is configured as"
    behind = f", {_behind(role.entries, role.seconds)}" if role.entries else ""
    return f"{role.name}: {what}{changed}; {role.standing.replace('_', ' ')}{behind}"


def _behind(entries: int, seconds: float | None) -> str:
    return f"{entries:,} entries behind" + (f", the oldest {seconds:.1f} s old" if seconds is not None else "")


# The log is there.


async def _switch(reach: Reach, names: list[str], *, force: bool, wait_s: float, yes: bool, as_json: bool) -> None:
    from haclient.replication import failover as work  # noqa: PLC0415

    log = reach.needs_log()
    if not as_json:
        for role in await work.look(log, reach.clusters.members(), time.time()):
            typer.echo(_role(role), err=True)
    _ask(f"From now on {', '.join(names)} counts, and every other cluster follows. Go on?", yes)
    with bar(f"waiting for {', '.join(names)}", quiet=as_json) as show:
        done = await work.switch(
            log,
            reach.clusters,
            names,
            time.time,
            wait_s=wait_s,
            force=force,
            report=lambda total, low: show(total, low, f"entry {low:,} of {total:,}"),
        )
    if as_json:
        print_json({"lost_entries": 0, **asdict(done)})
    else:
        typer.echo(_switched(done))


def _switched(done: Switched) -> str:
    behind = _behind(done.entries, done.seconds) if done.entries else "nothing lacking"
    lines = [
        f"{', '.join(done.counted)}: counts from now on; following: {', '.join(done.following) or 'nobody'}",
        f"waited {done.waited_s:.1f} s; {behind}",
        "RPO: 0 entries, 0 s. Every entry is in the mutation log; what a cluster lacks of it is still applied there",
    ]
    return "\n".join(lines)


# The log is lost.


async def _begin(reach: Reach, names: list[str], *, force: bool, yes: bool, as_json: bool) -> None:
    from haclient.replication import succession  # noqa: PLC0415

    if not force:
        raise ConfigError(
            "the mutation log is new: nothing was ever written to it. If the former one is lost with its site, use "
            "--force to begin this one with the cluster named; else name the one that is used in replication.log"
        )
    if len(names) != 1:
        raise ConfigError("a new log begins with one cluster: name the furthest; the others are copied from it")
    loss, claim = await succession.assess(reach.clusters, names[0], time.time())
    if not as_json:
        typer.echo(_lost(loss), err=True)
    _ask(f"{names[0]} is all that there is from now on. Is the former site down for certain? Go on?", yes)
    done = await succession.begin(
        reach.needs_log(), reach.clusters, reach.config.replication, names[0], claim, time.time(), rng=reach.rng
    )
    if as_json:
        print_json(_begun_json(done))
    else:
        typer.echo(_begun(done))


def _lost(loss: Loss) -> str:
    written = datetime.fromtimestamp(loss.at, UTC).isoformat(sep=" ", timespec="milliseconds")
    lines = [
        f"{loss.cluster} has every entry of the former log up to {loss.through:,}, as it said at {written}, "
        f"{loss.age_s:.1f} s ago",
        f"RPO: at least {loss.least:,} entries are missing there (the furthest end of that log that any cluster knows "
        f"of is {loss.head:,}), and whatever was written after that moment may be",
    ]
    lines += [f"stopped there: {name} at entry {seq:,}" for name, seq in loss.stopped.items()]
    if loss.unseen:
        lines.append(f"not seen: {', '.join(loss.unseen)}; they may have more")
    return "\n".join(lines)


def _begun(done: Begun) -> str:
    loss = done.loss
    lines = [
        _lost(loss),
        f"{loss.cluster}: counts from now on, with a new mutation log (generation {done.generation}) and "
        f"{len(done.collections)} collections. It is left alone for {done.rest_s:g} s before it is written to",
        *(f"left out: {name}: {why}" for name, why in done.left.items()),
        *(f"when {name} is back: haclient reseed {name}" for name in done.others),
    ]
    return "\n".join(lines)


def _begun_json(done: Begun) -> dict[str, Any]:
    return {**asdict(done), "lost_entries": done.loss.least, "lost_s": done.loss.age_s}


def _ask(question: str, yes: bool) -> None:
    if not yes and not typer.confirm(question):
        raise typer.Exit(NOT_WELL)
