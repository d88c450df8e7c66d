"""Transactions of etcd: what they compare and do, written as the JSON gateway wants it, and what comes back.

Decision made here: every transaction also compares the log's identity, so a log that was removed, restored elsewhere or
belongs to another etcd is noticed by the transaction itself, before it changes or believes anything.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar, final

from haclient.errors import LogCorrupt
from haclient.replication.etcd.client import EtcdClient

#: Operations of one kind in a transaction (etcd's default ``--max-txn-ops``), and those left for more than a group.
MOST_OPERATIONS: Final = 128
GROUP: Final = 100

Compare: TypeAlias = dict[str, Any]
Operation: TypeAlias = dict[str, Any]
T = TypeVar("T")


@final
class KeyValue(NamedTuple):
    """A key as it is stored; ``revision`` is that of its last change, ``lease`` the id of the lease it hangs on."""

    key: bytes
    value: bytes
    revision: int
    lease: int


@final
class Answer(NamedTuple):
    """What a transaction did.

    Attributes:
        done: Whether everything compared was so.
        revision: The store's revision: that of the change, if there was one.
        found: The keys of each range of the branch taken, in the order asked for.
        repeated: An earlier copy of the transaction may have been carried out.
    """

    done: bool
    revision: int
    found: list[list[KeyValue]]
    repeated: bool


def batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Cut a sequence into parts of at most some items."""
    return (items[at : at + size] for at in range(0, len(items), size))


def text(data: bytes) -> str:
    """Write bytes as JSON has them."""
    return b64encode(data).decode()


def end_of(prefix: bytes) -> bytes:
    """Return the end of the range of keys with a prefix, which does not end with 0xff."""
    return prefix[:-1] + bytes([prefix[-1] + 1])


def get(key: bytes) -> Operation:
    """Read a key."""
    return {"request_range": {"key": text(key)}}


def span(start: bytes, end: bytes, *, limit: int = 0, keys_only: bool = False) -> Operation:
    """Read the keys from one up to another, in order."""
    fields = {"key": text(start), "range_end": text(end), "limit": limit, "keys_only": keys_only}
    return {"request_range": fields}


def under(prefix: bytes, *, keys_only: bool = False) -> Operation:
    """Read the keys with a prefix."""
    return span(prefix, end_of(prefix), keys_only=keys_only)


def put(key: bytes, value: bytes, *, lease: int = 0) -> Operation:
    """Set a key."""
    return {"request_put": {"key": text(key), "value": text(value), "lease": str(lease)}}


def delete(key: bytes) -> Operation:
    """Remove a key."""
    return {"request_delete_range": {"key": text(key)}}


def delete_under(prefix: bytes) -> Operation:
    """Remove the keys with a prefix."""
    return {"request_delete_range": {"key": text(prefix), "range_end": text(end_of(prefix))}}


def value_is(key: bytes, value: bytes) -> Compare:
    """Compare a key's value."""
    return {"key": text(key), "target": "VALUE", "result": "EQUAL", "value": text(value)}


def unchanged(key: bytes, revision: int) -> Compare:
    """Compare the revision of a key's last change; 0: it is not there."""
    return {"key": text(key), "target": "MOD", "result": "EQUAL", "mod_revision": str(revision)}


def present(key: bytes) -> Compare:
    """Compare that a key is there."""
    return {"key": text(key), "target": "VERSION", "result": "GREATER", "version": "0"}


def none_under(prefix: bytes) -> Compare:
    """Compare that no key has a prefix."""
    everything = {"key": text(prefix), "range_end": text(end_of(prefix))}
    return {**everything, "target": "VERSION", "result": "EQUAL", "version": "0"}


@final
class Transactions:
    """Runs transactions on one log.

    Args:
        client: Reaches etcd.
        key: Where the log's identity is stored.
    """

    def __init__(self, client: EtcdClient, key: bytes) -> None:
        self.client = client
        self._key = key
        self._identity = b""

    async def identify(self, proposed: bytes, start: Sequence[Operation]) -> bytes:
        """Return the log's identity; a log that is not there is begun.

        Args:
            proposed: Identity of a new log.
            start: What else a new log has.
        """
        (found,) = (await self.peek(get(self._key))).found
        if not found:
            begun = await self._send([unchanged(self._key, 0)], [put(self._key, proposed), *start], [get(self._key)])
            found = begun.found[0] if not begun.done else [KeyValue(self._key, proposed, begun.revision, 0)]
        self._identity = found[0].value
        return self._identity

    async def peek(self, *ranges: Operation) -> Answer:
        """Read, whatever the log is."""
        return await self._send([], ranges, [])

    async def read(self, *ranges: Operation) -> Answer:
        """Read at one moment, and not before everything that returned, anywhere, before this was called."""
        return await self.do([], ranges)

    async def do(
        self, compare: Sequence[Compare], then: Sequence[Operation], otherwise: Sequence[Operation] = ()
    ) -> Answer:
        """Run a transaction; it must be one that can hold only once, or that may be repeated.

        Args:
            compare: What must be so.
            then: What to do if it is.
            otherwise: What to read if it is not.

        Raises:
            LogCorrupt: The log is not there any more, or another has taken its place.
            ValueError: It is too large for etcd.
        """
        answer = await self._send([value_is(self._key, self._identity), *compare], then, [get(self._key), *otherwise])
        if answer.done:
            return answer
        identity, *found = answer.found
        if not identity or identity[0].value != self._identity:
            raise LogCorrupt(
                f"the log {self.client.name} is not the one that was opened: it was removed or replaced, or the "
                "endpoints are of different etcd clusters; restart if that was meant"
            )
        return answer._replace(found=found)

    async def _send(
        self, compare: Sequence[Compare], then: Sequence[Operation], otherwise: Sequence[Operation]
    ) -> Answer:
        if max(len(compare), len(then), len(otherwise)) > MOST_OPERATIONS:
            raise ValueError(f"more than {MOST_OPERATIONS} changes at once are too many for etcd; make fewer")
        writes = any("request_range" not in operation for operation in then)
        message = {"compare": compare, "success": then, "failure": otherwise}
        fields, repeated = await self.client.call("/v3/kv/txn", message, writes=writes)
        ranges = [one["response_range"] for one in fields.get("responses", ()) if "response_range" in one]
        found = [[_key_value(one) for one in range_.get("kvs", ())] for range_ in ranges]
        return Answer(fields.get("succeeded", False), int(fields["header"]["revision"]), found, repeated)


def _key_value(fields: dict[str, str]) -> KeyValue:
    return KeyValue(
        b64decode(fields["key"]),
        b64decode(fields.get("value", "")),
        int(fields["mod_revision"]),
        int(fields.get("lease", 0)),
    )
