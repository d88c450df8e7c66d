"""What concerns several collections: databases and aliases, copied from one cluster to another one; roles with them."""

from __future__ import annotations

from collections.abc import Container

from haclient.milvus import structure
from haclient.replication.access import copy_access
from haclient.replication.log import Stream
from haclient.replication.site import Site


async def make_databases(donor: Site, target: Site) -> None:
    """Create the databases that the target lacks."""
    for name in sorted(set(await donor.databases()).difference(await target.databases())):
        await target.change(structure.create_database(name), "")


async def copy_general(donor: Site, target: Site, copied: Container[Stream]) -> list[str]:
    """Drop databases that the donor has not, and make aliases and roles the donor's.

    Args:
        donor: Where from.
        target: Where to.
        copied: Collections that are there; aliases of others have to wait for them.

    Returns:
        What could not be copied, for the operator.
    """
    wanted = await donor.databases()
    for database in set(await target.databases()).difference(wanted):
        await target.change(structure.drop_database(database), "")
    for database in wanted:
        aliases, there = await donor.aliases(database), await target.aliases(database)
        for alias in sorted(there):
            if aliases.get(alias) != there[alias]:
                await target.change(structure.drop_alias(alias, database), database)
        for alias, collection in sorted(aliases.items()):
            if collection != there.get(alias) and (database, collection) in copied:
                await target.change(structure.create_alias(collection, alias, database), database)
    return await copy_access(donor, target)
