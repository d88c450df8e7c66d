"""What a fleet's servers speak, and what one look at an endpoint does to its gate.

Decision made here: everything above the transport is the same for every kind of server but two things, which make a
`Dialect`: what a reply asks for, and what a look asks. What follows from the outcome of a look is the same again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from haclient.call import Action, Method, Outcome, Reply
from haclient.errors import ConnectFailed
from haclient.fleet import breaker
from haclient.fleet.node import Node
from haclient.milvus.messages import Request
from haclient.milvus.status import Flavour, Verdict

if TYPE_CHECKING:
    from haclient.fleet.fleet import Fleet
    from haclient.fleet.probe import HTTPClient


@final
@dataclass(frozen=True, slots=True)
class Dialect:
    """The part of a fleet that depends on what its servers speak.

    Attributes:
        classify: Decides what a reply asks for.
        look: Makes the looks at one endpoint; the client is for HTTP beside the transport.
    """

    classify: Callable[[Method, Reply, Flavour], Verdict]
    look: Callable[[Fleet, Node, asyncio.AbstractEventLoop, HTTPClient | None], Look]


class ProbeFailed(Exception):
    """The endpoint cannot serve now.

    Attributes:
        certain: Nobody listens there at all.
        slow: It can, but much slower than others.
    """

    def __init__(self, reason: str, *, certain: bool = False, slow: bool = False) -> None:
        super().__init__(reason)
        self.certain = certain
        self.slow = slow


class Look:
    """The repeated looks at one endpoint; a dialect says what they ask.

    Attributes:
        found: It has answered at least once.
    """

    def __init__(self, fleet: Fleet, node: Node, loop: asyncio.AbstractEventLoop) -> None:
        self.found = False
        self._fleet = fleet
        self._node = node
        self._loop = loop

    async def climb(self) -> None:
        """Ask what tells whether the endpoint serves, from cheap to telling.

        Raises:
            ProbeFailed: It does not.
        """
        raise NotImplementedError

    async def climb_all(self) -> None:
        """Ask after everything there is on the endpoint; see `climb`."""
        await self.climb()

    async def identify_anew(self) -> None:
        """Find out once more which cluster the endpoint belongs to, if that can be told."""

    async def once(self) -> None:
        """Look once, and tell the gate."""
        node, gate = self._node, self._node.gate
        try:
            await self.climb()
        except ProbeFailed as failure:
            self._failed(str(failure), certain=failure.certain, slow=failure.slow)
            return
        node.probe_failures = 0
        if not self.found:
            self.found = node.found = True
            self._fleet.balancer.changed()
        if gate.state != breaker.CLOSED and gate.try_half_open():
            gate.record(gate.try_acquire(), True)

    async def everything(self) -> None:
        """Look at everything there is, for someone who wants to see it."""
        try:
            await self.climb_all()
        except ProbeFailed as failure:
            self._failed(str(failure), certain=False, slow=failure.slow)

    def _failed(self, reason: str, *, certain: bool, slow: bool) -> None:
        node, gate = self._node, self._node.gate
        node.probe_failures += 1
        node.last_error = reason
        node.life += certain
        if gate.state == breaker.HALF_OPEN:
            gate.record(gate.try_acquire(), False)
            gate.slow = slow
        elif certain or not node.found or node.probe_failures >= self._fleet.config.health.down_after:
            # One that has never answered is given no benefit of the doubt.
            gate.open(f"probe: {reason}", slow=slow)

    async def ask(self, request: Request, timeout_s: float | None = None) -> tuple[Reply, Verdict]:
        """Send one request on the probe connection; raises `ProbeFailed` if the endpoint is at fault."""
        node = self._node
        future: asyncio.Future[Outcome] = self._loop.create_future()
        handle = node.probe.start(
            request.method.path,
            request.message,
            request.metadata + node.cluster.authorization,
            timeout_s or self._fleet.config.health.timeout_s,
            lambda outcome: None if future.done() else future.set_result(outcome),
        )
        try:
            outcome = await future
        except asyncio.CancelledError:
            handle.cancel()
            raise
        if not isinstance(outcome, Reply):
            raise ProbeFailed(f"{request.method.name}: {outcome}", certain=isinstance(outcome, ConnectFailed))
        node.heard_at = self._loop.time()
        verdict = self._fleet.classify(request.method, outcome, node.flavour)
        if verdict.action in (Action.FAILOVER, Action.DROPPED):
            raise ProbeFailed(f"{request.method.name}: {verdict.reason}")
        return outcome, verdict
