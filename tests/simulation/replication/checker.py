"""What must hold in every run.

Decision made here: an invariant is judged by what the servers hold, what is in the log and what users were told. Of the
log's facts only two are believed: how far a cluster claims to be (that is what reads are routed by, so it is judged),
and which cursed entries are void (users must have been told the same).

    once        an acknowledged write is in the log exactly once, one that was refused before is not there at all,
                and one whose fate is unknown at most once
    converge    when all is well again every cluster holds, for each key, its highest-seq mutation, and nothing else
    duplicate   no key ever has two rows
    claim       a cluster lacks nothing up to the place that it claims
    ack         when a write is answered, as many clusters have it as its ack level says
    told        what users are told is what has happened: refused means void, done means not void
    read        a Strong read shows all that was in the log when it began, a Session read all that the session wrote, a
                Bounded read all that is older than the bound; nobody reads what was never written
    back        a session never goes back behind what it has seen
    timestamp   a cluster is sent no timestamp but its own
    keys        keys made for users are unique, and the answer names those of the rows
    filter      a delete by expression deletes what matches when it is made, and nothing else
    lease       nothing is sent to a cluster but by the holder of its lease, while it runs
    follow      a cluster at another site is sent nothing that no cluster that counts has carried out
    drained     nothing is sent to a cluster that the operator has taken out
    parked      a stream stops only where a cluster refuses it or dies of it, and no other stream waits for it
    deadline    no write outlives its deadline
    success     while one cluster and the log are well, a write that needs no more succeeds
    recovery    once all is well, every cluster has all within a bounded time
    leak        after everything no task, timer or lease is left
    error       nothing raises what it should not
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final

from pymilvus.grpc_gen import milvus_pb2

from haclient.call import Reply
from haclient.errors import CallError, LogError, WriteNotConfirmed, WriteRefused
from haclient.milvus.methods import named
from haclient.milvus.shape import InvalidWrite
from haclient.milvus.status import peek
from haclient.replication.applier import APPLY
from haclient.replication.log import Stream
from haclient.replication.position import POSITION, Position, Standing
from haclient.replication.refusals import REFUSED, Refusal
from haclient.replication.token import seq_of
from tests.servers.memory_log import MemoryStore
from tests.simulation.replication import milvus
from tests.simulation.replication.processes import Process
from tests.simulation.replication.reference import Reference, written
from tests.simulation.replication.scenario import FAR, GENEROUS_S, Operation, Scenario
from tests.simulation.replication.world import Flight, Server, World
from tests.simulation.replication.world import marks as marks_of

_NOT_LOADED: Final = 101
#: What is already on its way to an applier when the operator drains its cluster.
_DRAIN_S: Final = 0.05
#: A process hears of a failover this late if the log is slow or down; it acknowledges by what it knows.
_HEARD_S: Final = 1.0

OK: Final = "ok"
#: Milvus has refused it, or would: nothing has been changed.
REFUSED_BY_MILVUS: Final = "refused"
#: It was not begun.
FAILED: Final = "failed"
UNKNOWN: Final = "unknown"


@dataclass(slots=True)
class Record:
    """What came of one write."""

    operation: Operation
    process: str
    start: float
    head: int
    end: float = float("inf")
    head_at_end: int = 0
    outcome: str = UNKNOWN
    text: str = "never answered"
    seq: int = 0
    keys: tuple[Any, ...] = ()
    count: int = 0
    #: Whether its process was stopped, or died, or the log failed, while it was under way.
    disturbed: bool = False


class Checker:
    """Judges one run."""

    def __init__(self, scenario: Scenario, world: World, store: MemoryStore) -> None:
        self.scenario = scenario
        self.world = world
        self.store = store
        self.reference = Reference()
        self.records: list[Record] = []
        self.holders: dict[str, Process] = {}
        self.void: set[int] = set()
        self.drained_at: dict[str, float] = {}
        #: Who counts, since when.
        self._counted: list[tuple[float, Collection[str]]] = [(float("-inf"), scenario.main)]
        #: Whether a process has died or was stopped.
        self.restless = False
        #: Marks of what some cluster refuses or dies of.
        self.cursed = {mark for operation, _, _ in scenario.curses for mark in operation.marks}
        self._revision = 0
        self._epochs: dict[str, int] = {}
        self._versions: dict[str, int] = {}
        self._claimed: dict[tuple[str, Stream], int] = {}
        world.sent = self.sent

    # As it happens.

    def stepped(self, process: Process) -> None:
        """Look at the log just after a process has changed it."""
        reference, store = self.reference, self.store
        if store.revision == self._revision:
            return
        self._revision = store.revision
        for seq in range(len(reference.entries) + 1, store.head + 1):
            reference.add(store.entries[seq])
        for name, held in store.leases.items():
            if held.epoch != self._epochs.get(name, 0):
                self._epochs[name] = held.epoch
                self.holders[name] = process
        for name, fact in store.facts.items():
            if self._versions.get(name) != fact.version:
                self._versions[name] = fact.version
                if name.startswith(POSITION):
                    self._claims(self.world.servers[name.removeprefix(POSITION)], Position.decode(fact.value))
                elif name.startswith(REFUSED) and Refusal.decode(fact.value).void:
                    self.void.add(int(name.removeprefix(REFUSED)))

    def _claims(self, server: Server, position: Position) -> None:
        """Judge how far a cluster claims to be."""
        if position.standing in (Standing.NEEDS_RESEED, Standing.RESEEDING) or server.emptied:
            return
        for stream, changed in self.reference.changes.items():
            applied = position.applied(stream)
            if self._claimed.get((server.name, stream)) != applied:
                self._claimed[server.name, stream] = applied
                for key in changed:
                    lack = self.lacks(_version(server, stream, key), stream, key, applied)
                    if lack:
                        self.world.violated("claim", f"{server.name} claims {stream} up to {applied}: {lack}")

    def lacks(self, version: int | None, stream: Stream, key: Any, upto: int) -> str:
        """Say what a state lacks of a key up to a seq, "" if nothing; None as version is a key without a row."""
        reference = self.reference
        seq, wanted = reference.at(stream, key, upto)
        if not seq or seq in self.void or wanted in self.cursed:
            return ""
        if version is None:
            later = any(at > upto and gone is None for at, gone in reference.changes[stream][key])
            return "" if wanted is None or later else f"key {key} is missing, seq {seq} wrote version {wanted}"
        if max(reference.seqs.get(version, [0])) < seq and version not in self.cursed:
            return f"key {key} has version {version} of seq {reference.seqs.get(version)}, seq {seq} made it {wanted}"
        return ""

    def sent(self, flight: Flight) -> None:
        """Judge a request that sets out."""
        server, now = flight.server, self.world.loop.time()
        held = self.store.leases.get(APPLY + server.name)
        if flight.own:
            return  # marks are written anew all the time, so one that comes late does no harm
        if self.holders.get(APPLY + server.name) is not flight.process:
            self.world.violated("lease", f"{flight} to {server.name}: it is not the holder of the lease")
        elif held is None or held.until is None or now >= held.until:
            self.world.violated("lease", f"{flight} to {server.name}: its lease is over")
        if server.name == FAR and not self.scenario.failovers:
            carried = set().union(*(self.world.servers[name].carried for name in self.scenario.main))
            if not carried >= marks_of(flight.method.name, flight.message):
                self.world.violated("follow", f"{flight} to {server.name}: nobody who counts has it")
        if server.drained and now > max(self.drained_at[server.name], flight.process.since) + _DRAIN_S:
            self.world.violated("drained", f"{flight} to {server.name}")

    def parked(self, cluster: str, seq: int, reason: str) -> None:
        """Judge a stream that has stopped."""
        entry = self.reference.entries.get(seq)
        marks = marks_of(entry.mutation.method, entry.mutation.message) if entry is not None else frozenset()
        causes = {c for operation, c, _ in self.scenario.curses if not marks.isdisjoint(operation.marks)}
        server = self.world.servers[cluster]
        if self.scenario.failovers:
            return  # what a cluster that is away may have since it counted, another one may refuse
        died = entry is not None and server.losses.get(frozenset(marks) or entry.mutation.message, 0) > 1
        if cluster not in causes and not died:
            self.world.violated("parked", f"{cluster} has stopped at {seq}: {reason}")

    # Writes.

    def began(self, operation: Operation, process: Process) -> Record:
        record = Record(operation, process.name, self.world.loop.time(), self.store.head)
        self.records.append(record)
        self.world.say(f"{operation} begins in {process.name}, ack {operation.ack or 'default'}")
        return record

    def ended(self, record: Record, outcome: object) -> None:
        """Take what a user is told."""
        world, operation = self.world, record.operation
        record.end, record.head_at_end = world.loop.time(), self.store.head
        record.text = repr(outcome)
        if isinstance(outcome, Reply):
            self._answered(record, outcome)
        elif isinstance(outcome, WriteNotConfirmed):
            record.outcome, record.seq = UNKNOWN, outcome.seq
        elif isinstance(outcome, InvalidWrite):
            record.outcome = REFUSED_BY_MILVUS
        elif isinstance(outcome, (CallError, LogError)):
            record.outcome = FAILED
        elif not isinstance(outcome, asyncio.CancelledError):
            world.violated("error", f"{operation}: {outcome!r}")
        world.say(
            f"{operation} ends: {record.outcome} {record.seq or ''} {'' if record.outcome == OK else record.text}"
        )
        if record.end > record.start + operation.timeout_s + 1e-6 and not record.disturbed:
            world.violated(
                "deadline",
                f"{operation} took {record.end - record.start:.3f} s, allowed {operation.timeout_s:.3f}: {outcome!r}",
            )
        self._success(record, outcome)
        if record.outcome == OK and record.seq:
            self._acknowledged(record)

    def _answered(self, record: Record, reply: Reply) -> None:
        method = named(record.operation.method)
        error = peek(method, reply.message) if reply.code == 0 else object()
        record.outcome = OK if error is None else REFUSED_BY_MILVUS
        if error is None and record.operation.kind != "ddl":
            result = milvus_pb2.MutationResult.FromString(reply.message)
            record.seq = seq_of(result.timestamp)
            record.keys = (*result.IDs.int_id.data, *result.IDs.str_id.data)
            counts = {"Insert": result.insert_cnt, "Upsert": result.upsert_cnt, "Delete": result.delete_cnt}
            record.count = counts[record.operation.method]
            if not record.seq and (record.operation.kind == "rows" or record.count):
                self.world.violated("told", f"{record.operation}: no token in the answer")
        elif error is not None:
            record.text = repr(error)

    def _acknowledged(self, record: Record) -> None:
        """Judge that enough clusters have a write that was answered well."""
        level = self._level(record)
        entry = self.reference.entries.get(record.seq)
        if entry is None or level == "log":
            return
        if any(at >= record.start for at in self.drained_at.values()) or any(
            s.emptied for s in self.world.servers.values()
        ):
            return
        servers = [one for one in self.world.servers.values() if not one.drained]
        stream = entry.mutation.stream
        rows = written(entry.mutation.method, entry.mutation.message) if record.operation.kind == "rows" else ()

        def has(server: Server) -> bool:
            return not any(self.lacks(_version(server, stream, key), stream, key, record.seq) for key, _ in rows)

        def enough(counted: Collection[str]) -> bool:
            there = [has(server) for server in servers if server.name in counted]
            return sum(there) >= max({"one": 1, "quorum": len(there) // 2 + 1, "all": len(there)}[level], 1)

        if not any(map(enough, self._counted_since(record.start - _HEARD_S))):
            having = [server.name for server in servers if has(server)]
            self.world.violated("ack", f"{record.operation} acknowledged at {level}, only {having} have it")

    def failed_over(self, counted: Collection[str]) -> None:
        """Note that others count from now on."""
        self._counted.append((self.world.loop.time(), counted))

    def _counted_since(self, moment: float) -> list[Collection[str]]:
        """Return who has counted since a moment: one list for each time that it was decided."""
        ends = [at for at, _ in self._counted[1:]] + [float("inf")]
        return [names for (_, names), end in zip(self._counted, ends, strict=True) if end >= moment]

    def _level(self, record: Record) -> str:
        return record.operation.ack or self.scenario.settings.ack

    def _success(self, record: Record, outcome: object) -> None:
        operation = record.operation
        if record.outcome in (OK, REFUSED_BY_MILVUS) or record.disturbed or operation.timeout_s < GENEROUS_S:
            return
        if operation.cancel_at < float("inf"):
            return
        if isinstance(outcome, CallError) and outcome.code == _NOT_LOADED:
            return  # a delete by expression has to read
        if isinstance(outcome, WriteRefused):
            return  # a collection that is not known to be mirrored (it was dropped, its note was lost) is left alone
        if self.restless:
            return  # whoever takes over from a process that is gone waits for a long time if schemas were being changed
        if self.void or self.reference.refused:
            return  # who refuses waits for what the others say, and what follows in that collection waits, too
        level, scenario = self._level(record), self.scenario
        if scenario.failovers:
            return
        # What happens to who follows concerns nobody.
        troubles = [one for one in scenario.faults if one.who != FAR]
        troubled = troubles or any(cluster != FAR for _, cluster, _ in scenario.curses)
        if (scenario.safe and level in ("log", "one")) or not troubled:
            self.world.violated("success", f"{operation} at {level}, {self.scenario.safe} was well: {record.text}")

    # When everything is over.

    def settled(self) -> None:
        """Judge the log, what users were told and what the clusters hold."""
        for record in self.records:
            if record.operation.versions or record.operation.mark:
                self._once(record)
            if record.operation.kind == "filter" and record.outcome == OK:
                self._filter(record)
        self._unique()
        self._converged()

    def _once(self, record: Record) -> None:
        operation, reference = record.operation, self.reference
        places = [reference.seqs.get(mark, []) for mark in operation.marks]
        times = [len(one) for one in places]
        where = f"{operation} was {record.outcome} ({record.text[:200]}), in the log at {places}"
        if any(count != times[0] for count in times) or times[0] > 1:
            self.world.violated("once", where)
            return
        seq = places[0][0] if times[0] else 0
        if (record.outcome == OK and not seq) or (record.outcome == FAILED and seq):
            self.world.violated("once", where)
        if record.seq and seq and seq > record.seq:
            self.world.violated("told", f"{where}, but was told {record.seq}")
        # At "log" a user is answered before any cluster has been asked.
        if seq and (record.outcome == REFUSED_BY_MILVUS or (record.outcome == OK and self._level(record) != "log")):
            void = seq in self.void or seq in reference.refused
            if void is (record.outcome == OK):
                self.world.violated("told", f"{where}; void: {void}")

    def _filter(self, record: Record) -> None:
        """Judge the keys of a delete by expression: those that matched when it was resolved."""
        if not record.seq:
            return
        deleted: set[Any] = set()
        upto, stream = record.head_at_end + 1, ("", record.operation.collection)
        if record.count:
            entry = self.reference.entries[record.seq]
            if entry.mutation.method != "Delete":
                self.world.violated("told", f"{record.operation} was told {record.seq}, a {entry.mutation.method}")
                return
            deleted.update(marks_of("Delete", entry.mutation.message))
            upto, stream = record.seq, entry.mutation.stream
        for key, history in self.reference.changes.get(stream, {}).items():
            if any(version in self.cursed or seq in self.void for seq, version in history):
                continue
            states = [version for seq, version in history if record.head < seq < upto]
            states.append(self.reference.at(stream, key, record.head)[1])
            matched = [v is not None and milvus.matches(record.operation.expression, {"version": v}) for v in states]
            if (key in deleted and not any(matched)) or (key not in deleted and all(matched)):
                self.world.violated("filter", f"{record.operation}: key {key} with versions {states}: {deleted}")

    def _unique(self) -> None:
        made: dict[Any, Operation] = {}
        for record in self.records:
            seqs = self.reference.seqs.get(record.operation.versions[0]) if record.operation.versions else None
            if not seqs or record.outcome != OK:
                continue
            entry = self.reference.entries[seqs[0]]
            rows = written(entry.mutation.method, entry.mutation.message)
            if tuple(key for key, _ in rows) != record.keys or record.count != len(rows):
                self.world.violated("keys", f"{record.operation}: told {record.keys}, written {rows}")
            for key in record.keys if record.operation.auto else ():
                if key in made:
                    self.world.violated("keys", f"{record.operation} and {made[key]} both have key {key}")
                made[key] = record.operation

    def _converged(self) -> None:
        void = {seq for seq in self.void if seq in self.reference.entries}
        wanted = self.reference.final(void)
        for server in self.world.servers.values():
            found = server.milvus.snapshot()
            if found != wanted:
                self.world.violated("converge", f"{server.name}: {difference(wanted, found)}")


def _version(server: Server, stream: Stream, key: Any) -> int | None:
    """Return the version of a key's row on a server."""
    collection = server.milvus.collections.get((stream[0] or "default", stream[1]))
    rows = collection.rows.get(key) if collection is not None else None
    return rows[0][1] if rows else None


def difference(wanted: Any, found: Any, path: str = "") -> str:
    """Say in what two states differ, in one line."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        names = [name for name in {**wanted, **found} if wanted.get(name) != found.get(name)]
        return "; ".join(difference(wanted.get(n), found.get(n), f"{path}/{n}") for n in names[:4])
    return f"{path} should be {wanted!r}, is {found!r}"
