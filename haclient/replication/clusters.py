"""What replication needs of the fleet: who is there, and a way to send one request to one cluster.

Decision made here: replication knows no endpoints, breakers or connections. The core hands it these callables, so it
can be simulated against clusters that are a dict of rows.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, final

from haclient.call import Method
from haclient.milvus.status import Flavour


@final
@dataclass(frozen=True, slots=True)
class Member:
    """One cluster of the fleet, now.

    Attributes:
        name: Its configured name.
        drained: The operator has taken it out: nothing is sent to it.
        flavour: What kind of server it runs.
        version: Its version, "" if it has not said.
        asynchronous: It is configured to follow the others; what was decided since wins, see `roles`.
    """

    name: str
    drained: bool = False
    flavour: Flavour = Flavour.UNKNOWN
    version: str = ""
    asynchronous: bool = False


class Outcome(enum.Enum):
    """What became of a request that was to change something on one cluster."""

    #: It was carried out.
    DONE = "done"
    #: The server says that the request itself is wrong; it was not carried out, and never will be.
    REFUSED = "refused"
    #: It was not carried out and may be later: nobody listens, not ready, over a quota, writes denied.
    LATER = "later"
    #: No answer in time: it may be carried out still, for as long as the server works on it.
    UNANSWERED = "unanswered"
    #: The connection died after bytes were sent: it may have been carried out, or have killed the server.
    LOST = "lost"


@final
@dataclass(frozen=True, slots=True)
class Delivery:
    """The outcome of one request to one cluster.

    Attributes:
        outcome: What became of it.
        reply: The server's answer, b"" if there was none.
        reason: One line for a person, "" if it was done.
        code: Milvus' error code, 0 if none.
        blocked: It is the cluster's quota or its denial of writes: later, and other requests will fare no better.
        sent: The server may have begun it; False is certain.
    """

    outcome: Outcome
    reply: bytes = b""
    reason: str = ""
    code: int = 0
    blocked: bool = False
    sent: bool = True


class Clusters(Protocol):
    """The fleet, as replication sees it."""

    def members(self) -> Sequence[Member]:
        """Return every cluster, in the order configured."""

    async def deliver(self, cluster: str, method: Method, message: bytes, database: str, timeout_s: float) -> Delivery:
        """Send a request that changes something to one cluster, once at most; never raises for the network's sake.

        A server that got it may work on it for ``timeout_s`` seconds after it has read it, which is what it is told
        (``grpc-timeout``).
        """

    async def ask(self, cluster: str, method: Method, message: bytes, database: str, timeout_s: float) -> bytes:
        """Send a read to one cluster, again if need be; return the reply's bytes.

        Raises:
            CallError: The cluster gave no good answer; its code and text are in the error.
        """
