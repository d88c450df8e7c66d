"""A backup examined without being restored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import final

from haclient.recovery.store import Store


@final
@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong.

    Attributes:
        path: The file, below the store's root; the backup's folder if it is about the whole.
        problem: What is wrong with it.
    """

    path: str
    problem: str


@final
@dataclass(slots=True)
class Findings:
    """What was examined.

    Attributes:
        backups: Names of the backups, the full one first.
        problems: What is wrong.
        files: Files read.
        rows: Rows read.
        bytes: Bytes read.
    """

    backups: list[str] = field(default_factory=list)
    problems: list[Finding] = field(default_factory=list)
    files: int = 0
    rows: int = 0
    bytes: int = 0

    @property
    def well(self) -> bool:
        """Whether it can be restored."""
        return not self.problems


def verify(store: Store, backup: str, report: Callable[[Findings, int], None] = lambda _, __: None) -> Findings:
    """Read a backup through, with all that it goes on from; it blocks.

    Args:
        store: Where it is.
        backup: Its name.
        report: Told after each file: what has been read, and the bytes that there are in all.

    Raises:
        StoreFailed: The storage could not be read.
    """
    raise NotImplementedError
