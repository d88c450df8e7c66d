"""The sockets that clients connect to: one per worker, all on one address.

Decision made here: with SO_REUSEPORT the kernel spreads connections over the workers, and a second proxy of the same
user may listen on the address beside the first, to take over from it; anyone else's program keeps us out.
"""

from __future__ import annotations

import errno
import socket

from haclient.config.proxy import host_and_port
from haclient.errors import ConfigError


def bind(listen: str, count: int) -> list[socket.socket]:
    """Bind sockets to one address; they do not listen yet, so nobody's connection waits in vain.

    Args:
        listen: Host and port; port 0 takes any free one, the same for all.
        count: How many sockets.

    Raises:
        ConfigError: The address is taken, or not of this machine.
    """
    host, port = host_and_port(listen)
    sockets: list[socket.socket] = []
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        for _ in range(count):
            each = socket.socket(family, kind, protocol)
            sockets.append(each)
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            each.bind(address)
            address = each.getsockname()
    except OSError as error:
        for each in sockets:
            each.close()
        raise cannot("listen", listen, error) from None
    return sockets


def cannot(key: str, address: str, error: OSError) -> ConfigError:
    """Return the error of an address that cannot be listened on, written as ``proxy.key``."""
    if error.errno == errno.EADDRINUSE:
        what = "is taken by another program; end that, or write another address"
    else:
        why = error.strerror or type(error).__name__
        what = f"cannot be listened on ({why}); write an address of this machine and a port that may be used"
    return ConfigError(f'proxy.{key}: "{address}" {what}')
