"""A collection that a server has created is looked at: an old one drops silently what it does not understand."""

from __future__ import annotations

from haclient.errors import CallError
from haclient.milvus import ddl, messages
from haclient.milvus.methods import named
from haclient.milvus.wireformat import embed
from haclient.replication.clusters import Clusters, Delivery, Outcome
from haclient.replication.log import Mutation


async def exists(clusters: Clusters, cluster: str, mutation: Mutation, timeout_s: float) -> bool:
    """Say whether a cluster has the collection of a CreateCollection."""
    try:
        await _describe(clusters, cluster, mutation, timeout_s)
    except CallError:
        return False
    return True


async def check(clusters: Clusters, cluster: str, mutation: Mutation, *, existed: bool, timeout_s: float) -> Delivery:
    """Compare a collection that was created just now with what was wanted.

    One that lacks something is dropped again, unless it was there before, and counts as refused.

    Returns:
        What the CreateCollection has come to.
    """
    try:
        description = await _describe(clusters, cluster, mutation, timeout_s)
    except CallError as error:
        return Delivery(
            Outcome.LATER, reason=f"created, but it could not be looked at: {error.summary}", code=error.code
        )
    lacking = ddl.differences(mutation.message, description)
    if not lacking:
        return Delivery(Outcome.DONE)
    if not existed:
        method = named("DropCollection")
        request = embed(3, mutation.stream[1].encode())
        if mutation.database:
            request = embed(2, mutation.database.encode()) + request
        dropped = await clusters.deliver(cluster, method, request, mutation.database, timeout_s)
        if dropped.outcome is not Outcome.DONE:
            return Delivery(Outcome.LATER, reason=f"created without a part, and not dropped: {dropped.reason}")
    reason = f"cluster {cluster} did not keep all of the schema: {'; '.join(lacking)}"
    return Delivery(Outcome.REFUSED, messages.refusal(named("CreateCollection"), reason), reason, 65535)


async def _describe(clusters: Clusters, cluster: str, mutation: Mutation, timeout_s: float) -> bytes:
    asked = messages.describe_collection(mutation.stream[1], database=mutation.database)
    return await clusters.ask(cluster, asked.method, asked.message, mutation.database, timeout_s)
