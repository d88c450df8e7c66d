"""Whose fault it is that a read found nothing: one endpoint is judged by what the others have.

Decision made here: what a cluster does not have proves nothing while it lags (where writes are mirrored), and neither
does what a cluster that lags still has.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, final

from haclient.call import Attempt, Call
from haclient.fleet import breaker
from haclient.fleet.node import Key, Node

if TYPE_CHECKING:
    from haclient.fleet.fleet import Fleet


@final
class Doubts:
    """Comparisons of endpoints.

    Attributes:
        lagging: Says whether what a cluster (by name) lacks of a collection may still be to come.
    """

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self.lagging: Callable[[str, Key], bool] = _up_to_date

    def lost(self, node: Node, key: Key, call: Call | None = None) -> bool:
        """Say whether "collection not found" may be this endpoint's fault: one not asked yet may still have it.

        An endpoint that cannot serve the collection now may have it all the same (it is not loaded, or what is
        known of it is old); then the catalogue tells. One that is down counts only if it is known to have had it.
        """
        tried = self._fleet.tried(call.attempts) if call is not None else ()
        others = (
            n
            for n in self._fleet.nodes()
            if n is not node and not n.drained and n not in tried and not self.lagging(n.cluster.name, key)
            if call is None or call.pin in (None, n.cluster.name)
        )
        return any(key in n.catalogue or n.ready.get(key, n.gate.state != breaker.OPEN) for n in others)

    def contradicted(self, call: Call, attempt: Attempt) -> None:
        """Take an endpoint out for a collection in which it finds nothing where another endpoint finds something."""
        key = (call.database, call.collection)
        if any(self.lagging(one.cluster, key) for one in call.attempts):
            return  # the rows are still to come there, or still to go here
        for node in self._fleet.tried([attempt]):
            self._fleet.mark(node, key, False, attempt.reason)

    def emptied(self, node: Node, key: Key) -> bool:
        """Say whether a collection has no row on this endpoint although a probe of another one has read one."""
        if self.lagging(node.cluster.name, key):
            return False
        others = (n for n in self._fleet.nodes() if n is not node and not n.drained and n.rows.get(key))
        return any(not self.lagging(n.cluster.name, key) for n in others)

    def welcome_elsewhere(self, call: Call, node: Node) -> bool:
        """Say whether a read that was refused for its credentials has a cluster left that takes other ones."""
        mine, tried = node.cluster.authorization, self._fleet.tried(call.attempts)
        others = (n for n in self._fleet.nodes() if n not in tried and not n.denied and not n.drained)
        return call.pin is None and any(
            n.cluster.authorization != mine and n.cluster.name not in call.behind for n in others
        )


def _up_to_date(cluster: str, key: Key) -> bool:
    """Say that no cluster lacks anything: nothing is mirrored."""
    return False
