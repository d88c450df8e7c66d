"""Which processes of this host have died.

Decision made here: for as long as it lives a process locks one byte of a file in the temporary folder, drawn at random,
and says which in the name under which it holds leases. The system takes the lock back when a process is gone, and with
it all its connections; a process that is stopped keeps both. So whoever finds the byte free knows that nothing more is
sent. Only names of the same boot and of the very same file are judged. Of all others nothing is known: a process on
another host, in another container, or one whose file was removed. Their leases have to run out.
"""

from __future__ import annotations

import fcntl
import functools
import os
import random
import struct
import subprocess
import tempfile
from pathlib import Path
from typing import Final

#: Between the name of a process and what it has locked.
_MARK: Final = "@"
_BITS: Final = 60
#: Locks that belong to an open file and not to a process, so that several parts of one process do not share them.
_SET: Final = getattr(fcntl, "F_OFD_SETLK", None)
_GET: Final = getattr(fcntl, "F_OFD_GETLK", None)
#: struct flock: type, whence, start, length, process.
_FLOCK: Final = struct.Struct("@hhqqi4x")


@functools.cache
def boot_id() -> str:
    """Return what names this boot of the machine: the same in all its processes, another one after a reboot."""
    linux = Path("/proc/sys/kernel/random/boot_id")
    if linux.exists():
        return linux.read_text(encoding="ascii").strip()
    return subprocess.check_output(["/usr/sbin/sysctl", "-n", "kern.bootsessionuuid"], text=True).strip()


def signed(name: str) -> str:
    """Return a name of this process that `is_dead` can judge, if this system allows it."""
    sign = _sign()
    return f"{name}{_MARK}{sign}" if sign else name


def is_dead(name: str) -> bool:
    """Say whether the process that made a name with `signed` is known to have died."""
    where, _, byte = name.rpartition(_MARK)[2].rpartition("/")
    if not byte.isdigit() or _GET is None:
        return False
    try:
        file = os.open(_path(), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        if where != _identity(file):
            return False
        found = fcntl.fcntl(file, _GET, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, int(byte), 1, 0))
        return bool(_FLOCK.unpack(found)[0] == fcntl.F_UNLCK)
    except OSError:
        return False
    finally:
        os.close(file)


@functools.cache
def _sign() -> str:
    """Lock a byte, once for the whole life of the process; "" if that cannot be done here."""
    if _SET is None:
        return ""
    byte = random.SystemRandom().getrandbits(_BITS)
    try:
        file = os.open(_path(), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError:
        return ""
    try:
        fcntl.fcntl(file, _SET, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0))
        return f"{_identity(file)}/{byte}"
    except OSError:
        os.close(file)
        return ""


def _path() -> Path:
    return Path(tempfile.gettempdir(), f"haclient-{os.geteuid()}.alive")


def _identity(file: int) -> str:
    status = os.fstat(file)
    return f"{boot_id()}/{status.st_dev}/{status.st_ino}"
