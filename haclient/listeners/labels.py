"""Labels of metrics are bounded.

Decision made here: a label's value comes from a set that is closed (methods, outcomes, actions, states) or
configured (clusters, endpoints), or it is one of the first so many seen (collections); everything else is
``other``. A metric never grows with what an application or a server writes into its messages.
"""

from __future__ import annotations

from typing import Final, final

from haclient import errors
from haclient.call import Action
from haclient.fleet.model import State
from haclient.milvus.methods import METHODS

OTHER: Final = "other"
#: Milvus' methods, and those of embedding servers.
_METHODS: Final = frozenset(method.name for method in METHODS.values()) | {"EmbedPassages", "EmbedQueries"}
_ACTIONS: Final = frozenset(action.value for action in Action)
_ERRORS: Final = frozenset(
    name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, errors.HAClientError)
)
_OUTCOMES: Final = frozenset({"ok", "error", "cancelled"}) | _ERRORS
STATES: Final = tuple(state.value for state in State)


def method_label(name: str) -> str:
    """Return the name of a method that is known, else ``other``."""
    return name if name in _METHODS else OTHER


def action_label(action: str) -> str:
    """Return the value of a `haclient.call.Action`, else ``other``."""
    return action if action in _ACTIONS else OTHER


def outcome_label(outcome: str) -> str:
    """Return an outcome that a call or a retrieval is known to have, else ``other``."""
    return outcome if outcome in _OUTCOMES else OTHER


@final
class Capped:
    """The first ``limit`` values keep their names."""

    __slots__ = ("_limit", "_seen")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._seen: set[str] = set()

    def __call__(self, value: str) -> str:
        """Return the value, or ``other`` if too many have been seen before it."""
        if value not in self._seen:
            if len(self._seen) >= self._limit:
                return OTHER
            self._seen.add(value)
        return value


def collection_name(database: str, collection: str) -> str:
    """Return ``collection``, or ``database.collection`` for a database that is not the default one."""
    return f"{database}.{collection}" if database not in ("", "default") else collection
