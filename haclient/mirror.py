"""Replication on a core's fleet: what ``[replication] mode = "mirror"`` adds to it.

Decision made here: replication sends to one cluster at a time and judges outcomes itself, so a delivery goes below the
retries and hedges of the application's calls: one attempt, or another one only if the first certainly reached no
server.
"""

from __future__ import annotations

import asyncio
import os
import platform
import random
from collections.abc import Awaitable, Callable
from dataclasses import replace
from math import isfinite
from typing import Final, final

from haclient.call import Action, Attempt, Call, Metadata, Method, Reply
from haclient.config.replication import Replication
from haclient.errors import AttemptTimeout, CallError, Unavailable, WriteRefused
from haclient.events import EventBus
from haclient.fleet.fleet import Fleet
from haclient.fleet.model import FleetView
from haclient.milvus import ddl, messages
from haclient.milvus.methods import named
from haclient.milvus.status import Flavour, Verdict, peek
from haclient.milvus.timestamps import covering
from haclient.replication import alive
from haclient.replication.clusters import Delivery, Member, Outcome
from haclient.replication.descriptions import Descriptions
from haclient.replication.engines import open_log
from haclient.replication.following import Following
from haclient.replication.log import Mutation
from haclient.replication.progress import Progress
from haclient.replication.reader import Reader
from haclient.replication.replicator import Replicator
from haclient.replication.watermark import WatermarkWatch

#: gRPC: the server's own deadline came first; credentials missing or wrong; not permitted.
_DEADLINE_EXCEEDED: Final = 4
_ACCESS: Final = frozenset((7, 16))
#: Done by all clusters, and answered by one of them: the answer names its segments, after which the user asks it.
_WITH_ANSWER: Final = frozenset(("Flush", "FlushAll"))
#: Time to allocate a timestamp, seconds.
_STAMP_S: Final = 1.0
_REFUSES_WRITES: Final = (Action.BACK_OFF, Action.WRITE_BLOCKED)


