"""Clusters that differ made the same again, key by key.

Decisions made here:

* Right is what the log says of a key last, if that is still in it; else what most clusters hold; else what the cluster
  holds that the operator names. Where none of these says anything, nothing is written.
* A cluster is mended while nobody applies to it, at a place P of the log, from one that has applied P too. Whatever
  came after P its applier brings afterwards, on top. Written beside a running applier, or appended to the log as a
  write of its own, an older row could come to lie over a newer one.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Final, final

from pymilvus.grpc_gen import milvus_pb2, schema_pb2

from haclient.milvus import batch
from haclient.milvus.digest import row_hashes
from haclient.milvus.messages import Key, Request
from haclient.milvus.methods import named
from haclient.milvus.mutations import delete_keys
from haclient.milvus.pages import Page, rows_message
from haclient.milvus.shape import DYNAMIC, Shape, parse
from haclient.replication.batching import MERGED
from haclient.replication.compare import Difference
from haclient.replication.hold import Hold, held
from haclient.replication.log import MutationLog, Stream
from haclient.replication.position import Standing
from haclient.replication.site import Site, SiteFailed
from haclient.replication.verify import Verified, Verifier, wait_applied

#: With more rows to mend than this a cluster is better reseeded.
_MOST: Final = 100_000
#: Rows mended together.
_TOGETHER: Final = 1_000


@final
@dataclass(slots=True)
class Repaired:
    """What has been done.

    Attributes:
        written: Rows written, by cluster.
        deleted: Rows deleted, by cluster.
        undecided: Keys of which nothing says what is right.
        after: The collection, compared again; None if nothing was written.
    """

    written: dict[str, int] = field(default_factory=dict)
    deleted: dict[str, int] = field(default_factory=dict)
    undecided: list[Key] = field(default_factory=list)
    after: Verified | None = None


@final
class Repairer:
    """Mends collections.

    Args:
        verifier: Compares them.
        holder: Name of this process.
        loop: Its time is the clock.
        trusted: The cluster whose rows are right where nothing else says so; "" for none.
    """

    def __init__(self, verifier: Verifier, holder: str, loop: asyncio.AbstractEventLoop, trusted: str = "") -> None:
        self._verifier = verifier
        self._log = verifier.log
        self._holder = holder
        self._loop = loop
        self._trusted = trusted

    async def repair(self, stream: Stream) -> Repaired:
        """Mend one collection.

        Raises:
            SiteFailed: It cannot be mended row by row, or a cluster could not be read or written.
            HoldLost: Another process works on the cluster.
            LogError: The log failed.
        """
        told, done = Verified(*stream), Repaired()
        differences = await self._differences(stream, told)
        if told.problems:
            raise SiteFailed(f"{stream[1]}: not mended: {'; '.join(told.problems)}. Reseed the cluster that is wrong")
        if not differences:
            return done
        shape = await self._verifier.site(told.reference).shape(*stream)
        assert shape is not None
        last = await _last(self._log, stream, shape, differences) if self._log is not None else {}
        wrong: dict[str, list[tuple[Difference, str]]] = {}
        for one in differences:
            donor = self._right(one, last)
            if not donor:
                done.undecided.append(one.key)
                continue
            for name, row in one.rows.items():
                if row != one.rows[donor]:
                    wrong.setdefault(name, []).append((one, donor))
        for name, some in wrong.items():
            await self._mend(name, stream, shape, some, done)
        if wrong:
            await self._applied_again(wrong, stream)
            done.after = await self._verifier.verify(stream)
        return done

    async def _differences(self, stream: Stream, told: Verified) -> list[Difference]:
        found: list[Difference] = []
        async with aclosing(self._verifier.differences(stream, told)) as differences:
            async for difference in differences:
                found.append(difference)
                if len(found) > _MOST:
                    text = f"{stream[1]}: clusters differ in more than {_MOST} rows"
                    raise SiteFailed(f"{text}: reseed the one that is wrong")
        return found

    def _right(self, one: Difference, last: dict[Key, bytes | None]) -> str:
        """Return a cluster that has the right row (or rightly none), "" if nothing says which."""
        if one.key in last and last[one.key] in one.rows.values():
            wanted = last[one.key]
        else:
            row, count = Counter(one.rows.values()).most_common(1)[0]
            if 2 * count > len(one.rows):
                wanted = row
            elif self._trusted in one.rows:
                return self._trusted
            else:
                return ""
        return next(name for name, row in one.rows.items() if row == wanted)

    # Mending.

    async def _mend(
        self, cluster: str, stream: Stream, shape: Shape, wrong: list[tuple[Difference, str]], done: Repaired
    ) -> None:
        log = self._log
        if log is None:
            await self._write(self._verifier.site(cluster), shape, wrong, done)
            return

        async def work(hold: Hold) -> None:
            position, target = hold.position, self._verifier.site(cluster, hold.check)
            unclean_s = position.open
            position.standing, position.open = Standing.RESEEDING, max(unclean_s, target.longest_s)
            await hold.move()
            try:
                if unclean_s:
                    await target.rest(max(self._verifier.settings.settle_s, unclean_s))
                for donor in {donor for _, donor in wrong}:
                    await wait_applied(log, donor, stream, position.applied(stream), self._loop, patient=True)
                await self._write(target, shape, wrong, done)
                position.open = 0.0
            finally:
                # What could not be mended differs as before, so its applier may as well go on.
                position.begun = max(position.begun, (await log.bounds()).head)
                position.standing = Standing.AWAY
                await hold.move()

        await held(log, cluster, self._holder, self._verifier.settings.lease_s, self._loop, work)

    async def _write(self, target: Site, shape: Shape, wrong: list[tuple[Difference, str]], done: Repaired) -> None:
        groups: dict[tuple[str, str], list[Key]] = {}
        for one, donor in wrong:
            groups.setdefault((donor, one.partition), []).append(one.key)
        for (donor, partition), keys in sorted(groups.items()):
            site = self._verifier.site(donor)
            for at in range(0, len(keys), _TOGETHER):
                some = keys[at : at + _TOGETHER]
                page = await site.rows(shape, some, partition=partition, timestamp=await site.fence())
                await self._replace(target, shape, partition, some, page, done)

    async def _replace(
        self, target: Site, shape: Shape, partition: str, keys: Sequence[Key], page: Page, done: Repaired
    ) -> None:
        """Make some keys of the target what they are on a page, or nothing if they are not on it."""
        absent = [key for key in keys if key not in set(page.keys)]
        for message in delete_keys(shape, absent, partition, shape.database):
            await target.change(Request(named("Delete"), message), shape.database)
        done.deleted[target.name] = done.deleted.get(target.name, 0) + len(absent)
        if page.keys:
            method = named(batch.replaces_rows(target.member.flavour))
            await target.change(Request(method, rows_message(page, shape, partition)), shape.database)
            done.written[target.name] = done.written.get(target.name, 0) + len(page.keys)

    async def _applied_again(self, clusters: Iterable[str], stream: Stream) -> None:
        """Wait until the appliers have taken the clusters up again."""
        if self._log is not None:
            head = (await self._log.bounds()).head
            for cluster in clusters:
                await wait_applied(self._log, cluster, stream, head, self._loop, patient=True)


async def _last(
    log: MutationLog, stream: Stream, shape: Shape, differences: Sequence[Difference]
) -> dict[Key, bytes | None]:
    """Return what the log says of keys last, when they were compared: the hash of a row, or None of a deleted one."""
    compared = {one.key: one.seq for one in differences}
    found: dict[Key, bytes | None] = {}
    after = (await log.bounds()).first - 1
    while entries := await log.read(after):
        for entry in entries:
            one = entry.mutation
            if one.stream != stream or one.method not in MERGED:
                continue
            keys = [
                key for key in batch.keys_of(one.method, one.message, shape.key) if entry.seq <= compared.get(key, 0)
            ]
            if keys:
                rows = row_hashes(_page(one.message, shape)) if one.method != "Delete" else {}
                found |= {key: rows.get(key) for key in keys}
        after = entries[-1].seq
    return found


def _page(message: bytes, shape: Shape) -> Page:
    """Read the rows of a write in the log, as a cluster gives them back."""
    page = Page(parse(milvus_pb2.UpsertRequest, message).fields_data, shape.key)
    if shape.dynamic and DYNAMIC not in page.columns:
        empty: Any = schema_pb2.FieldData(field_name=DYNAMIC, type=schema_pb2.JSON)
        empty.scalars.json_data.data.extend([b"{}"] * len(page.keys))
        page.columns[DYNAMIC] = empty
    return page
