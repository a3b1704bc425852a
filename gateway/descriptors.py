"""File descriptors of the process: how many there may be, and how many connections leave alone."""

from __future__ import annotations

import contextlib
import resource
from typing import Final

#: What the service opens besides ports and connections: the event loop, udev, HTTP files, the
#: configuration, multicast sockets, clients of the status socket.
BASE_DESCRIPTORS: Final = 64

#: Of a port: its listening socket, tty and log file, and three pipes while it is flashed.
PORT_DESCRIPTORS: Final = 6


def raise_limit() -> int:
    """Raise the soft limit of descriptors to the hard one, as far as the process may.

    Returns the limit that is in force. A sandbox may forbid it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def reserved_for(n_ports: int) -> int:
    """Return how many descriptors connections leave to a service with that many ports."""
    return BASE_DESCRIPTORS + PORT_DESCRIPTORS * n_ports


def has_room(descriptor: int, n_connections: int, reserved: int) -> bool:
    """Return whether a connection may have a descriptor, beside `n_connections` others.

    The kernel gives out the lowest free number, so at least as many as `descriptor` are in use:
    some of the highest always stay free, whatever else is open. Where the limit is too low for
    `reserved`, connections get an eighth of it.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    is_near_the_end = descriptor >= limit - min(BASE_DESCRIPTORS, limit // 4)
    return not is_near_the_end and n_connections < max(limit - reserved, limit // 8)