@final
class Mirror:
    """Replication in one core.

    Args:
        settings: What is configured.
        clusters: The fleet.
        home: Answers a call on the one cluster that takes what is not mirrored.
        fleet: Says what answers mean.
        bus: Takes events.
        rng: Source of randomness.
        loop: Its time is the clock.
        wall: Time of day, seconds since 1970.

    Attributes:
        replicator: Writes and applies; None in a process without the log, which only reads.
        reader: Says which clusters may answer a read.
    """

    def __init__(
        self,
        settings: Replication,
        clusters: FleetClusters,
        home: Callable[[Call], Awaitable[Reply]],
        fleet: Fleet,
        bus: EventBus,
        rng: random.Random,
        loop: asyncio.AbstractEventLoop,
        wall: Callable[[], float],
    ) -> None:
        self.settings = settings
        self._fleet = fleet
        self._home = home
        self.replicator: Replicator | None = None
        if settings.log:
            name = alive.signed(f"{platform.node()}/{os.getpid()}/{rng.getrandbits(32):08x}")
            log = open_log(settings, wall)
            stamp = clusters.stamp
            self.replicator = Replicator(
                settings, log, clusters, bus, rng, loop, name, wall=wall, stamp=stamp, is_dead=alive.is_dead
            )
        self.reader, self._watch = self._read(clusters, loop)
        fleet.doubts.lagging = self.reader.lagging
        self._following = None if self.replicator is None else Following(self.replicator.shared, fleet.follow)
        self._watching: list[asyncio.Task[None]] = []
        self._loop = loop

    def _read(self, clusters: FleetClusters, loop: asyncio.AbstractEventLoop) -> tuple[Reader, WatermarkWatch]:
        """Make what reads need: from the log where there is one, from the clusters' marks while there is none."""
        settings, fleet, marks = self.settings, self._fleet, Progress(loop)
        if self.replicator is None:
            descriptions, log, sources = Descriptions(clusters, marks, loop), None, [marks]
        else:
            shared = self.replicator.shared
            descriptions, log, sources = self.replicator.catalog.descriptions, shared.log, [shared.progress, marks]

        def needed() -> bool:
            return log is None or loop.time() - sources[0].fresh_at > 2.0 * settings.watermark_s

        watch = WatermarkWatch(clusters, marks, settings.watermark_s, needed, descriptions.forget, loop)
        known, ask = descriptions.known, descriptions.shape
        return Reader(settings, sources, log, fleet.rotation, known, ask, fleet.timestamps, loop), watch

    async def start(self) -> None:
        """Open the log; see `Replicator.start`."""
        if self.replicator is not None:
            await self.replicator.start()
        watches = [self._watch.run()] + ([self._following.run()] if self._following is not None else [])
        self._watching = [self._loop.create_task(watch) for watch in watches]

    async def aclose(self) -> None:
        """Hand over to other processes, and close the log."""
        for task in self._watching:
            task.cancel()
        await asyncio.gather(*self._watching, return_exceptions=True)
        await self.reader.aclose()
        if self.replicator is not None:
            await self.replicator.aclose()

    async def write(self, call: Call) -> Reply:
        """Carry out a call that changes something, or what can be done on one cluster only.

        Raises:
            WriteRefused: It cannot be mirrored, or this process has no log.
            CallError: See `haclient.replication.writer.Writer.write`.
        """
        where, why = ddl.mirrored(call.method)
        if where == "refused":
            raise WriteRefused(f"{call.method.name} {call.collection}: not sent. {why}")
        if where == "log":
            if self.replicator is None:
                raise WriteRefused(
                    f"{call.method.name} {call.collection}: not sent. This process has no mutation log "
                    '(replication.log = ""), so it only reads; name the log in its configuration.'
                )
            write = self.replicator.write
            reply = await write(call.method, call.message, call.metadata, call.database, call.deadline, call.past)
            if call.method.name not in _WITH_ANSWER or not self.went_well(call.method, reply):
                return reply
        call.pin = self._fleet.homes.of(call)
        return await self._home(call)

    def seen(self, view: FleetView) -> FleetView:
        """Add to a snapshot of the fleet how far each cluster is."""
        progress = self.reader.progress
        lags = self._following.lags if self._following is not None else {}
        clusters = []
        for cluster in view.clusters:
            position = progress.positions.get(cluster.name)
            if position is None:
                clusters.append(cluster)
                continue
            parked = tuple(".".join(filter(None, stream)) for stream, one in position.parked.items() if one.reason)
            lag = max(progress.head - position.low, 0)
            known = replace(cluster, standing=position.standing.value, lag=lag, parked=parked)
            if cluster.name in lags:
                # Entries as known now: what was found a second ago may be done.
                seconds = lags[cluster.name].seconds if lag else 0.0
                known = replace(known, lag_s=seconds if isfinite(seconds) else None)
            clusters.append(known)
        return FleetView(tuple(clusters), view.at)

    def went_well(self, method: Method, reply: Reply) -> bool:
        """Say whether an answer that no server gave is a success."""
        return self._fleet.classify(method, reply, Flavour.REAL).action is Action.OK

    def shown(self, call: Call, reply: Reply) -> Reply:
        """Return an answer as the user is to see it: haclient makes the keys, not the server."""
        if call.method.name == "DescribeCollection" and reply.code == 0:
            message = ddl.described(reply.message)
            if message is not reply.message:
                return Reply(message, 0, "", reply.headers, reply.trailers)
        return reply


