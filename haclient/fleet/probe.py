"""What one look at an endpoint of Milvus asks, and what the answers mean.

Decision made here: a look climbs from cheap to telling, and each step has its own deadline.

    healthz    HTTP, if configured: what the operator's own checks say
    shallow    Connect: proxy, root coordinator, timestamp oracle and database; not that anything can be read
    identity   ShowCollections, seldom: which cluster this really is
    deep       Query limit 1 on collections in use: shard leader and query node
    canary     rows or hits that must be there, if configured: the data

A shallow success never overrides evidence from traffic: an endpoint whose breaker is open, or a collection marked
unready, comes back only by a deep read. Whose fault a failure is, is decided by the same table as for traffic.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final, final

import httpx

from haclient.call import Action, Reply
from haclient.config import Canary
from haclient.fleet import breaker
from haclient.fleet.fleet import Fleet
from haclient.fleet.flight import UNAUTHENTICATED
from haclient.fleet.look import Dialect, Look, ProbeFailed
from haclient.fleet.node import Key, Node
from haclient.milvus import messages
from haclient.milvus.methods import SEVERAL_CLUSTERS
from haclient.milvus.status import COLLECTION_NOT_FOUND, Verdict, classify

#: Collections read per look, at most; the others follow in the next looks.
_MOST_DEEP = 8
#: Collections remembered per endpoint as empty or not.
_MOST_ROWS = 1024
#: Slow looks in a row before an endpoint is set aside.
_SLOW_LOOKS = 3
#: A collection is not loaded (Milvus' ErrCollectionNotLoaded).
_NOT_LOADED = 101
_LOAD_EVERY_S = 10.0


@final
class HTTPClient:
    """Asks ``healthz`` URLs; made when the first one is configured, since most fleets have none."""

    def __init__(self) -> None:
        self._client: httpx.AsyncClient | None = None

    async def check(self, url: str, timeout_s: float) -> None:
        """Raise `ProbeFailed` unless the URL answers 200 OK in time."""
        if self._client is None:
            self._client = httpx.AsyncClient()
        try:
            reply = await self._client.get(url, timeout=timeout_s)
        except httpx.HTTPError as error:
            raise ProbeFailed(f"{url}: {error!r}") from error
        if reply.status_code != httpx.codes.OK:
            raise ProbeFailed(f"{url}: HTTP {reply.status_code}: {reply.text[:200]}")

    async def aclose(self) -> None:
        """Close its connections."""
        if self._client is not None:
            await self._client.aclose()


@final
class MilvusLook(Look):
    """The repeated looks at one endpoint of Milvus."""

    def __init__(self, fleet: Fleet, node: Node, loop: asyncio.AbstractEventLoop, http: HTTPClient | None) -> None:
        super().__init__(fleet, node, loop)
        self._http = http
        self._identity_at = float("-inf")
        self._deep_at: dict[Key, float] = {}
        self._load_at: dict[Key, float] = {}
        self._slow = 0

    async def climb(self) -> None:
        """See `Look`: every step that is due."""
        with _readable():
            await self._healthz()
            await self._shallow()
            await self._identify()
            await self._deep()

    async def climb_all(self) -> None:
        """See `Look`: every collection there is."""
        with _readable():
            await self._shallow()
            self._identity_at = float("-inf")
            await self._identify()
            for key in list(self._node.catalogue):
                await self._read(key)

    async def _healthz(self) -> None:
        cluster = self._node.cluster.config
        if self._http is None or not cluster.healthz_url:
            return
        host, _, port = self._node.address.rpartition(":")
        url = cluster.healthz_url.format(host=host, port=port)
        await self._http.check(url, self._fleet.config.health.timeout_s)

    async def _shallow(self) -> None:
        node = self._node
        reply, verdict = await self.ask(messages.connect(database=self._fleet.config.database))
        self._fleet.deny(node, reply.code == UNAUTHENTICATED)
        if verdict.action is Action.OK:
            server = messages.read_connect(reply.message)
            node.flavour, node.version = server.flavour, server.version or node.version
        else:
            # It answers, but refuses us (wrong credentials, unknown database): the user will be told by their
            # own call; it is no outage.
            node.last_error = verdict.reason

    async def identify_anew(self) -> None:
        """See `Look`: list the collections now, if the endpoint answers."""
        self._identity_at = float("-inf")
        with suppress(ProbeFailed, ValueError):
            await self._identify()

    async def _identify(self) -> None:
        now = self._loop.time()
        if now - self._identity_at < self._fleet.config.health.identity_interval_s:
            return
        self._identity_at = now
        databases = {key[0] for key in self._fleet.in_use()} | {self._fleet.config.database}
        catalogue: dict[Key, int] = {}
        for database in sorted(databases):
            reply, verdict = await self.ask(messages.show_collections(database=database))
            if verdict.action is Action.OK:
                found = messages.read_collections(reply.message)
                known = SEVERAL_CLUSTERS not in reply.headers
                catalogue.update({(database, name): known * collection.id for name, collection in found.items()})
        self._node.catalogue = catalogue
        if catalogue:
            self._node.met_at = min(self._node.met_at, now)
        if not self._node.version:
            # milvus-lite does not say it in Connect.
            reply, verdict = await self.ask(messages.get_version())
            if verdict.action is Action.OK:
                self._node.version = messages.read_version(reply.message).version

    async def _deep(self) -> None:
        node, health = self._node, self._fleet.config.health
        now = self._loop.time()
        # After a failed look everything is read again, or a failure seen by reading only would never come twice.
        trial = node.gate.state != breaker.CLOSED or node.probe_failures > 0
        keys = [*dict.fromkeys([*self._fleet.in_use(), *((c.database, c.collection) for c in health.canary)])]
        due = []
        for key in keys:
            every = health.interval_s if node.ready.get(key) is False else health.deep_interval_s
            if trial or now - self._deep_at.get(key, float("-inf")) >= 0.9 * every:
                due.append(key)
        due.sort(key=lambda key: self._deep_at.get(key, float("-inf")))
        for key in due[:_MOST_DEEP]:
            self._deep_at[key] = now
            await self._read(key)
        if len(self._deep_at) > 2 * len(keys) + _MOST_DEEP:
            self._deep_at = {key: at for key, at in self._deep_at.items() if key in keys}

    async def _read(self, key: Key) -> None:
        """Read a row of one collection, and what must be in it."""
        fleet, node = self._fleet, self._node
        name = await self._key_name(key)
        if name is None:
            return
        start = self._loop.time()
        reply, verdict = await self.ask(messages.read_one(key[1], name, database=key[0]))
        took = self._loop.time() - start
        if verdict.action is not Action.OK:
            await self._unready(key, verdict)
            return
        self._compare(took)
        for canary in fleet.config.health.canary:
            if (canary.database, canary.collection) == key and not await self._sings(canary, name):
                return
        if not self._has_rows(key, reply, name):
            fleet.mark(node, key, False, "no row was found, where another endpoint has rows")
            return
        node.distrusted.discard(key)
        fleet.mark(node, key, True, "a probe read it")

    def _has_rows(self, key: Key, reply: Reply, name: str) -> bool:
        """Say whether what was read can be right: nothing is, unless the others have nothing either."""
        rows = self._node.rows
        if len(rows) >= _MOST_ROWS:
            rows.clear()
        rows[key] = bool(messages.read_query_keys(reply.message, name))
        return rows[key] or not self._fleet.doubts.emptied(self._node, key)

    async def _key_name(self, key: Key) -> str | None:
        known = self._fleet.keys.get(key)
        if known is None:
            reply, verdict = await self.ask(messages.describe_collection(key[1], database=key[0]))
            if verdict.action is not Action.OK:
                await self._unready(key, verdict)
                return None
            known = messages.read_collection(reply.message).key
            if known is None:
                return None
            self._fleet.keys[key] = known
        return known.name

    async def _unready(self, key: Key, verdict: Verdict) -> None:
        fleet, node = self._fleet, self._node
        lost = verdict.code == COLLECTION_NOT_FOUND and fleet.doubts.lost(node, key)
        if lost or verdict.action in (Action.FAILOVER_COLLECTION, Action.ALARM):
            fleet.mark(node, key, False, verdict.reason)
        if verdict.code == _NOT_LOADED and fleet.config.health.load_collections:
            now = self._loop.time()
            if now - self._load_at.get(key, float("-inf")) >= _LOAD_EVERY_S:
                self._load_at[key] = now
                timeout_s = fleet.config.timeouts.ddl_s
                await self.ask(messages.load_collection(key[1], database=key[0]), timeout_s)

    async def _sings(self, canary: Canary, key_name: str) -> bool:
        """Ask for what is known to be there; raise the alarm if it is not."""
        fleet, node = self._fleet, self._node
        if canary.vector:
            request = messages.search(
                canary.collection, canary.anns_field, canary.vector, canary.limit, database=canary.database
            )
            reply, verdict = await self.ask(request)
            got = messages.read_search_keys(reply.message) if verdict.action is Action.OK else []
        else:
            request = messages.read_where(canary.collection, key_name, canary.filter, database=canary.database)
            reply, verdict = await self.ask(request)
            got = messages.read_query_keys(reply.message, key_name) if verdict.action is Action.OK else []
        missing = [key for key in canary.expect if key not in got]
        key = (canary.database, canary.collection)
        if not missing or fleet.doubts.lagging(node.cluster.name, key):
            return True
        reason = verdict.reason or f"canary: {missing} should be found and is not (found: {got[:10]})"
        if key not in node.distrusted:
            fleet.alarm(node, key, reason)
        return False

    def _compare(self, took_s: float) -> None:
        """Set the endpoint aside if it keeps answering much slower than the others."""
        node, fleet = self._node, self._fleet
        reason = fleet.detector.lagging(node, took_s, lambda other: other.probe_latency)
        node.probe_latency.observe(took_s, self._loop.time())
        self._slow = self._slow + 1 if reason else 0
        if reason and node.gate.state != breaker.CLOSED:
            raise ProbeFailed(reason, slow=True)
        if self._slow >= _SLOW_LOOKS:
            node.gate.open(reason, slow=True)


@contextmanager
def _readable() -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ProbeFailed(f"what answers there is not Milvus: {error}") from error


MILVUS: Final = Dialect(classify, MilvusLook)
