"""Who a client is to each server it has been introduced to, and what it has written and seen.

A client introduces itself once (Connect) and is given a number, which its later calls carry as ``identifier``; the
number is the server's own, of its own clock. Decision made here: the client gets one number from us, and each server
gets back its own. A server that has never met the client gets none, which Milvus allows; a number from before a
restart, or from another worker, is unknown here and so is not passed on. What it has written and seen belongs to its
connection, unless it carries that along itself (`haclient.replication.past`).
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from typing import Final, final
from weakref import WeakKeyDictionary

from haclient.call import Metadata, Session
from haclient.milvus.wireformat import replace_varint, varint_field
from haclient.replication.past import Past

_MOST: Final = 65_536
#: ConnectResponse.identifier
_IDENTIFIER: Final = 3


@final
class Sessions:
    """The clients of one worker; the ones not heard of for longest are forgotten."""

    __slots__ = ("_known", "_pasts")

    def __init__(self) -> None:
        self._known: OrderedDict[str, dict[tuple[str, str], Metadata]] = OrderedDict()
        self._pasts: WeakKeyDictionary[object, Past] = WeakKeyDictionary()

    def introduce(self, place: tuple[str, str], message: bytes) -> bytes:
        """Take a server's ConnectResponse, and return the client's.

        Args:
            place: Names of the cluster and endpoint that answered.
            message: Its answer; returned as it is if it names nobody (milvus-lite, errors).
        """
        try:
            theirs = varint_field(message, _IDENTIFIER)
            if not theirs:
                return message
            ours = secrets.randbits(62) | 1
            answer = replace_varint(message, _IDENTIFIER, ours)
        except ValueError:
            return message
        self._known[str(ours)] = {place: (("identifier", str(theirs)),)}
        if len(self._known) > _MOST:
            self._known.popitem(last=False)
        return answer

    def of(self, identifier: str) -> Session | None:
        """Return what each server calls a client, None if it is not known."""
        session = self._known.get(identifier)
        if session is not None:
            self._known.move_to_end(identifier)
        return session

    def past(self, connection: object) -> Past:
        """Return what the client at the other end of a connection has written and seen."""
        past = self._pasts.get(connection)
        if past is None:
            past = self._pasts[connection] = Past()
        return past
