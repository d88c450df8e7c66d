"""What several workers say of the fleet, as one.

Decision made here: an endpoint is in the state that most workers see it in, and of two states seen by as many in the
one that is worse, for a picture that is too good helps nobody.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import median
from typing import Final

from haclient.fleet.model import State
from haclient.proxy.report import ClusterReport, EndpointReport

#: States, worst first.
_WORST: Final = [state.value for state in (State.DOWN, State.DRAINED, State.DRAINING, State.PROBATION, State.UP)]


def clusters(reports: Sequence[Sequence[ClusterReport]]) -> list[ClusterReport]:
    """Merge what workers report; clusters and endpoints that only some of them have are kept.

    Args:
        reports: The clusters of each worker.
    """
    found: dict[str, list[ClusterReport]] = {}
    for report in reports:
        for cluster in report:
            found.setdefault(cluster.name, []).append(cluster)
    return [
        same[0].model_copy(update={"endpoints": _endpoints(each.endpoints for each in same)}) for same in found.values()
    ]


def _endpoints(reports: Iterable[Sequence[EndpointReport]]) -> list[EndpointReport]:
    found: dict[str, list[EndpointReport]] = {}
    for report in reports:
        for endpoint in report:
            found.setdefault(endpoint.name, []).append(endpoint)
    return [_endpoint(same) for same in found.values()]


def _endpoint(same: Sequence[EndpointReport]) -> EndpointReport:
    votes = Counter(endpoint.state for endpoint in same)
    state = max(votes, key=lambda state: (votes[state], -_WORST.index(state)))
    chosen = next(endpoint for endpoint in same if endpoint.state == state)
    latencies = [endpoint.latency_s for endpoint in same if endpoint.latency_s is not None]
    asked = {name: [e.ready[name] for e in same if name in e.ready] for e in same for name in e.ready}
    return chosen.model_copy(
        update={
            "latency_s": median(latencies) if latencies else None,
            "in_flight": sum(endpoint.in_flight for endpoint in same),
            "ready": {name: 2 * sum(answers) > len(answers) for name, answers in asked.items()},
        }
    )


def drained(names: frozenset[str], name: str, fleet: Sequence[ClusterReport], *, out: bool) -> frozenset[str]:
    """Return the names that are drained after one more is taken out, or put back.

    An endpoint that is put back while its whole cluster is out comes back alone: the others stay out by their names.
    """
    if out:
        return names | {name}
    rest = names - {name}
    for cluster in fleet:
        members = {endpoint.name for endpoint in cluster.endpoints}
        if cluster.name in rest and name in members:
            rest = (rest - {cluster.name}) | (members - {name})
    return rest
