"""Free TCP ports on the loopback address."""

import socket
from collections.abc import Collection

from services.local.embedded.child import EmbeddedServerError

LOOPBACK = "127.0.0.1"


def is_free(port: int) -> bool:
    """Whether a server could now listen on `port` of the loopback address."""
    with socket.socket() as probe:
        # Connections of a server that has just stopped linger, but do not prevent a new one from listening.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    # Some systems let a second server bind the loopback address of a port that is taken on all addresses.
    with socket.socket() as probe:
        probe.settimeout(0.2)
        return probe.connect_ex((LOOPBACK, port)) != 0


def next_free_port(preferred: int, taken: Collection[int] = ()) -> int:
    """`preferred`, or the first free port above it that is not in `taken`.

    Raises `EmbeddedServerError` if none of the next thousand is free.
    """
    for port in range(preferred, min(preferred + 1000, 65_536)):
        if port not in taken and is_free(port):
            return port
    raise EmbeddedServerError(f"no free TCP port at or above {preferred}")


def any_free_port() -> int:
    """A port that the system reports as free."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port
