"""Users, roles and grants: requests that list and change them, and their answers read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, NamedTuple, final

from pymilvus.grpc_gen import milvus_pb2

from haclient.milvus.messages import Request
from haclient.milvus.shape import parse
from haclient.milvus.structure import request

#: Roles that every server has.
BUILT_IN: Final = frozenset(("admin", "public"))


class Grant(NamedTuple):
    """One privilege of one role."""

    role: str
    object_kind: str
    object_name: str
    privilege: str
    database: str


@final
@dataclass(frozen=True, slots=True)
class Access:
    """Who may do what on one cluster.

    Attributes:
        users: Names of all users.
        roles: Names of the roles beyond those that every server has.
        members: (user, role), of all roles.
        grants: Of all roles but ``admin``, which may do everything.
    """

    users: frozenset[str]
    roles: frozenset[str]
    members: frozenset[tuple[str, str]]
    grants: frozenset[Grant]


def list_users() -> Request:
    """Ask for the names of all users."""
    return request("ListCredUsers", milvus_pb2.ListCredUsersRequest())


def read_users(reply: bytes) -> set[str]:
    """Read ListCredUsers' answer."""
    return set(parse(milvus_pb2.ListCredUsersResponse, reply).usernames)


def list_roles() -> Request:
    """Ask for all roles and who has them."""
    return request("SelectRole", milvus_pb2.SelectRoleRequest(include_user_info=True))


def read_roles(reply: bytes) -> dict[str, set[str]]:
    """Read SelectRole's answer: users by role."""
    results = parse(milvus_pb2.SelectRoleResponse, reply).results
    return {one.role.name: {user.name for user in one.users} for one in results}


def create_role(name: str) -> Request:
    """Create a role."""
    return request("CreateRole", milvus_pb2.CreateRoleRequest(entity=milvus_pb2.RoleEntity(name=name)))


def drop_role(name: str) -> Request:
    """Drop a role that has no privileges."""
    return request("DropRole", milvus_pb2.DropRoleRequest(role_name=name))


def join_role(user: str, role: str) -> Request:
    """Give a role to a user."""
    return _member(user, role, milvus_pb2.OperateUserRoleType.AddUserToRole)


def leave_role(user: str, role: str) -> Request:
    """Take a role from a user."""
    return _member(user, role, milvus_pb2.OperateUserRoleType.RemoveUserFromRole)


def _member(user: str, role: str, what: int) -> Request:
    message = milvus_pb2.OperateUserRoleRequest(username=user, role_name=role, type=what)
    return request("OperateUserRole", message)


def list_grants(role: str, database: str) -> Request:
    """Ask for the privileges of a role in a database."""
    entity = milvus_pb2.GrantEntity(role=milvus_pb2.RoleEntity(name=role), db_name=database)
    return request("SelectGrant", milvus_pb2.SelectGrantRequest(entity=entity))


def read_grants(reply: bytes) -> set[Grant]:
    """Read SelectGrant's answer."""
    return {
        Grant(one.role.name, one.object.name, one.object_name, one.grantor.privilege.name, one.db_name)
        for one in parse(milvus_pb2.SelectGrantResponse, reply).entities
    }


def grant(one: Grant) -> Request:
    """Give a privilege to a role."""
    return _operate(one, milvus_pb2.OperatePrivilegeType.Grant)


def revoke(one: Grant) -> Request:
    """Take a privilege from a role."""
    return _operate(one, milvus_pb2.OperatePrivilegeType.Revoke)


def _operate(one: Grant, what: int) -> Request:
    entity: Any = milvus_pb2.GrantEntity(
        role=milvus_pb2.RoleEntity(name=one.role),
        object=milvus_pb2.ObjectEntity(name=one.object_kind),
        object_name=one.object_name,
        grantor=milvus_pb2.GrantorEntity(privilege=milvus_pb2.PrivilegeEntity(name=one.privilege)),
        db_name=one.database,
    )
    return request("OperatePrivilege", milvus_pb2.OperatePrivilegeRequest(entity=entity, type=what))
