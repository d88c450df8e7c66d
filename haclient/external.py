"""Clusters that replicate among themselves (``[replication] mode = "external"``): where calls go.

Decisions made here:

* Who the primary is follows from what every cluster says of itself, looked at again and again and whenever a cluster
  refuses a write because it is none. Milvus' configurations carry no version, so most clusters win; if as many name
  one as another, nobody is written to.
* Who was the primary and comes back while another one is stays fenced until it says itself that it is none.
* Strong and Session reads go to the primary, for a standby's timestamps mean nothing to it; all others go anywhere.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, final

from haclient.call import Action, Call, Reply
from haclient.config.address import parse_uri
from haclient.errors import CallError, Unavailable, WriteRefused
from haclient.events import EventBus, PrimaryChanged
from haclient.fleet.fleet import Fleet
from haclient.fleet.node import Cluster
from haclient.milvus import cdc, messages
from haclient.milvus.cdc import Topology
from haclient.milvus.requests import Facts
from haclient.milvus.shape import read_shape
from haclient.milvus.timestamps import BOUNDED, EVENTUALLY, effective_level
from haclient.replication.clusters import Clusters

#: Time between two looks, and time for a cluster's answer, seconds.
_LOOK_S: Final = 2.0
_ANSWER_S: Final = 1.0
#: Collections whose consistency level is remembered.
_MOST: Final = 4_096
#: What an operator sends to one cluster itself.
_OPERATORS: Final = frozenset(("UpdateReplicateConfiguration", "CreateReplicateStream", "ReplicateMessage"))


@final
@dataclass(frozen=True, slots=True)
class Verdict:
    """Who the primary is.

    Attributes:
        primary: Its name; "" if it is not known.
        why: Why not, or who else claims to be it; "" if there is nothing to say.
    """

    primary: str = ""
    why: str = "no cluster has said yet whether it is the primary"


def judge(named: Mapping[str, str], fenced: Collection[str] = ()) -> Verdict:
    """Decide who the primary is.

    Args:
        named: Whom each cluster that has answered names as the primary; itself, if it claims to be it.
        fenced: Clusters that are known to have been replaced; what they say does not count.
    """
    said = {who: whom for who, whom in named.items() if who not in fenced}
    votes = Counter(said.values()).most_common()
    if not votes:
        return Verdict(why="no cluster tells its replication configuration (GetReplicateConfiguration)")
    best, count = votes[0]
    rivals = sorted(whom for whom, times in votes if times == count)
    if len(rivals) > 1:
        return Verdict(why=f"{' and '.join(rivals)} are both said to be the primary, by as many clusters each")
    if said.get(best, best) != best:
        return Verdict(why=f"{best} is said to be the primary, and names {said[best]} itself")
    others = sorted(who for who, whom in named.items() if who == whom != best)
    return Verdict(best, f"{' and '.join(others)} also claims to be it, and is written to no more" if others else "")


@final
class External:
    """Roles of one fleet's clusters.

    Args:
        fleet: The fleet.
        clusters: The same, cluster by cluster.
        send: Answers a call on the cluster that it is pinned to.
        bus: Takes events.
        loop: Its time is the clock.

    Attributes:
        now: Who the primary is.
    """

    def __init__(
        self,
        fleet: Fleet,
        clusters: Clusters,
        send: Callable[[Call], Awaitable[Reply]],
        bus: EventBus,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.now = Verdict()
        self.levels: dict[tuple[str, str], int] = {}
        self._fleet = fleet
        self._clusters = clusters
        self._send = send
        self._bus = bus
        self._loop = loop
        #: The last one that was known for certain; what each cluster said last; what those said that were replaced.
        self._primary = ""
        self._told: dict[str, Topology] = {}
        self._fenced: dict[str, Topology] = {}
        self._looking: asyncio.Task[None] | None = None
        self._running: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Look once, and again and again from then on."""
        await self.look()
        self._running = self._loop.create_task(self._run())

    async def aclose(self) -> None:
        """Look no more."""
        tasks = [task for task in (self._running, self._looking) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            await self.look()

    # Who is the primary.

    async def look(self) -> None:
        """Ask every cluster now; who asks at the same time shares the answer."""
        if self._looking is None or self._looking.done():
            self._looking = self._loop.create_task(self._look())
        await asyncio.shield(self._looking)

    async def _look(self) -> None:
        members = [cluster for cluster in self._fleet.clusters if not all(node.drained for node in cluster.nodes)]
        answers = await asyncio.gather(*(self._ask(cluster.name) for cluster in members))
        told = {one.name: answer for one, answer in zip(members, answers, strict=True) if answer is not None}
        self._fenced = {name: old for name, old in self._fenced.items() if told.get(name, old) == old}
        named = _named(members, told)
        verdict = judge(named, self._fenced)
        before = self._primary
        if verdict.primary and before not in ("", verdict.primary) and named.get(before, before) == before:
            self._fenced[before] = self._told[before]  # until it says something else than it said as the primary
        self._told |= told
        self._primary = verdict.primary or before
        if verdict != self.now:
            self._bus.emit(
                PrimaryChanged(at=self._loop.time(), before=self.now.primary, after=verdict.primary, reason=verdict.why)
            )
            self.now = verdict

    async def _ask(self, cluster: str) -> Topology | None:
        asked = cdc.ask()
        try:
            return cdc.read(await self._clusters.ask(cluster, asked.method, asked.message, "", _ANSWER_S))
        except (CallError, ValueError):
            return None

    # Calls.

    async def write(self, call: Call) -> Reply:
        """Carry out a call that changes something, on the primary; elsewhere once more if it turns out to be none.

        Raises:
            WriteRefused: It is not known who the primary is, or an operator has to send it to one cluster himself.
            CallError: The primary gave no good answer.
        """
        what = f"{call.method.name} {call.collection}".rstrip()
        if call.method.name in _OPERATORS:
            raise WriteRefused(f"{what}: not sent. It changes what one cluster is to the others: send it to that one.")
        if not self.now.primary:
            await self.look()
        while True:
            asked = self.now.primary
            if not asked:
                raise WriteRefused(
                    f"{what}: not sent. {self.now.why}. See the clusters' replication configuration; a cluster that is "
                    "drained has no say (haclient drain)",
                    call.attempts,
                )
            call.pin = asked
            failure: CallError | None = None
            try:
                reply = await self._send(call)
            except CallError as error:
                failure = error
            if call.attempts and call.attempts[-1].action is Action.ROUTE_CHANGE:
                await self.look()
                if self.now.primary != asked and self._loop.time() < call.deadline:
                    continue
            if failure is not None:
                raise failure
            return reply

    def plan(self, call: Call, facts: Facts) -> Route:
        """Work out where a read may go."""
        if not facts.pinned:
            call.pin = None  # the cluster that gave out its timestamp need not be the primary any more
        return Route(self, call, facts)

    async def level(self, call: Call) -> int:
        """Find out a collection's own consistency level.

        Raises:
            CallError: Nobody tells.
        """
        asked = messages.describe_collection(call.collection, database=call.database)
        failure: CallError | None = None
        names = [name for name, up in self._fleet.rotation().items() if up]
        for name in sorted(names, key=lambda one: one != self.now.primary):
            left_s = call.deadline - self._loop.time()
            try:
                reply = await self._clusters.ask(name, asked.method, asked.message, call.database, left_s / 2)
            except CallError as error:
                failure = error
                continue
            if len(self.levels) >= _MOST:
                self.levels.clear()
            level = self.levels[call.database, call.collection] = read_shape(reply, call.database).consistency_level
            return level
        raise failure or Unavailable(f"{call.method.name} {call.collection}: no cluster is in rotation", call.attempts)

    def fit(self, call: Call, facts: Facts, cluster: str, level: int | None) -> bytes:
        """Return a read as it is to be sent to a cluster: with no timestamp but its own."""
        if not call.guarantee_timestamp:
            return call.message
        stamps, count = self._fleet.timestamps, len(self._fleet.clusters)
        return stamps.for_cluster(call.method, call.message, facts, cluster, clusters=count, default_level=level)

    def others(self) -> frozenset[str]:
        """Return the names of all clusters but the primary."""
        return frozenset(cluster.name for cluster in self._fleet.clusters if cluster.name != self.now.primary)


@final
class Route:
    """Where one read may go; implements `haclient.call.ReadPlan`."""

    __slots__ = ("_external", "_facts", "_level")

    def __init__(self, external: External, call: Call, facts: Facts) -> None:
        self._external = external
        self._facts = facts
        default = external.levels.get((call.database, call.collection))
        self._level = self._effective(default) if facts.reads_rows else EVENTUALLY

    def _effective(self, default: int | None) -> int | None:
        facts = self._facts
        return effective_level(
            facts.guarantee_timestamp, facts.consistency_level, facts.use_default_consistency, default
        )

    def quick(self, call: Call) -> bool:
        """Say whether the next attempt may be made now, and note in the call by whom not."""
        if self._level is None:
            return False
        if self._level in (BOUNDED, EVENTUALLY) or call.pin is not None:
            return True
        call.behind = self._external.others()
        return bool(self._external.now.primary)

    async def ready(self, call: Call) -> None:
        """Wait until the next attempt may be made.

        Raises:
            CallError: It may not: nobody knows who the primary is.
        """
        external = self._external
        if self._level is None:
            self._level = self._effective(await external.level(call))
        if not self.quick(call):
            await external.look()
            if not self.quick(call):
                what = f"{call.method.name} {call.collection}".rstrip()
                raise Unavailable(
                    f"{what}: only the primary can answer it (Strong or Session), and {external.now.why}. Read with "
                    "Bounded or Eventually meanwhile",
                    call.attempts,
                )

    def message(self, call: Call, cluster: str) -> bytes:
        """Return the read as it is to be sent to a cluster."""
        return self._external.fit(call, self._facts, cluster, self._level)

    def lag(self, cluster: str) -> str:
        """Say why a cluster is not asked."""
        return "a standby: only the primary answers Strong and Session reads"


def _named(members: Sequence[Cluster], told: Mapping[str, Topology]) -> dict[str, str]:
    """Return whom each cluster names as the primary, by the names that haclient has for them."""
    named = {}
    for cluster in members:
        topology = told.get(cluster.name)
        own = _id_of(cluster, topology) if topology is not None else ""
        if topology is not None and own:
            whom = topology.primary(own)
            named[cluster.name] = next((one.name for one in members if _id_of(one, topology) == whom), whom)
    return named


def _id_of(cluster: Cluster, topology: Topology) -> str:
    """Return a cluster's id in a configuration: its name, or that of one of its addresses; "" if it is not in it."""
    if cluster.name in topology.uris:
        return cluster.name
    addresses = {node.address for node in cluster.nodes}
    return next((found for found, uri in topology.uris.items() if _address(uri) in addresses), "")


def _address(uri: str) -> str:
    try:
        return parse_uri(uri).name
    except ValueError:
        return ""
