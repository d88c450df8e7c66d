"""Where a document came from, for frameworks whose documents have metadata.

Decision made here: it is part of the document, under one key of its metadata, so that it reaches the end of any
pipeline and collides with no field of the user's.
"""

from __future__ import annotations

from typing import Any, Final

from haclient.retrieval.document import Document, Documents

#: The key; what is under it is `origin_of`.
ORIGIN: Final = "haclient"


def origin_of(document: Document, found: Documents) -> dict[str, Any]:
    """Return how a document was come by.

    That is its ``score`` (higher is better), ``source`` (``cluster/endpoint``), ``rung`` of the ladder,
    ``consistency``, ``age_s`` and ``stale``; see `haclient.retrieval.document.Documents`.
    """
    freshness = found.freshness
    return {
        "score": document.score,
        "source": found.source,
        "rung": found.rung.value,
        "consistency": freshness.consistency,
        "age_s": freshness.age_s,
        "stale": freshness.stale,
    }
