"""What log records look like: a line of text for people, or one JSON object for machines; always on stderr.

Decision made here: a record is one line, whatever a server or a client has put into it. Only a traceback takes more,
in the form for people, and then the further lines are indented, so that none can pass for a record.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, Final, final

from haclient.config import Proxy

#: Programs and libraries in the same process are heard from this level on.
_OTHERS: Final = logging.WARNING


def configure(settings: Proxy, worker: int | None = None) -> None:
    """Send this process' log records to stderr, in place of what was configured before.

    Args:
        settings: Says what records look like, and which are written.
        worker: Slot of this worker; None in the supervisor.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines(worker) if settings.log == "json" else TextLines(worker))
    level = settings.log_level.upper()
    logging.basicConfig(handlers=[handler], level=max(_OTHERS, logging.getLevelNamesMapping()[level]), force=True)
    logging.getLogger("haclient").setLevel(level)


class _Lines(logging.Formatter):
    def __init__(self, worker: int | None) -> None:
        super().__init__()
        self._worker = worker

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        moment = datetime.fromtimestamp(record.created, UTC)
        return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


@final
class TextLines(_Lines):
    """Time, level, logger, worker and message, then the request's id if it has one."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one record as text."""
        where = record.name if self._worker is None else f"{record.name} worker={self._worker}"
        request = _fields(record).get("request_id")
        end = f" request_id={request}" if request else ""
        text = f"{self.formatTime(record)} {record.levelname} {where}: {_line(record.getMessage() + end)}"
        if record.exc_info:
            text += f"\n{self.formatException(record.exc_info)}".replace("\n", "\n    ")
        return text


@final
class JsonLines(_Lines):
    """An object with time, level, logger, message and worker; then what the record carries as ``record.haclient``."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one record as JSON."""
        fixed = {
            "time": self.formatTime(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "worker": self._worker,
        }
        if record.exc_info:
            fixed["traceback"] = self.formatException(record.exc_info)
        # Twice: first for the order, then because a record's own fields must not hide these.
        return json.dumps({**fixed, **_fields(record), **fixed}, default=str)


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields = getattr(record, "haclient", None)
    return fields if isinstance(fields, dict) else {}


def _line(text: str) -> str:
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
