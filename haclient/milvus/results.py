"""What can be told of a reply's rows without decoding them.

Decision made here: a search that found nothing is recognised by its size first (a few dozen bytes), so a reply
with hits costs one comparison.
"""

from __future__ import annotations

from typing import Final

from haclient.call import Method
from haclient.milvus.wireformat import bytes_field

#: Methods whose reply is a ``SearchResults``.
SEARCHES: Final = frozenset(("Search", "HybridSearch"))
#: A reply longer than this is taken to have hits: without any there are a status and a count per query.
_LONGEST_EMPTY: Final = 128


def found_nothing(method: Method, message: bytes) -> bool:
    """Say whether a successful search has no hit for any query; False for every other method.

    ``SearchResults.results`` (#2) is a ``SearchResultData``, whose ``ids`` (#5) holds a list of integers (#1) or of
    strings (#2).
    """
    if len(message) > _LONGEST_EMPTY or method.name not in SEARCHES:
        return False
    try:
        data = bytes_field(message, 2)
        ids = bytes_field(data, 5) if data else None
        return not ids or not (bytes_field(ids, 1) or bytes_field(ids, 2))
    except ValueError:
        return False
