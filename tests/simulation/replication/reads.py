"""Reads of users: planned by the real reader, answered by a simulated cluster, judged by the log.

Decision made here: a read asks for all rows of a collection, so that what it shows can be compared key by key with what
its level promises. A level is a seq up to which everything must be seen; what a session has seen before is one more
for each key.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from pymilvus.grpc_gen import milvus_pb2

from haclient.call import Call, Reply
from haclient.errors import CallError, LogError
from haclient.milvus.methods import named
from haclient.milvus.requests import inspect
from haclient.milvus.timestamps import BOUNDED, EVENTUALLY, SESSION, SPECIAL, STRONG, TOKEN
from haclient.replication.log import Stream
from haclient.replication.past import Past
from haclient.replication.token import token
from tests.simulation.replication import requests
from tests.simulation.replication.processes import Process
from tests.simulation.replication.world import DOWN, Ways, World

if TYPE_CHECKING:
    from haclient.replication.reader import Reader
    from tests.simulation.replication.checker import Checker

LEVELS: Final = (STRONG, SESSION, BOUNDED, EVENTUALLY)
_QUERY: Final = named("Query")
#: What a log is heard of late by, seconds: the step of a callback, a poll.
_SLACK_S: Final = 0.05


@dataclass(slots=True, eq=False)
class Read:
    """One read of a user."""

    level: int
    collection: str
    session: int
    timeout_s: float


@dataclass(slots=True)
class Session:
    """One session of a user in one process.

    Attributes:
        past: What haclient remembers of it.
        wrote: The newest entry that it knows to have written, by collection.
        seen: The entry that made the newest state that it has seen, by collection and key.
    """

    past: Past = field(default_factory=Past)
    wrote: dict[str, int] = field(default_factory=dict)
    seen: dict[tuple[str, Any], int] = field(default_factory=dict)


def rotation(world: World) -> dict[str, bool]:
    """Return who takes reads, as a fleet would know."""
    return {name: server.state != DOWN and not server.drained for name, server in world.servers.items()}


async def perform(
    world: World, checker: Checker, reader: Reader, process: Process, session: Session, read: Read
) -> None:
    """Make one read, and judge its answer; one that fails is nobody's business here."""
    loop = world.loop
    began, head, wrote = loop.time(), checker.store.head, session.wrote.get(read.collection, 0)
    seen = dict(session.seen)
    timestamp = {STRONG: 0, BOUNDED: 2, EVENTUALLY: 1}.get(read.level, token(wrote) if wrote else 1)
    message = requests.query(read.collection, read.level, timestamp)
    facts = inspect(_QUERY, message)
    call = Call(_QUERY, message, (), began + read.timeout_s, facts.collection, facts.database)
    if facts.guarantee_timestamp > SPECIAL:
        call.guarantee_timestamp = facts.guarantee_timestamp
    reader.enter(call, session.past)
    plan = call.plan = reader.plan(call, facts)
    try:
        await plan.ready(call)
        able = [name for name, up in rotation(world).items() if up and name not in call.behind]
        if not able:
            return
        name = able[int(world.draw() * len(able))]
        sent = plan.message(call, name)
        _timestamp(world, name, sent)
        reply = await Ways(world).ask(name, _QUERY, sent, "", call.deadline - loop.time())
    except (CallError, LogError):
        return
    reader.answered(call, name, Reply(reply))
    rows = _rows(reply)
    world.say(f"{process.name} reads {read.collection} at level {read.level} from {name}: {rows}")
    bound = 2 * checker.scenario.settings.bounded_s + _SLACK_S
    upto = {STRONG: head, SESSION: wrote, BOUNDED: checker.reference.before(began - bound)}.get(read.level, 0)
    judge(checker, session, seen if read.level in (STRONG, SESSION) else {}, read, rows, upto)


def _timestamp(world: World, name: str, message: bytes) -> None:
    """Judge the timestamp that a cluster is sent: its own, or none."""
    timestamp = inspect(_QUERY, message).guarantee_timestamp
    if timestamp > SPECIAL:
        own = (timestamp - world.servers[name].milvus.clock) % (1 << 18) == 0
        if timestamp >= TOKEN or not own:
            world.violated("timestamp", f"{name} is sent {timestamp}")


def _rows(reply: bytes) -> dict[Any, int]:
    """Return versions by key."""
    columns: dict[str, list[Any]] = {}
    for one in milvus_pb2.QueryResults.FromString(reply).fields_data:
        columns[one.field_name] = [*one.scalars.long_data.data, *one.scalars.string_data.data]
    return dict(zip(columns.get(requests.KEY, ()), columns.get(requests.VERSION, ()), strict=True))


def judge(
    checker: Checker, session: Session, seen: dict[tuple[str, Any], int], read: Read, rows: dict[Any, int], upto: int
) -> None:
    """Judge what a read shows.

    Args:
        checker: Knows what is in the log.
        session: Whose it is.
        seen: What the session had seen when the read began, if that binds it.
        read: The read.
        rows: Versions by key.
        upto: Everything up to this entry must be seen.
    """
    reference, world, name = checker.reference, checker.world, read.collection
    stream: Stream = ("", name)
    changes = reference.changes.get(stream, {})
    for key, version in rows.items():
        if all(seq in reference.refused or seq in checker.void for seq in reference.seqs.get(version, ())):
            world.violated("read", f"level {read.level}: key {key} has version {version}, which was never written")
    for key in changes:
        version = rows.get(key)
        before = seen.get((name, key), 0)
        lack = checker.lacks(version, stream, key, max(upto, before))
        if lack:
            what = "back" if before > upto else "read"
            world.violated(what, f"level {read.level}, everything up to {upto}, seen {before}: {lack}")
        session.seen[name, key] = max(session.seen.get((name, key), 0), _shown(checker, stream, key, version, upto))


def _shown(checker: Checker, stream: Stream, key: Any, version: int | None, upto: int) -> int:
    """Return the entry that made the state of a key that was shown, at least."""
    reference = checker.reference
    if version is not None:
        return max(reference.seqs.get(version, [0]))
    seq, was = reference.at(stream, key, upto)
    if was is None:
        return seq
    return next((at for at, gone in reference.changes[stream][key] if at > upto and gone is None), 0)
