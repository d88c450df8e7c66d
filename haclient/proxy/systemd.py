"""What systemd is told about a service of ``Type=notify``; see sd_notify(3)."""

from __future__ import annotations

import os
import socket
from contextlib import suppress


def notify(state: str) -> None:
    """Tell systemd, if it has started us and wants to know.

    Args:
        state: For example ``READY=1``.
    """
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end, suppress(OSError):
        # "@" stands for the zero byte of an abstract address.
        end.connect("\0" + path[1:] if path.startswith("@") else path)
        end.sendall(state.encode())
