"""The way of a write: into the form of the log, into the log, and an answer when enough clusters have it.

Decision made here: what Milvus would refuse is refused before it is appended, since an entry of the log happens. From
the append on the write is certain; what the caller waits for after that is only how certain he wants to be.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from typing import Final, final

from haclient.acknowledge import ACKS, METADATA, Ack
from haclient.call import STATUS_IS, Metadata, Method, Reply
from haclient.errors import CallError, DeadlineExceeded, LogError, WriteNotConfirmed, WriteRefused
from haclient.milvus import ddl, gates, messages, mutations
from haclient.milvus.messages import Key
from haclient.milvus.methods import named
from haclient.milvus.shape import InvalidWrite, Shape
from haclient.milvus.status import COLLECTION_NOT_FOUND, Flavour, peek
from haclient.milvus.wireformat import varint_field
from haclient.replication.asking import ask_any
from haclient.replication.batching import ROWS
from haclient.replication.catalog import Catalog
from haclient.replication.commit import Commit, Void, Write
from haclient.replication.keys import KeyMaker
from haclient.replication.log import BARRIER, Stream
from haclient.replication.past import Past
from haclient.replication.pause import Pause
from haclient.replication.shared import Shared
from haclient.replication.token import token

#: Milvus' code for a parameter that is wrong.
_INVALID: Final = 1100
#: Time that a page of a filter that is resolved to keys may take, seconds.
_PAGE_S: Final = 10.0

#: Compares an existing collection on all clusters before the first write to it; raises what the user is told.
Adopt = Callable[[Shape, float], Awaitable[None]]


@final
class Writer:
    """Writes of one process.

    Args:
        shared: The parts that everybody uses.
        commit: Appends.
        catalog: The collections.
        keys: Makes the keys of auto_id collections.
        adopt: Compares collections that were there before.
    """

    def __init__(self, shared: Shared, commit: Commit, catalog: Catalog, keys: KeyMaker, adopt: Adopt) -> None:
        self._shared = shared
        self._commit = commit
        self._catalog = catalog
        self._keys = keys
        self._adopt = adopt
        self._pause = Pause(shared.log, shared.loop)

    async def write(
        self,
        method: Method,
        message: bytes,
        metadata: Metadata,
        database: str,
        deadline: float,
        past: Past | None = None,
    ) -> Reply:
        """Carry out one call that changes something.

        Args:
            method: See `Write`.
            message: See `Write`.
            metadata: The user's metadata, which may name an ack level.
            database: See `Write`.
            deadline: See `Write`.
            past: See `Write`.

        Raises:
            WriteNotConfirmed: It is in the log (or may be) and will happen; not enough clusters have it yet.
            Unavailable: The log cannot be written; nothing happened.
            WriteRefused: It cannot be mirrored; nothing happened.
            CallError: Nothing happened.
        """
        database = ddl.default_as_empty(database)
        call = Write(method, message, database, deadline, self._ack(metadata), past)
        try:
            if method.name in ROWS:
                return await self._rows(call)
            if method.name == "Delete":
                return await self._delete(call)
            return await self._change(call)
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

    async def _rows(self, call: Write) -> Reply:
        shape = await self._shape(call)
        fresh: list[int] = []
        if shape.auto_id:
            fresh = await self._commit.logged(self._keys.make(_row_count(call.message)), call)
        name, database = call.method.name, call.database
        rows = mutations.rows(name, call.message, shape, database, lambda count: fresh[:count])
        if rows.bare_json and (lacking := gates.bare_json(self._versions())):
            raise WriteRefused(f"{name} {shape.collection}: not written. {' '.join(lacking)}")
        seq = await self._append(call, (database, shape.collection), [(rows.method, rows.message)])
        return Reply(mutations.answer(name, rows.keys, rows.count, token(seq)))

    async def restore(self, method: Method, message: bytes, database: str, deadline: float) -> int:
        """Write rows in the form of the log, also those of a collection whose keys haclient makes.

        Args:
            method: Upsert.
            message: An UpsertRequest as `mutations.rows` makes it: complete, checked, the key's column first.
            database: Of the collection.
            deadline: Loop time by which one cluster must have them.

        Returns:
            Their seq.

        Raises:
            CallError: As `write`; `Void`'s text is in it if every cluster refuses them.
        """
        call = Write(method, message, database, deadline, "one", None)
        try:
            return await self._append(call, _scope(call), [(method.name, message)])
        except Void as void:
            status = peek(method, void.reply)
            raise CallError(status.reason if status is not None else "every cluster refuses it") from None

    async def _delete(self, call: Write) -> Reply:
        shape = await self._shape(call)
        wanted = mutations.deletion(call.message, shape)
        keys = wanted.keys if wanted.keys is not None else await self._resolve(call, wanted, shape)
        stream = (call.database, shape.collection)
        requests = mutations.delete_keys(shape, keys, wanted.partition, call.database)
        if requests:
            seq = await self._append(call, stream, [("Delete", request) for request in requests])
        else:
            seq = self._shared.progress.last(stream)
        return Reply(mutations.answer("Delete", keys, len(keys), token(seq)))

    async def _append(self, call: Write, stream: Stream, requests: list[tuple[str, bytes]]) -> int:
        seq = await self._commit.append(call, stream, requests)
        await self._commit.acknowledged(call, stream, seq)
        return seq

    async def _resolve(self, call: Write, wanted: mutations.Deletion, shape: Shape) -> list[Key]:
        """Find the keys that a filter means now: once, on one cluster that has everything."""
        shared, stream = self._shared, (call.database, shape.collection)
        head = (await self._commit.logged(shared.log.bounds(), call)).head
        progress = shared.progress

        def complete() -> list[str]:
            if progress.head < head:
                return []
            names = [member.name for member in shared.counted() if not member.drained]
            return [name for name in names if progress.has(name, stream, progress.last(stream))]

        async def pages(cluster: str, timeout_s: float) -> list[Key]:
            return await self._pages(call, cluster, wanted, shape, timeout_s)

        keys = await ask_any(progress, complete, pages, _PAGE_S, call.deadline)
        if keys is None:
            raise DeadlineExceeded(
                f"Delete {shape.collection}: the filter has to be resolved on a cluster that has every write before "
                "it, and none had in time. Delete by keys, or allow more time; nothing was deleted."
            )
        return keys

    async def _pages(
        self, call: Write, cluster: str, wanted: mutations.Deletion, shape: Shape, timeout_s: float
    ) -> list[Key]:
        clusters, loop, database = self._shared.clusters, self._shared.loop, call.database
        keys: list[Key] = []
        while (left_s := min(call.deadline - loop.time(), timeout_s)) > 0.0:
            after = keys[-1] if keys else None
            page = mutations.keys_query(shape, wanted.expression, wanted.partition, database, after, wanted.values)
            found = mutations.keys_of_reply(await clusters.ask(cluster, named("Query"), page, database, left_s), shape)
            if not found:
                return keys
            keys += found
        raise DeadlineExceeded(f"Delete {shape.collection}: its filter means more keys than can be read in time")

    async def _shape(self, call: Write) -> Shape:
        """Describe the collection that rows go to, and see that it is mirrored."""
        database = call.database
        _, name = _scope(call)
        shape = await self._catalog.shape(database, name, call.deadline)
        if shape.native_auto_id:
            raise WriteRefused(
                f"{call.method.name} {name}: not written. The servers make this collection's keys, so every cluster "
                "would have other ones. Create it anew through haclient, which makes the keys, and copy the rows."
            )
        stream = (database, shape.collection)
        if not await self._commit.logged(self._catalog.is_mirrored(stream), call):
            await self._compared(shape, call)
            await self._commit.logged(self._catalog.adopt(stream), call)
        return shape

    async def _compared(self, shape: Shape, call: Write) -> None:
        """Have a collection that was there before compared on all clusters."""
        try:
            async with asyncio.timeout_at(call.deadline):
                await self._adopt(shape, call.deadline)
        except TimeoutError:
            raise DeadlineExceeded(
                f"{call.method.name} {shape.collection}: not written. The collection was there before its writes were "
                f"mirrored, and could not be compared in time; run `haclient verify {shape.collection} --adopt` once."
            ) from None

    # Everything else.

    async def _change(self, call: Write) -> Reply:
        method, message, database = call.method, call.message, call.database
        stream = _scope(call)
        lacking = gates.problems(method, message, self._versions())
        if lacking:
            raise WriteRefused(f"{method.name} {stream[1]}: not sent. {' '.join(lacking)}")
        await self._commit.logged(self._pause.passed(f"{method.name} {stream[1]}", call.deadline), call)
        created = method.name == "CreateCollection"
        if stream != BARRIER and not created:
            stream = await self._real(stream, call.deadline)
        existed = created and await self._exists(stream, call.deadline)
        normal = ddl.normalise(method, ddl.create(message) if created else message, database)
        seq = await self._commit.append(call, stream, [(method.name, normal)])
        if created and not existed:
            # Should this note be lost, the collection is compared at the first write, as one that was there before.
            with suppress(LogError):
                await self._catalog.adopt(stream)
        # A schema that no cluster has cannot be written to, so there is nothing to gain by not waiting for one.
        await self._commit.acknowledged(replace(call, ack="one") if call.ack == "log" else call, stream, seq)
        if method.name == "DropCollection":
            with suppress(LogError):
                await self._catalog.drop(stream)
        return Reply(b"" if method.status == STATUS_IS else b"\n\x00")

    def _versions(self) -> dict[str, tuple[Flavour, str]]:
        return {member.name: (member.flavour, member.version) for member in self._shared.clusters.members()}

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
        except CallError as error:
            if error.code != COLLECTION_NOT_FOUND:
                raise
            return False
        return True


def _scope(call: Write) -> Stream:
    """Return the stream that a call belongs to.

    Raises:
        InvalidWrite: The request cannot be read.
    """
    try:
        return ddl.scope(call.method, call.message, call.database)
    except ValueError as error:
        raise InvalidWrite(_INVALID, f"{call.method.name}: the request cannot be read: {error}") from None


def _row_count(message: bytes) -> int:
    """Return the number of rows (#7) that an InsertRequest says it has; what cannot be true is refused later."""
    try:
        return min(varint_field(message, 7), len(message))
    except ValueError:
        return 0
