"""Collections that are to be loaded: some servers forget it when they are restarted.

Decision made here: an applier that has loaded or released a collection notes it before the entry counts as done, so of
what a cluster has applied the newest note is true; and whoever applies to a cluster that comes back without a
collection loads it there again.
"""

from __future__ import annotations

from typing import Final

import orjson

from haclient.errors import CallError
from haclient.milvus import messages
from haclient.milvus.messages import LoadState
from haclient.replication.clusters import Clusters
from haclient.replication.log import MutationLog, Stream
from haclient.replication.position import Position

#: Facts: loaded/<database>/<collection>: which entry last decided, and how.
LOADED: Final = "loaded/"
#: What is to be after each of these.
DECIDES: Final = {"LoadCollection": True, "ReleaseCollection": False, "DropCollection": False}

_TIMEOUT_S: Final = 5.0
_LOAD_S: Final = 60.0


async def note(log: MutationLog, stream: Stream, seq: int, method: str) -> None:
    """Note what an entry that is about to be done decides; an older entry changes nothing.

    Raises:
        LogUnavailable: It could not be noted.
    """
    name = f"{LOADED}{stream[0]}/{stream[1]}"
    value = orjson.dumps({"seq": seq, "loaded": DECIDES[method]})
    while True:
        known = (await log.facts(name)).get(name)
        if known is not None and orjson.loads(known.value)["seq"] >= seq:
            return
        if await log.put({name: value}, expect={name: known.version if known is not None else 0}):
            return


def loaded(stream: Stream) -> tuple[str, bytes]:
    """Return the note, as a fact, that a collection is to be loaded from the beginning of the log."""
    return f"{LOADED}{stream[0]}/{stream[1]}", orjson.dumps({"seq": 0, "loaded": True})


async def is_wanted(log: MutationLog, stream: Stream) -> bool:
    """Say whether a collection is to be loaded, by the newest note.

    Raises:
        LogUnavailable: The log cannot be read.
    """
    name = f"{LOADED}{stream[0]}/{stream[1]}"
    known = (await log.facts(name)).get(name)
    return known is not None and bool(orjson.loads(known.value)["loaded"])


async def restore(log: MutationLog, clusters: Clusters, cluster: str, position: Position) -> None:
    """Load on a cluster what is to be loaded, as far as it has come, and is not.

    Raises:
        LogUnavailable: The log cannot be read.
    """
    for name, fact in (await log.facts(LOADED)).items():
        database, _, collection = name.removeprefix(LOADED).partition("/")
        known, stream = orjson.loads(fact.value), (database, collection)
        if not known["loaded"] or known["seq"] > position.applied(stream):
            continue
        if not await _is_loaded(clusters, cluster, stream):
            asked = messages.load_collection(collection, database=database)
            await clusters.deliver(cluster, asked.method, asked.message, database, _LOAD_S)


async def _is_loaded(clusters: Clusters, cluster: str, stream: Stream) -> bool:
    asked = messages.get_load_state(stream[1], database=stream[0])
    try:
        reply = await clusters.ask(cluster, asked.method, asked.message, stream[0], _TIMEOUT_S)
        return messages.read_load_state(reply) in (LoadState.LOADED, LoadState.LOADING, LoadState.NOT_EXIST)
    except (CallError, ValueError):
        return False  # loading it again does no harm
