"""The collection a retriever reads and an indexer fills.

Decision made here: the embedder's fingerprint is a property of the collection. Of all places (description of the
collection, of the vector field, properties) that is the only one which both milvus-lite and Milvus 2.3 keep, and
which can be set on a collection that exists.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from haclient.retrieval.embed.embedder import Fingerprint

#: The property that holds ``str(fingerprint)``.
FINGERPRINT_PROPERTY: Final = "haclient.embedder"


def read_fingerprint(description: Mapping[str, Any]) -> Fingerprint | None:
    """Return which model filled a collection, None if it does not say.

    Args:
        description: What ``client.describe_collection(name)`` returned.
    """
    return Fingerprint.find(str(description.get("properties", {}).get(FINGERPRINT_PROPERTY, "")))
