"""What servers of embeddings speak, as the core hears it.

Decision made here: a server is well if it answers at all, and after any doubt (the first time, a failure, an open
breaker, a refused key) if it embeds a word. Embedding costs time and money, so it is not done without a doubt.
"""

from __future__ import annotations

import asyncio
from typing import Final, final

from haclient.call import STATUS_NONE, Action, Kind, Method, Reply
from haclient.fleet import breaker
from haclient.fleet.fleet import Fleet
from haclient.fleet.flight import UNAUTHENTICATED
from haclient.fleet.look import Dialect, Look
from haclient.fleet.node import Node
from haclient.milvus.messages import Request
from haclient.milvus.status import OK, Flavour, Verdict
from haclient.retrieval.embed.http import INVALID_ARGUMENT, MODELS, RESOURCE_EXHAUSTED


def _embed(name: str) -> Method:
    return Method(name, "/embeddings", Kind.READ, idempotent=True, hedgeable=True, status=STATUS_NONE)


#: Two methods, because each has its usual latency, from which the hedging delay is read.
EMBED_QUERIES: Final = _embed("EmbedQueries")
EMBED_PASSAGES: Final = _embed("EmbedPassages")
LIST_MODELS: Final = Method("ListModels", MODELS, Kind.PROBE, idempotent=True, status=STATUS_NONE)

_ACTIONS: Final = {
    INVALID_ARGUMENT: Action.FAIL_FAST,
    RESOURCE_EXHAUSTED: Action.BACK_OFF,
    UNAUTHENTICATED: Action.FAIL_FAST,
}


def dialect(probe: bytes) -> Dialect:
    """Make the dialect; ``probe`` is the request that embeds a word."""
    return Dialect(_classify, lambda fleet, node, loop, _: _EmbeddingLook(fleet, node, loop, probe))


def _classify(method: Method, reply: Reply, flavour: Flavour) -> Verdict:
    if reply.code == 0:
        return OK
    return Verdict(_ACTIONS.get(reply.code, Action.FAILOVER), reply.details, code=reply.code)


@final
class _EmbeddingLook(Look):
    """The repeated looks at one server."""

    def __init__(self, fleet: Fleet, node: Node, loop: asyncio.AbstractEventLoop, probe: bytes) -> None:
        super().__init__(fleet, node, loop)
        self._probe = Request(EMBED_QUERIES, probe)

    async def climb(self) -> None:
        """See `Look`."""
        node = self._node
        await self.ask(Request(LIST_MODELS, b""))
        if not self.found or node.denied or node.probe_failures or node.gate.state != breaker.CLOSED:
            reply, verdict = await self.ask(self._probe)
            self._fleet.deny(node, reply.code == UNAUTHENTICATED)
            node.last_error = verdict.reason
