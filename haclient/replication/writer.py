"""The way of a write: into the form of the log, into the log, and an answer when enough clusters have it.

Decision made here: what Milvus would refuse is refused before it is appended, since an entry of the log happens. From
the append on the write is certain; what the caller waits for after that is only how certain he wants to be.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar, final

from haclient.acknowledge import ACKS, METADATA, Ack
from haclient.call import Metadata, Method, Reply
from haclient.errors import (
    CallError,
    DeadlineExceeded,
    LogError,
    LogFull,
    LogUnavailable,
    Unavailable,
    WriteNotConfirmed,
    WriteRefused,
)
from haclient.milvus import ddl, gates, messages, mutations
from haclient.milvus.messages import Key
from haclient.milvus.methods import named
from haclient.milvus.shape import InvalidWrite, Shape
from haclient.milvus.status import COLLECTION_NOT_FOUND
from haclient.milvus.wireformat import varint_field
from haclient.replication.catalog import Catalog
from haclient.replication.keys import KeyMaker
from haclient.replication.log import BARRIER, Mutation, Stream
from haclient.replication.shared import Shared
from haclient.replication.timing import Backoff
from haclient.replication.token import token

T = TypeVar("T")

#: Milvus' code for "too many requests": what a full log is to the caller.
_RATE_LIMITED: Final = 8
#: Time that a page of a filter that is resolved to keys may take, seconds.
_PAGE_S: Final = 10.0

#: Compares an existing collection on all clusters before the first write to it; raises what the user is told.
Adopt = Callable[[Shape, float], Awaitable[None]]


class Void(Exception):
    """Every cluster refuses a write that is in the log; nothing happened.

    Attributes:
        reply: The answer of the server that refused it first.
    """

    def __init__(self, reply: bytes) -> None:
        super().__init__("refused by every cluster")
        self.reply = reply


@final
class Writer:
    """Writes of one process.

    Args:
        shared: The parts that everybody uses.
        catalog: The collections.
        keys: Makes the keys of auto_id collections.
        appended: Told of every mutation that has been appended, with its seq.
        adopt: Compares collections that were there before.
    """

    def __init__(
        self,
        shared: Shared,
        catalog: Catalog,
        keys: KeyMaker,
        appended: Callable[[list[int], list[Mutation]], None],
        adopt: Adopt,
    ) -> None:
        self._shared = shared
        self._catalog = catalog
        self._keys = keys
        self._appended = appended
        self._adopt = adopt

    async def write(self, method: Method, message: bytes, metadata: Metadata, database: str, deadline: float) -> Reply:
        """Carry out one call that changes something.

        Args:
            method: An RPC that `haclient.milvus.ddl.mirrored` sends to the log.
            message: The user's request.
            metadata: The user's metadata.
            database: Of the call, "" for the default one.
            deadline: Loop time by which it must be answered.

        Raises:
            WriteNotConfirmed: It is in the log (or may be) and will happen; not enough clusters have it yet.
            Unavailable: The log cannot be written; nothing happened.
            WriteRefused: It cannot be mirrored; nothing happened.
            CallError: Nothing happened.
        """
        ack = self._ack(metadata)
        try:
            if method.name in ("Insert", "Upsert"):
                return await self._rows(method, message, database, deadline, ack)
            if method.name == "Delete":
                return await self._delete(method, message, database, deadline, ack)
            return await self._change(method, message, database, deadline, ack)
        except Void as void:
            return Reply(void.reply)
        except InvalidWrite as error:
            return Reply(messages.refusal(method, error.reason, error.code))
        except CallError as error:
            if error.code == COLLECTION_NOT_FOUND and not isinstance(error, WriteNotConfirmed):
                return Reply(messages.refusal(method, error.summary, error.code))
            raise

    def _ack(self, metadata: Metadata) -> Ack:
        wanted = next((value for name, value in metadata if name == METADATA), self._shared.settings.ack)
        for level in ACKS:
            if wanted == level:
                return level
        raise WriteRefused(f"{METADATA}: {wanted!r} is no ack level; write one of {', '.join(ACKS)}")

    # Rows.

    async def _rows(self, method: Method, message: bytes, database: str, deadline: float, ack: Ack) -> Reply:
        shape = await self._shape(method, message, database, deadline)
        fresh: list[int] = []
        if shape.auto_id:
            fresh = await self._logged(self._keys.make(_row_count(message)), method, deadline)
        rows = mutations.rows(method.name, message, shape, database, lambda count: fresh[:count])
        stream = (database, shape.collection)
        seq = await self._append(method, [self._mutation(rows.method, stream, rows.message, database)], deadline)
        await self._acknowledged(method, stream, seq[-1], ack, deadline)
        return Reply(mutations.answer(method.name, rows.keys, rows.count, token(seq[-1])))

    async def _delete(self, method: Method, message: bytes, database: str, deadline: float, ack: Ack) -> Reply:
        shape = await self._shape(method, message, database, deadline)
        wanted = mutations.deletion(message, shape)
        keys = wanted.keys
        if keys is None:
            keys = await self._resolve(wanted, shape, database, deadline)
        stream = (database, shape.collection)
        requests = mutations.delete_keys(shape, keys, wanted.partition, database)
        if not requests:
            return Reply(mutations.answer("Delete", [], 0, token(self._shared.progress.last(stream))))
        listed = [self._mutation("Delete", stream, request, database) for request in requests]
        seqs = await self._append(method, listed, deadline)
        await self._acknowledged(method, stream, seqs[-1], ack, deadline)
        return Reply(mutations.answer("Delete", keys, len(keys), token(seqs[-1])))

    async def _resolve(self, wanted: mutations.Deletion, shape: Shape, database: str, deadline: float) -> list[Key]:
        """Find the keys that a filter means now: once, on one cluster that has everything."""
        shared, stream = self._shared, (database, shape.collection)
        head = (await self._logged(shared.log.bounds(), named("Delete"), deadline)).head
        progress = shared.progress

        def complete() -> list[str]:
            names = [member.name for member in shared.clusters.members() if not member.drained]
            return [name for name in names if progress.has(name, stream, progress.last(stream))]

        last: CallError | None = None
        if await progress.until(lambda: progress.head >= head and bool(complete()), deadline):
            for cluster in complete():
                try:
                    return await self._pages(cluster, wanted, shape, database, deadline)
                except CallError as error:
                    last = error
        raise last or DeadlineExceeded(
            f"Delete {shape.collection}: the filter has to be resolved on a cluster that has every write before it, "
            "and none had in time. Delete by keys, or allow more time; nothing was deleted."
        )

    async def _pages(
        self, cluster: str, wanted: mutations.Deletion, shape: Shape, database: str, deadline: float
    ) -> list[Key]:
        keys: list[Key] = []
        while True:
            after = keys[-1] if keys else None
            page = mutations.keys_query(shape, wanted.expression, wanted.partition, database, after, wanted.values)
            left_s = max(min(deadline - self._shared.loop.time(), _PAGE_S), 0.01)
            reply = await self._shared.clusters.ask(cluster, named("Query"), page, database, left_s)
            found = mutations.keys_of_reply(reply, shape)
            if not found:
                return keys
            keys += found

    async def _shape(self, method: Method, message: bytes, database: str, deadline: float) -> Shape:
        """Describe the collection that rows go to, and see that it is mirrored."""
        _, name = ddl.scope(method, message, database)
        shape = await self._catalog.shape(database, name, deadline)
        if shape.native_auto_id:
            raise WriteRefused(
                f"{method.name} {name}: not written. The servers make this collection's keys, so every cluster would "
                "have other ones. Create it anew through haclient, which makes the keys itself, and copy the rows."
            )
        stream = (database, shape.collection)
        if not await self._logged(self._catalog.is_mirrored(stream), method, deadline):
            await self._adopt(shape, deadline)
            await self._logged(self._catalog.adopt(stream), method, deadline)
        return shape

    # Everything else.

    async def _change(self, method: Method, message: bytes, database: str, deadline: float, ack: Ack) -> Reply:
        stream = ddl.scope(method, message, database)
        where, why = ddl.mirrored(method)
        if where != "log":
            raise WriteRefused(f"{method.name}: not sent. {why}")
        versions = {m.name: (m.flavour, m.version) for m in self._shared.clusters.members()}
        lacking = gates.problems(method, message, versions)
        if lacking:
            raise WriteRefused(f"{method.name} {stream[1]}: not sent. {' '.join(lacking)}")
        created = method.name == "CreateCollection"
        if stream != BARRIER and not created:
            stream = await self._real(stream, deadline)
        existed = created and await self._exists(stream, deadline)
        normal = ddl.normalise(method, ddl.create(message) if created else message, database)
        seqs = await self._append(method, [self._mutation(method.name, stream, normal, database)], deadline)
        if created and not existed:
            await self._logged(self._catalog.adopt(stream), method, deadline, seqs[-1])
        elif method.name == "DropCollection":
            await self._logged(self._catalog.drop(stream), method, deadline, seqs[-1])
        # A schema that no cluster has cannot be written to, so there is nothing to gain by not waiting for one.
        await self._acknowledged(method, stream, seqs[-1], "one" if ack == "log" else ack, deadline)
        return Reply(b"" if method.status == 0 else b"\n\x00")

    async def _real(self, stream: Stream, deadline: float) -> Stream:
        """Put the collection's own name in the place of an alias."""
        try:
            shape = await self._catalog.shape(*stream, deadline)
        except CallError as error:
            if error.code != COLLECTION_NOT_FOUND:
                raise
            return stream
        return stream[0], shape.collection

    async def _exists(self, stream: Stream, deadline: float) -> bool:
        try:
            await self._catalog.shape(*stream, deadline)
        except CallError:
            return False
        return True

    # The log.

    def _mutation(self, method: str, stream: Stream, message: bytes, database: str) -> Mutation:
        return Mutation(self._shared.rng.randbytes(16), method, stream, message, database)

    async def _append(self, method: Method, listed: list[Mutation], deadline: float) -> list[int]:
        """Append, again while that is safe and there is time: an operation is in the log once."""
        shared, backoff = self._shared, Backoff(self._shared.rng)
        sent = False
        name = f"{method.name} {listed[0].stream[1]}".rstrip()
        await self._room(name, deadline)
        while True:
            try:
                seqs = await self._in_time(shared.log.append(listed), deadline)
            except LogFull as error:
                failure: LogError = error
            except LogUnavailable as error:
                failure, sent = error, sent or error.sent
            except TimeoutError:
                failure, sent = LogUnavailable("no answer in time", sent=True), True
            else:
                self._appended(seqs, listed)
                return seqs
            if shared.loop.time() + 0.01 >= deadline:
                break
            delay = min(backoff.next(), max(deadline - shared.loop.time(), 0.0))
            await asyncio.sleep(delay)
        if sent:
            raise WriteNotConfirmed(f"{name}: the mutation log gave no answer ({failure}), so it may or may not happen")
        if isinstance(failure, LogFull):
            text = f"{name}: not written. The mutation log is full ({failure})"
            raise Unavailable(f"{text}: the clusters do not keep up. See `haclient log show`.", code=_RATE_LIMITED)
        raise Unavailable(f"{name}: not written. The mutation log cannot be written: {failure}")

    async def _room(self, name: str, deadline: float) -> None:
        """Hold a write back while no cluster takes any."""
        shared = self._shared

        def blocked() -> str:
            names = [member.name for member in shared.clusters.members() if not member.drained]
            reasons = [shared.progress.blocked(one) for one in names]
            return f"{names[0]}: {reasons[0]}" if reasons and all(reasons) else ""

        if not await shared.progress.until(lambda: not blocked(), deadline):
            text = f"{name}: not written. Every cluster refuses writes for now ({blocked()})"
            raise Unavailable(f"{text}. Give them memory, disk or quota; reads go on.", code=_RATE_LIMITED)

    async def _in_time(self, work: Awaitable[list[int]], deadline: float) -> list[int]:
        async with asyncio.timeout_at(deadline):
            return await work

    async def _logged(self, work: Awaitable[T], method: Method, deadline: float, seq: int = 0) -> T:
        """Await something that the log has to do, and say in the caller's words if it does not."""
        try:
            async with asyncio.timeout_at(deadline):
                return await work
        except (LogError, TimeoutError) as error:
            if seq:
                raise WriteNotConfirmed(
                    f"{method.name}: entry {seq} of the log will happen: {error}", seq=seq
                ) from None
            raise Unavailable(f"{method.name}: not written. The mutation log does not answer: {error}") from None

    async def _acknowledged(self, method: Method, stream: Stream, seq: int, ack: Ack, deadline: float) -> None:
        """Wait until as many clusters have a write as the caller wants.

        Raises:
            Void: Every cluster refuses it.
            WriteNotConfirmed: The deadline came first.
        """
        shared = self._shared
        if ack == "log":
            return

        def enough() -> bool:
            members = shared.clusters.members()
            have = sum(shared.progress.has(member.name, stream, seq) for member in members)
            if ack == "one":
                return have >= 1
            if ack == "quorum":
                return have > len(members) // 2
            present = [member.name for member in members if not member.drained]
            return bool(present) and all(shared.progress.has(name, stream, seq) for name in present)

        if not await shared.progress.until(lambda: seq in shared.void or enough(), deadline):
            have = [m.name for m in shared.clusters.members() if shared.progress.has(m.name, stream, seq)]
            raise WriteNotConfirmed(
                f"{method.name} {stream[1]}: it is entry {seq} of the mutation log and will happen on every cluster, "
                f'once. So far {", ".join(have) or "none"} has it, and ack = "{ack}" asks for more. Do not repeat it.',
                seq=seq,
            )
        void = shared.void.get(seq)
        if void is not None:
            raise Void(void.reply)


def _row_count(message: bytes) -> int:
    """Return the number of rows (#7) that an InsertRequest says it has; what cannot be read is refused later."""
    try:
        return varint_field(message, 7)
    except ValueError:
        return 0
