"""File descriptors of the process: how many there may be, and how many connections leave alone."""

from __future__ import annotations

import contextlib
import resource
from typing import Final

#: What the service opens besides connections and ports: the event loop, udev, HTTP files, the
#: configuration, a few flash jobs with three pipes each, multicast sockets of each interface.
RESERVED_DESCRIPTORS: Final = 64

#: Of a port: its tty, its log file, what a replug opens before the old is closed.
RESERVED_PER_PORT: Final = 4


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
    return RESERVED_DESCRIPTORS + RESERVED_PER_PORT * n_ports
