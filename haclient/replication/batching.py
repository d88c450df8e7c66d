"""How entries of the log become one request to one cluster.

Decision made here: rows that no cluster can have are inserted, everything else is upserted, and whatever may have been
begun before is upserted too. Neither a key nor the kind of a write repeats inside a batch, so the order in which a
server works on it does not matter.
"""

from __future__ import annotations

from typing import Final, final

from haclient.call import Method
from haclient.milvus import batch as milvus
from haclient.milvus.methods import named
from haclient.milvus.requests import listed_keys_field
from haclient.milvus.status import Flavour
from haclient.milvus.wireformat import bytes_field
from haclient.replication.log import Entry, Mutation
from haclient.replication.schedule import Batch

ROWS: Final = frozenset(("Insert", "Upsert"))
MERGED: Final = ROWS | {"Delete"}


@final
class Keys:
    """The keys of a batch that is being put together; parses each entry once."""

    def __init__(self) -> None:
        self._first: Entry | None = None
        self._keys: set[int | str] = set()

    def joins(self, taken: list[Entry], entry: Entry, again: bool) -> bool:
        """Say whether an entry may join those taken; see `haclient.replication.schedule.Joins`."""
        first = taken[0]
        if not _alike(first, entry, again):
            return False
        if self._first is not first:
            self._first, self._keys = first, set(_keys(first))
        keys = _keys(entry)
        if not self._keys.isdisjoint(keys):
            return False
        self._keys.update(keys)
        return True


def request(batch: Batch, flavour: Flavour) -> tuple[Method, bytes]:
    """Make the request that applies a batch on one kind of server."""
    first = batch.entries[0].mutation
    if first.method not in MERGED:
        return named(first.method), first.message
    entries = [(one.mutation.method, one.mutation.message) for one in batch.entries]
    message = milvus.merge(entries, key_field(first)) if len(entries) > 1 else first.message
    if first.method == "Delete":
        return named("Delete"), message
    method = "Insert" if first.method == "Insert" and not batch.again else milvus.replaces_rows(flavour)
    return named(method), message  # the requests have the same fields


def _alike(first: Entry, entry: Entry, again: bool) -> bool:
    one, other = first.mutation, entry.mutation
    if one.method not in MERGED or other.method not in MERGED:
        return False
    if one.method != other.method and not (again and one.method in ROWS and other.method in ROWS):
        return False
    return milvus.mergeable((one.method, one.message), (other.method, other.message))


def _keys(entry: Entry) -> list[int | str]:
    one = entry.mutation
    return milvus.keys_of(one.method, one.message, key_field(one))


def key_field(mutation: Mutation) -> str:
    """Return the name of the key of rows (in the log it is their first column) or of a list of keys to delete.

    Raises:
        ValueError: The mutation is neither.
    """
    found = bytes_field(mutation.message, 5)
    if mutation.method == "Delete":
        return listed_keys_field((found or b"").decode()) or ""
    return (bytes_field(found or b"", 2) or b"").decode()
