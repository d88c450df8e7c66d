"""What a schema or an index needs of a server's version.

Decision made here: a server is asked nothing that it is known not to understand, since an old one accepts silently, loses
parts of it, or dies of it later. A version that is not known yet is taken to understand everything.
"""

from __future__ import annotations

from collections.abc import Mapping

from haclient.call import Method
from haclient.milvus.status import Flavour


def problems(method: Method, message: bytes, versions: Mapping[str, tuple[Flavour, str]]) -> list[str]:
    """Say what a request needs that a cluster does not understand, one sentence each; empty if all do.

    Args:
        method: CreateCollection, AddCollectionField, AlterCollection*, CreateIndex; any other has no problems.
        message: The request.
        versions: Flavour and version of every cluster, by name; "" for a version that is not known.
    """
    raise NotImplementedError
