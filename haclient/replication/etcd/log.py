"""The mutation log in etcd, for processes on several hosts.

Decision made here: every read is linearizable and every change is one transaction, so what the log promises rests on
etcd's order alone, whichever member answers. A lease is a key that hangs on a lease of etcd's, and an epoch that the
same transaction raises; its time counts for the holder from before it asked, and for etcd from when it was granted, so
it always ends for the holder first.

It survives the loss of a minority of etcd's members. etcd syncs to the disks of a majority before it acknowledges.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Final, final

import orjson

from haclient.config.replication import Replication
from haclient.errors import ConfigError, LogUnavailable
from haclient.replication.etcd.append import Appender
from haclient.replication.etcd.client import EtcdClient
from haclient.replication.etcd.ends import Ends
from haclient.replication.etcd.layout import End, Keys
from haclient.replication.etcd.news import News
from haclient.replication.etcd.read import Reader
from haclient.replication.etcd.tidy import Tidy
from haclient.replication.etcd.txn import (
    Compare,
    Transactions,
    delete,
    end_of,
    get,
    present,
    put,
    span,
    unchanged,
    under,
    value_is,
)
from haclient.replication.log import Bounds, Entry, Fact, Lease, Mutation, nobody

_log = logging.getLogger("haclient")
_FORMAT: Final = 1
#: Keys looked at on each side of the log's, to see whose etcd it is.
_SAMPLE: Final = 10_000
#: What every Milvus stores, below whatever its ``etcd.rootPath`` is.
_MILVUS: Final = re.compile(rb"(?:^|/)(?:kv/gid/timestamp$|meta/(?:session|root-coord)/)")


@final
class EtcdLog:
    """A `haclient.replication.log.MutationLog` in etcd (3.4 or later).

    Args:
        settings: Where it is, credentials, bounds.
        wall_clock: Seconds since 1970.
        rng: Names what must be unique; the system's own by default.
    """

    def __init__(
        self, settings: Replication, wall_clock: Callable[[], float], rng: random.Random | None = None
    ) -> None:
        self._settings = settings
        self._rng = rng or random.SystemRandom()
        self._client = EtcdClient(settings)
        self._keys = Keys(settings.etcd_prefix)
        self._log = Transactions(self._client, self._keys.log)
        self._ends = Ends(self._log, self._keys)
        self._appender = Appender(
            self._log, self._keys, self._ends, settings.max_entries, settings.max_bytes, wall_clock, self._rng
        )
        self._reader = Reader(self._log, self._keys, self._ends)
        self._news = News(self._log, self._keys.state)
        self._tidy = Tidy(self._log, self._keys, self._ends, compacts=not settings.etcd_shared)
        self._tidying: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """See `MutationLog.open`."""
        try:
            await self._client.connect()
            await self._check_owner()
            await self._begin()
            await self._keep_below_quota()
        except BaseException:
            await self.aclose()
            raise
        self._client.opening = False
        self._tidying = asyncio.get_running_loop().create_task(self._tidy.run())

    async def aclose(self) -> None:
        """See `MutationLog.aclose`."""
        if self._tidying is not None:
            self._tidying.cancel()
            await asyncio.gather(self._tidying, return_exceptions=True)
        await self._news.aclose()
        await self._client.aclose()
        await self._appender.aclose()

    async def _check_owner(self) -> None:
        """Refuse the etcd of a Milvus: whoever loses it would lose the log with it."""
        root = self._keys.root
        sides = [
            span(b"\0", root, limit=_SAMPLE, keys_only=True),
            span(end_of(root), b"\0", limit=_SAMPLE, keys_only=True),
        ]
        try:
            found = (await self._log.peek(*sides)).found
        except ConfigError:  # the log's user may read nothing else; what is wrong beyond that shows next
            return
        milvus = next((one.key for ones in found for one in ones if _MILVUS.search(one.key)), None)
        if milvus is None:
            return
        problem = (
            f"log: {self._client.name} keeps the metadata of a Milvus (it has {milvus.decode(errors='replace')}), "
            "so that losing it would lose the log and that Milvus together"
        )
        if not self._settings.etcd_shared:
            raise ConfigError(f"{problem}; use an etcd of its own, or set etcd_shared = true to accept that")
        _log.warning("%s; etcd_shared accepts that", problem)

    async def _begin(self) -> None:
        """Find the log, or begin it."""
        new = {"format": _FORMAT, "id": f"{self._rng.getrandbits(128):032x}"}
        start = [put(self._keys.tail, End().encode()), put(self._keys.removed, End().encode())]
        value = await self._log.identify(orjson.dumps(new), start)
        try:
            known = orjson.loads(value)["format"] == _FORMAT
        except (orjson.JSONDecodeError, TypeError, KeyError):
            known = False
        if not known:
            raise ConfigError(
                f"etcd_prefix: what {self._client.name} has below {self._settings.etcd_prefix} is no log that this "
                "version of haclient knows; write another prefix"
            )
        await self._ends.look()

    async def _keep_below_quota(self) -> None:
        """Bound the log to half of what etcd may hold; it refuses everything once its quota is used up."""
        most = await self._client.quota() // 2
        if most < self._appender.max_bytes:
            _log.warning(
                "the log %s is bounded to %d bytes, half of etcd's quota, and not to max_bytes = %d: "
                "start etcd with a larger --quota-backend-bytes, or lower max_bytes",
                self._client.name,
                most,
                self._appender.max_bytes,
            )
            self._appender.max_bytes = most

    # Entries.

    async def append(self, mutations: Sequence[Mutation]) -> list[int]:
        """See `MutationLog.append`."""
        return await self._appender.append(mutations) if mutations else []

    async def read(self, after: int, *, limit: int = 256, max_bytes: int = 4 << 20, bodies: bool = True) -> list[Entry]:
        """See `MutationLog.read`."""
        return await self._reader.read(after, limit, max_bytes, bodies=bodies)

    async def bounds(self) -> Bounds:
        """See `MutationLog.bounds`."""
        await self._ends.look()
        return self._ends.bounds

    async def trim(self, through: int) -> None:
        """See `MutationLog.trim`."""
        await self._tidy.trim(through)

    async def changed(self, revision: int) -> int:
        """See `MutationLog.changed`."""
        return await self._news.after(revision)

    # Facts.

    async def facts(self, prefix: str = "") -> dict[str, Fact]:
        """See `MutationLog.facts`."""
        (found,) = (await self._log.read(under(self._keys.fact(prefix)))).found
        start = len(self._keys.fact(""))
        return {one.key[start:].decode(): Fact(one.value, one.revision) for one in found}

    async def put(
        self,
        changes: Mapping[str, bytes | None],
        *,
        expect: Mapping[str, int] | None = None,
        lease: Lease | None = None,
    ) -> bool:
        """See `MutationLog.put`."""
        keys = self._keys
        compare = [unchanged(keys.fact(name), version) for name, version in (expect or {}).items()]
        if lease is not None:
            compare += self._held(lease)
        answer = await self._log.do(
            compare,
            [
                delete(keys.fact(name)) if value is None else put(keys.fact(name), value)
                for name, value in changes.items()
            ],
        )
        if answer.repeated and not answer.done:
            raise LogUnavailable(
                f"the log {self._client.name} did not say whether it changed {', '.join(changes)}; read them", sent=True
            )
        return answer.done

    # Leases.

    async def acquire(
        self, name: str, holder: str, ttl_s: float, is_dead: Callable[[str], bool] = nobody
    ) -> Lease | None:
        """See `MutationLog.acquire`; etcd holds a lease for two seconds at least."""
        lease_key, epoch_key = self._keys.lease(name), self._keys.epoch(name)
        held, epochs = (await self._log.read(get(lease_key), get(epoch_key))).found
        if held and not is_dead(held[0].value.decode()):
            return None
        epoch, revision = (int(epochs[0].value) + 1, epochs[0].revision) if epochs else (1, 0)
        asked = asyncio.get_running_loop().time()
        granted = await self._client.call("/v3/lease/grant", {"TTL": math.ceil(ttl_s)}, writes=True)
        own = int(granted.fields["ID"])
        answer = await self._log.do(
            [unchanged(epoch_key, revision), unchanged(lease_key, held[0].revision if held else 0)],
            [put(epoch_key, b"%d" % epoch), put(lease_key, holder.encode(), lease=own)],
            [get(lease_key)],
        )
        if not answer.done and [one.lease for one in answer.found[0]] != [own]:
            return None  # what was granted runs out
        return Lease(name, epoch, asked + ttl_s, orphaned=bool(held))

    async def renew(self, lease: Lease, ttl_s: float) -> Lease | None:
        """See `MutationLog.renew`; no longer than it was acquired for."""
        answer = await self._log.do(self._held(lease), [get(self._keys.lease(lease.name))])
        if not answer.done:
            return None
        asked = asyncio.get_running_loop().time()
        kept = await self._client.call("/v3/lease/keepalive", {"ID": str(answer.found[0][0].lease)})
        left = int(kept.fields["result"].get("TTL", 0))
        return Lease(lease.name, lease.epoch, asked + min(ttl_s, left)) if left > 0 else None

    async def release(self, lease: Lease) -> None:
        """See `MutationLog.release`."""
        await self._log.do(self._held(lease), [delete(self._keys.lease(lease.name))])

    def _held(self, lease: Lease) -> list[Compare]:
        return [
            value_is(self._keys.epoch(lease.name), b"%d" % lease.epoch),
            present(self._keys.lease(lease.name)),
        ]
