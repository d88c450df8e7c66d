"""Roles, what they may do, and who has them: copied from one cluster to another one.

Decision made here: users are not made, since no server tells a password; those that are missing are named, with the
roles that the operator has to give them.
"""

from __future__ import annotations

from typing import Final

from haclient.errors import CallError
from haclient.milvus import access, structure
from haclient.milvus.messages import Request
from haclient.replication.site import Site

#: gRPC: the server has no users and roles (milvus-lite).
_UNIMPLEMENTED: Final = 12


async def copy_access(donor: Site, target: Site) -> list[str]:
    """Make the target's roles those of the donor.

    Returns:
        What could not be copied, for the operator.
    """
    wanted, there = await _read(donor), await _read(target)
    if wanted is None:
        return []
    if there is None:
        return (
            [f"cluster {target.name} knows no users and roles, which cluster {donor.name} has"] if wanted.roles else []
        )
    for role in sorted(there.roles - wanted.roles):
        for grant in there.grants:
            if grant.role == role:
                await _change(target, access.revoke(grant))
        await _change(target, access.drop_role(role))
    for role in sorted(wanted.roles - there.roles):
        await _change(target, access.create_role(role))
    for grant in sorted(there.grants - wanted.grants):
        if grant.role in wanted.roles | access.BUILT_IN:
            await _change(target, access.revoke(grant))
    for grant in sorted(wanted.grants - there.grants):
        await _change(target, access.grant(grant))
    for user, role in sorted(wanted.members - there.members):
        if user in there.users:
            await _change(target, access.join_role(user, role))
    for user, role in sorted(there.members - wanted.members):
        if role in wanted.roles | access.BUILT_IN:
            await _change(target, access.leave_role(user, role))
    notes = []
    for name in sorted(wanted.users - there.users):
        roles = ", ".join(sorted(role for user, role in wanted.members if user == name)) or "none"
        text = f"user {name} is missing on cluster {target.name}, since no server tells a password"
        notes.append(f"{text}: create it there, with the roles {roles}")
    return notes + [f"user {name} is on cluster {target.name} only" for name in sorted(there.users - wanted.users)]


async def _change(site: Site, request: Request) -> None:
    await site.change(request, "")


async def _read(site: Site) -> access.Access | None:
    """Return a cluster's users and roles; None if it has no such thing."""
    try:
        users = access.read_users(await site.ask(access.list_users(), ""))
    except CallError as error:
        if error.code == _UNIMPLEMENTED:
            return None
        raise
    roles = access.read_roles(await site.ask(access.list_roles(), ""))
    grants: set[access.Grant] = set()
    for database in await site.databases():
        for role in roles.keys() - {"admin"}:
            try:
                reply = await site.ask(access.list_grants(role, database or structure.DEFAULT_DATABASE), "")
            except CallError:
                continue  # a role without any is an error to some versions
            grants |= access.read_grants(reply)
    members = frozenset((user, role) for role, users_of in roles.items() for user in users_of)
    return access.Access(frozenset(users), frozenset(roles) - access.BUILT_IN, members, frozenset(grants))
