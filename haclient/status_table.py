"""What ``haclient status`` shows, as pure functions of a fleet snapshot.

Decision made here: whatever a server wrote (names, versions, errors) is text to be shown, never markup and
never control characters, since a terminal obeys those.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Final

from rich import box
from rich.table import Table
from rich.text import Text

from haclient.fleet.model import ClusterView, EndpointView, FleetView, State

#: Collections named for one endpoint at most; those that are not ready come first.
NAMED: Final = 12
_STYLES: Final = {
    State.UP.value: "green",
    State.PROBATION.value: "yellow",
    State.DRAINING.value: "cyan",
    State.DRAINED.value: "cyan",
    State.DOWN.value: "bold red",
}


def up(view: FleetView) -> int:
    """Count the endpoints that are up."""
    return sum(endpoint.state == State.UP.value for endpoint in view.endpoints)


def summary(view: FleetView) -> str:
    """Say in one line how many of how many endpoints are up."""
    clusters, endpoints = len(view.clusters), len(view.endpoints)
    return f"{up(view)} of {_many(endpoints, 'endpoint')} up, {_many(clusters, 'cluster')}"


def as_json(view: FleetView) -> dict[str, Any]:
    """Return the snapshot as plain values: the clusters as they are, and how many endpoints are up."""
    clusters = [asdict(cluster) for cluster in view.clusters]
    return {"up": up(view), "endpoints": len(view.endpoints), "clusters": clusters}


def table(view: FleetView) -> Table:
    """Draw the snapshot: one row per endpoint."""
    result = Table(box=box.SIMPLE_HEAD, caption=summary(view), caption_justify="left", pad_edge=False)
    for name, wanted in (
        ("cluster", [cluster.name for cluster in view.clusters]),
        ("endpoint", [endpoint.name for endpoint in view.endpoints]),
    ):
        result.add_column(name, overflow="fold", min_width=min(24, max(map(len, wanted), default=0)))
    result.add_column("state", no_wrap=True)
    result.add_column("latency", justify="right", no_wrap=True)
    result.add_column("collections", overflow="fold", min_width=len("collections"))
    versions = any(endpoint.server_version for endpoint in view.endpoints)
    if versions:
        result.add_column("version", overflow="fold")
    result.add_column("last error", overflow="fold", ratio=1, min_width=16)
    for cluster in view.clusters:
        for i, endpoint in enumerate(cluster.endpoints):
            last = endpoint is cluster.endpoints[-1]
            cells = _row(cluster if i == 0 else None, endpoint)
            if not versions:
                cells.pop("version")
            result.add_row(*cells.values(), end_section=last)
    return result


def _row(cluster: ClusterView | None, endpoint: EndpointView) -> dict[str, Text]:
    name = plain(endpoint.name)
    if endpoint.address != endpoint.name:
        name.append(f"\n{_printable(endpoint.address)}", "dim")
    return {
        "cluster": Text() if cluster is None else _cluster(cluster),
        "endpoint": name,
        "state": Text(endpoint.state, _STYLES.get(endpoint.state, "")),
        "latency": Text(latency(endpoint.latency_s)),
        "collections": collections(endpoint.ready),
        "version": plain(endpoint.server_version),
        "last error": plain(endpoint.last_error, "" if endpoint.state == State.DOWN.value else "dim"),
    }


def _cluster(cluster: ClusterView) -> Text:
    text = plain(cluster.name, "bold")
    notes = [f"zone {cluster.zone}"] if cluster.zone else []
    notes += [f"priority {cluster.priority}"] if cluster.priority else []
    notes += [f"weight {cluster.weight:g}"] if cluster.weight != 1 else []
    notes += ["asynchronous"] if cluster.asynchronous else []
    if notes:
        text.append(f"\n{_printable(', '.join(notes))}", "dim")
    if cluster.standing:
        lag = f", {cluster.lag} behind" if cluster.lag else ""
        lag += f" ({cluster.lag_s:.1f} s)" if cluster.lag_s else ""
        style = "green" if cluster.standing == "in_sync" else "bold red"
        text.append(f"\n{cluster.standing.replace('_', ' ')}{lag}", style)
    for name in cluster.parked:
        text.append(f"\nstopped: {_printable(name)}", "bold red")
    return text


def latency(seconds: float | None) -> str:
    """Write a latency with three digits at most, for example ``3.2 ms``; ``-`` if it is not known."""
    if seconds is None:
        return "-"
    if seconds >= 1:
        return f"{seconds:.1f} s"
    return f"{seconds * 1e3:.0f} ms" if seconds >= 0.0995 else f"{seconds * 1e3:.1f} ms"


def collections(ready: Mapping[str, bool]) -> Text:
    """Name the collections, those that are not ready first."""
    if not ready:
        return Text("-", "dim")
    names = sorted(ready, key=lambda name: (ready[name], name))
    text = Text()
    for i, name in enumerate(names[:NAMED]):
        text.append("\n" if i else "")
        text.append("✓ " if ready[name] else "✗ ", "green" if ready[name] else "bold red")
        text.append(_printable(name), "" if ready[name] else "bold red")
    if len(names) > NAMED:
        rest = names[NAMED:]
        missing = sum(not ready[name] for name in rest)
        text.append(f"\nand {len(rest)} more" + (f", {missing} not ready" if missing else ", all ready"), "dim")
    return text


def _many(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def plain(text: str, style: str = "") -> Text:
    """Make text without markup or control characters."""
    return Text(_printable(text), style)


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else " " if c.isspace() else "�" for c in text)
