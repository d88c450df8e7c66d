"""What can be wrong with a backup: the storage does not answer, or what it holds is not what was written."""

from __future__ import annotations

from typing import final

from haclient.errors import HAClientError


class BackupError(HAClientError):
    """A backup cannot be written, read or trusted; the message names the file and says what to do."""


@final
class StoreFailed(BackupError):
    """The storage could not be reached, or refused (missing bucket, credentials, disk full): try again later."""


@final
class BackupDamaged(BackupError):
    """A backup is incomplete, truncated, altered, or of a format that this version does not know."""
