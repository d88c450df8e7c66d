"""What a session has written and may have seen, so that it never goes back.

Decision made here: a session remembers *when* and *by which cluster* a read was answered, not what was in the answer.
The same cluster may answer again at once; another one must have all that was in the log at that moment, which is at
least what the first one can have shown. A session that moves between processes takes this along as a short token; when
it arrives, the moment is now.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import struct
import zlib
from collections import OrderedDict
from functools import lru_cache
from typing import Final, NamedTuple, Self, TypeVar, final

from haclient.call import Metadata
from haclient.replication.log import BARRIER, Stream

K = TypeVar("K")
V = TypeVar("V")

#: Metadata that carries a session's token, in replies and in the requests that go on from them.
SESSION: Final = "haclient-session"
#: Collections that one session remembers singly.
_MOST: Final = 256
_VERSION: Final = 1
_FORM: Final = struct.Struct(">BQQI")
_CHECK_BYTES: Final = 3
#: In place of a cluster: no read was answered, and several clusters have answered reads.
_NOBODY, _SEVERAL = 0, 0xFFFF_FFFF


class Sight(NamedTuple):
    """The last answer to a session's reads of a collection.

    Attributes:
        cluster: Mark of the cluster that gave it, see `mark`.
        at: Loop time at which it was given, or a later one.
    """

    cluster: int
    at: float


@lru_cache(maxsize=256)
def mark(cluster: str) -> int:
    """Return the number that stands for a cluster in tokens; no cluster's is `_NOBODY` or `_SEVERAL`."""
    return min(max(zlib.crc32(cluster.encode()), 1), _SEVERAL - 1)


@final
class Past:
    """What one session has written and seen."""

    __slots__ = ("_barrier", "_earlier", "_floor", "_sights", "_wrote")

    def __init__(self) -> None:
        self._wrote: OrderedDict[Stream, int] = OrderedDict()
        self._sights: OrderedDict[Stream, Sight] = OrderedDict()
        #: What holds for collections that are not, or no longer, remembered singly.
        self._floor = 0
        self._barrier = 0
        self._earlier: Sight | None = None

    @classmethod
    def of(cls, token: str, now: float) -> Self | None:
        """Go on with a session of another process (or client); None if it is no token.

        Args:
            token: What `token` returned there.
            now: Loop time at which it has arrived.
        """
        known = _decode(token)
        if known is None:
            return None
        past = cls()
        past._floor, past._barrier = known.wrote, known.barrier
        if known.cluster != _NOBODY:
            past._earlier = Sight(known.cluster, now)
        return past

    def wrote(self, stream: Stream, seq: int) -> None:
        """Note that the session has written an entry."""
        if stream == BARRIER:
            self._barrier = max(self._barrier, seq)
        elif seq > self.written(stream):
            evicted = _put(self._wrote, stream, seq)
            self._floor = max(self._floor, evicted or 0)

    def saw(self, name: Stream, cluster: str | None, now: float) -> None:
        """Note that a read of the session has just been answered.

        Args:
            name: Database and collection, as it was asked for.
            cluster: Name of the cluster that has answered; None if it may lack what another one has shown before (the
                read did not ask for it).
            now: Loop time.
        """
        evicted = _put(self._sights, name, Sight(mark(cluster) if cluster is not None else _SEVERAL, now))
        if evicted is not None:
            at = max(evicted.at, self._earlier.at) if self._earlier else evicted.at
            self._earlier = Sight(_SEVERAL, at)

    def written(self, stream: Stream) -> int:
        """Return the newest entry of a stream that the session has written, or a later one; 0 if none."""
        return self._barrier if stream == BARRIER else self._wrote.get(stream, self._floor)

    def all_written(self) -> list[tuple[Stream, int]]:
        """Return the newest entry that the session has written, of every stream."""
        return [*self._wrote.items(), (BARRIER, max(self._barrier, self._floor))]

    def sight(self, name: Stream) -> Sight | None:
        """Return the last answer that the session got about a collection, None if it got none."""
        return self._sights.get(name, self._earlier)

    def token(self, name: Stream, stream: Stream) -> str:
        """Write down what matters of a collection.

        Args:
            name: Database and collection, as it is asked for.
            stream: Database and real name.
        """
        sight = self.sight(name)
        cluster = sight.cluster if sight is not None else _NOBODY
        return _encode(_Token(self.written(stream), self.written(BARRIER), cluster))


@final
class Kept:
    """Tokens of a client whose servers are haclient proxies: it hands the newest on, so that it may ask any of them.

    Attributes:
        tokens: By database and collection.
    """

    __slots__ = ("tokens",)

    def __init__(self) -> None:
        self.tokens: OrderedDict[Stream, str] = OrderedDict()

    def keep(self, database: str, collection: str, trailers: Metadata) -> None:
        """Take the token of a reply, if there is one."""
        for name, value in trailers:
            if name == SESSION:
                for place in {(database, collection), (database, "")}:
                    _put(self.tokens, place, joined(self.tokens.get(place, ""), value))

    def add(self, database: str, collection: str, metadata: Metadata) -> Metadata:
        """Add the token of a collection to a request's metadata, unless it has one."""
        token = self.tokens.get((database, collection))
        if token is None or any(name == SESSION for name, _ in metadata):
            return metadata
        return (*metadata, (SESSION, token))


def joined(one: str, other: str) -> str:
    """Return a token of a session that is both; what is no token is left out."""
    first, second = _decode(one), _decode(other)
    if first is None or second is None:
        return other if first is None else one
    clusters = {first.cluster, second.cluster} - {_NOBODY}
    cluster = clusters.pop() if len(clusters) == 1 else _SEVERAL if clusters else _NOBODY
    return _encode(_Token(max(first.wrote, second.wrote), max(first.barrier, second.barrier), cluster))


class _Token(NamedTuple):
    """What a token says: newest entries written (to the stream, and to the barrier), who answered."""

    wrote: int
    barrier: int
    cluster: int


def _encode(token: _Token) -> str:
    body = _FORM.pack(_VERSION, *token)
    return base64.urlsafe_b64encode(body + _check(body)).decode()


def _decode(text: str) -> _Token | None:
    try:
        raw = base64.b64decode(text, altchars=b"-_", validate=True)
        version, *values = _FORM.unpack(raw[:-_CHECK_BYTES])
    except (ValueError, binascii.Error, struct.error):
        return None
    if version != _VERSION or _check(raw[:-_CHECK_BYTES]) != raw[-_CHECK_BYTES:]:
        return None
    return _Token(*values)


def _check(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=_CHECK_BYTES, person=b"haclient-session").digest()


def _put(memory: OrderedDict[K, V], key: K, value: V) -> V | None:
    """Remember a value as the newest; returns the one that had to go for it."""
    memory[key] = value
    memory.move_to_end(key)
    return memory.popitem(last=False)[1] if len(memory) > _MOST else None
