"""Collections that are to be loaded: some servers forget it when they are restarted.

Decision made here: what was loaded through haclient is noted with the collection, and whoever applies to a cluster
loads it there again when the cluster comes back without it.
"""

from __future__ import annotations

from typing import Any, Final

import orjson

from haclient.errors import CallError
from haclient.milvus import messages
from haclient.milvus.messages import LoadState
from haclient.replication.catalog import COLLECTION
from haclient.replication.clusters import Clusters
from haclient.replication.log import Fact, MutationLog, Stream

_TIMEOUT_S: Final = 5.0
_LOAD_S: Final = 60.0


async def restore(log: MutationLog, clusters: Clusters, cluster: str) -> None:
    """Load on a cluster what is to be loaded and is not.

    Raises:
        LogUnavailable: The log cannot be read.
    """
    for name, fact in (await log.facts(COLLECTION)).items():
        database, _, collection = name.removeprefix(COLLECTION).partition("/")
        if _is_to_be_loaded(fact) and not await _is_loaded(clusters, cluster, (database, collection)):
            asked = messages.load_collection(collection, database=database)
            await clusters.deliver(cluster, asked.method, asked.message, database, _LOAD_S)


def _is_to_be_loaded(fact: Fact) -> bool:
    known: Any = orjson.loads(fact.value)
    return known.get("loaded") is True


async def _is_loaded(clusters: Clusters, cluster: str, stream: Stream) -> bool:
    asked = messages.get_load_state(stream[1], database=stream[0])
    try:
        reply = await clusters.ask(cluster, asked.method, asked.message, stream[0], _TIMEOUT_S)
        return messages.read_load_state(reply) in (LoadState.LOADED, LoadState.LOADING, LoadState.NOT_EXIST)
    except (CallError, ValueError):
        return False  # loading it again does no harm
