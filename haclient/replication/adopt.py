"""Collections that were there before replication: compared once, and mirrored from then on.

Decision made here: a collection is adopted only if every cluster has it, all of them take part, and all hold the same
schema and the same rows. A small one is compared at the first write to it; for a larger one that is the operator's to
order, since it takes its time.
"""

from __future__ import annotations

from typing import final

from haclient.errors import CallError, HAClientError, WriteRefused
from haclient.milvus import structure
from haclient.milvus.shape import Shape
from haclient.replication.catalog import fact_of
from haclient.replication.log import Stream
from haclient.replication.site import SiteFailed
from haclient.replication.verify import Verified, Verifier


@final
class Adoption:
    """Compares collections before they are written to.

    Args:
        verifier: Compares them.
        most_rows: Largest collection that is compared at its first write.
    """

    def __init__(self, verifier: Verifier, most_rows: int) -> None:
        self._verifier = verifier
        self._most_rows = most_rows

    async def check(self, shape: Shape, deadline: float) -> None:
        """Compare a collection for its first write; return if it may be mirrored.

        Args:
            shape: The collection.
            deadline: The write's, loop time; who calls this enforces it.

        Raises:
            WriteRefused: It may not; the message says why, and what to do.
        """
        stream = (shape.database, shape.collection)
        name = shape.collection
        head = f"{name}: not written. The collection was there before its writes were mirrored"
        try:
            rows = await self._rows(shape)
            reason = unfit(await self._verifier.verify(stream)) if rows <= self._most_rows else ""
        except HAClientError as error:
            raise WriteRefused(f"{head}, and it could not be compared now: {error}") from error
        if rows > self._most_rows:
            raise WriteRefused(
                f"{head}, and with {rows} rows it is too large to be compared now (replication.adopt_rows is "
                f"{self._most_rows}). Run `haclient verify {name} --adopt` once."
            )
        if reason:
            raise WriteRefused(f"{head}, and {reason}. See `haclient verify {name}`.")

    async def _rows(self, shape: Shape) -> int:
        sites, _ = await self._verifier.sites((shape.database, shape.collection))
        if not sites:
            raise SiteFailed("no cluster takes part now")
        try:
            return structure.read_count(await sites[0].ask(structure.count_rows(shape), shape.database))
        except CallError as error:
            raise SiteFailed(str(error)) from error

    async def adopt(self, stream: Stream, told: Verified) -> str:
        """Have a collection mirrored, if what was found out allows it; returns why not, "" if it is."""
        reason = unfit(told)
        if reason or self._verifier.log is None:
            return reason or "there is no mutation log"
        shape = await self._verifier.site(told.reference).shape(*stream)
        if shape is None or shape.native_auto_id:
            return "the servers make its keys, so no two clusters can get the same ones"
        await self._verifier.log.put({fact_of(stream): b"{}"})
        return ""


def unfit(told: Verified) -> str:
    """Say why a collection may not be mirrored, by what was found out; "" if it may."""
    if told.left_out:
        listed = ", ".join(f"{name} ({why})" for name, why in told.left_out.items())
        return f"not every cluster can be compared: {listed}"
    if told.problems:
        return "; ".join(told.problems)
    if told.differing:
        listed = ", ".join(
            f"{name} ({one.missing} missing, {one.extra} extra, {one.other} different)"
            for name, one in told.differing.items()
        )
        return f"the clusters do not hold the same rows: compared with {told.reference}, {listed}"
    return "it was written to all the time while it was compared" if told.moving else ""