@final
class FleetClusters:
    """The fleet as replication sees it; implements `haclient.replication.clusters.Clusters`.

    Args:
        fleet: Whose clusters.
        once: Makes one attempt at a call.
        loop: Its time is the clock.
    """

    def __init__(
        self,
        fleet: Fleet,
        once: Callable[[Call], Awaitable[Attempt | None]],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._fleet = fleet
        self._once = once
        self._loop = loop

    def members(self) -> list[Member]:
        """Return every cluster, in the order configured."""
        found = []
        for cluster in self._fleet.clusters:
            known = next((node for node in cluster.nodes if node.version), None)
            drained = bool(cluster.nodes) and all(node.drained for node in cluster.nodes)
            follows = cluster.config.asynchronous
            if known is None:
                found.append(Member(cluster.name, drained, asynchronous=follows))
            else:
                found.append(Member(cluster.name, drained, known.flavour, known.version, follows))
        return found

    async def deliver(self, cluster: str, method: Method, message: bytes, database: str, timeout_s: float) -> Delivery:
        """Send a request that changes something to one cluster; see `Clusters.deliver`."""
        try:
            call = self._call(cluster, method, message, database, timeout_s)
        except Unavailable as error:
            return Delivery(Outcome.LATER, reason=error.summary, sent=False)
        attempt = await self._once(call)
        while attempt is not None and not attempt.sent and self._fleet.untried(call):
            attempt = await self._once(call)
        if attempt is None:
            return Delivery(Outcome.LATER, reason="no endpoint of it is in rotation", sent=False)
        if attempt.reply is None:
            return _unanswered(attempt)
        return self._judge(method, attempt, attempt.reply)

    def _judge(self, method: Method, attempt: Attempt, reply: Reply) -> Delivery:
        """Decide what an answer means for the request."""
        action, reason, code = attempt.action, attempt.reason, attempt.code
        if action is Action.OK:
            return Delivery(Outcome.DONE, reply.message)
        if reply.code in _ACCESS:
            return Delivery(Outcome.LATER, b"", reason, code, blocked=True, sent=False)
        if action in _REFUSES_WRITES:
            return Delivery(Outcome.LATER, reply.message, reason, code, blocked=True, sent=not attempt.rejected)
        if reply.code == _DEADLINE_EXCEEDED:
            return Delivery(Outcome.UNANSWERED, b"", reason, code)
        if action is Action.FAIL_FAST and not self._verdict(method, attempt, reply).ambiguous:
            return Delivery(Outcome.REFUSED, reply.message, reason, code, sent=False)
        return Delivery(Outcome.LATER, reply.message, reason, code, sent=not attempt.rejected)

    def _verdict(self, method: Method, attempt: Attempt, reply: Reply) -> Verdict:
        nodes = (node for node in self._fleet.nodes() if node.name == attempt.endpoint)
        return self._fleet.classify(method, reply, next(nodes).flavour)

    async def ask(self, cluster: str, method: Method, message: bytes, database: str, timeout_s: float) -> bytes:
        """Send a read to one cluster; see `Clusters.ask`.

        Not through the policies: who asks knows whom to ask next, and must not use up the retries of the application.
        """
        call = self._call(cluster, method, message, database, timeout_s)
        call.idempotent = True
        attempt = await self._once(call)
        while attempt is not None and attempt.reply is None and self._fleet.untried(call):
            attempt = await self._once(call)
        if attempt is None:
            raise Unavailable(f"{method.name}: no endpoint of cluster {cluster} is in rotation", call.attempts)
        if attempt.reply is None:
            raise Unavailable(f"{method.name}: cluster {cluster} did not answer: {attempt.reason}", call.attempts)
        if attempt.action is Action.OK:
            return attempt.reply.message
        kind = CallError if attempt.action is Action.FAIL_FAST else Unavailable
        raise kind(_text(method, attempt.reply), call.attempts, code=attempt.code)

    async def stamp(self, cluster: str, mutation: Mutation, reply: bytes, flavour: Flavour) -> int | None:
        """Find the cluster's own timestamp from which on a mutation is to be seen there; see `Stamp`."""
        found = covering(named(mutation.method), reply, flavour)
        if found is not None:
            return found
        asked = messages.alloc_timestamp()
        try:
            return messages.read_timestamp(await self.ask(cluster, asked.method, asked.message, "", _STAMP_S))
        except (CallError, ValueError):
            return None  # reads of the session become Strong there

    def _call(self, cluster: str, method: Method, message: bytes, database: str, timeout_s: float) -> Call:
        metadata: Metadata = (("dbname", database),) if database else ()
        call = Call(method, message, metadata, self._loop.time() + timeout_s, database=database, pin=cluster)
        if all(known.name != cluster for known in self._fleet.clusters):
            raise Unavailable(f"{method.name}: there is no cluster {cluster!r} any more", code=0)
        return call


def _unanswered(attempt: Attempt) -> Delivery:
    if not attempt.sent:
        return Delivery(Outcome.LATER, reason=attempt.reason, sent=False)
    outcome = Outcome.UNANSWERED if isinstance(attempt.error, AttemptTimeout) else Outcome.LOST
    return Delivery(outcome, reason=attempt.reason)


def _text(method: Method, reply: Reply) -> str:
    """Return the server's own words for an error."""
    if reply.code:
        return reply.details
    status = peek(method, reply.message)
    return status.reason if status is not None else ""
