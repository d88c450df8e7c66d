"""Everything but rows: which calls are mirrored, in whose order, in what form, and when "no" means "done already"."""

from __future__ import annotations

from typing import Literal

from haclient.call import Method
from haclient.milvus.status import Flavour

#: Where a call goes: into the log, to one cluster only, or nowhere.
Where = Literal["log", "home", "refused"]


def mirrored(method: Method) -> tuple[Where, str]:
    """Say what becomes of a call that changes something (WRITE, DDL, ACCESS, ADMIN), and why if it is not the log."""
    raise NotImplementedError


def scope(method: Method, message: bytes, database: str) -> tuple[str, str]:
    """Return the stream of a mirrored call: (database, collection as named), or ("", "") for what concerns several.

    Args:
        method: The RPC.
        message: The user's request.
        database: Of the call, "" for the default one.

    Raises:
        ValueError: The message cannot be read.
    """
    raise NotImplementedError


def normalise(method: Method, message: bytes, database: str) -> bytes:
    """Take what is of one cluster or one client out of a request and write its database into it.

    Raises:
        ValueError: The message cannot be read.
    """
    raise NotImplementedError


def already(method_name: str, code: int, reason: str, flavour: Flavour) -> bool:
    """Say whether a server's refusal of a repeated call means that everything is as wanted already."""
    raise NotImplementedError


def create(message: bytes) -> bytes:
    """Return a CreateCollectionRequest with which haclient makes the keys of an auto_id collection.

    Raises:
        InvalidWrite: The schema cannot be read, or cannot be mirrored.
    """
    raise NotImplementedError


def described(reply: bytes) -> bytes:
    """Return DescribeCollection's answer as the user is to see it: auto_id again, without the mark.

    The same object comes back if there is no mark.
    """
    raise NotImplementedError


def differences(wanted: bytes, description: bytes) -> list[str]:
    """Say what a server has not kept of a collection that was created.

    Args:
        wanted: The CreateCollectionRequest, as sent.
        description: The server's answer to DescribeCollection.
    """
    raise NotImplementedError


def existing_differences(one: bytes, other: bytes) -> list[str]:
    """Say in what two clusters' descriptions of a collection differ, apart from what is of one cluster alone."""
    raise NotImplementedError
