"""Messages to the service manager that has started this process, as sd_notify(3) has them.

One datagram each to the socket that $NOTIFY_SOCKET names; where there is none, nothing is sent.
When to send what is `sd_report`'s matter.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping

#: What the manager has in its environment for the process that it started.
_SOCKET = "NOTIFY_SOCKET"
_WATCHDOG_USEC = "WATCHDOG_USEC"
_WATCHDOG_PID = "WATCHDOG_PID"

_US_PER_S = 1_000_000
_NS_PER_US = 1_000


class Notifier:
    """Tells the manager about this process. No call raises or blocks.

    Each call returns whether the manager's socket has taken the message: what is False may be
    said again later, a manager whose socket is full takes it then.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._address = _address(environment.get(_SOCKET, ""))
        self.watchdog_s = _watchdog_s(environment) if self._address is not None else None

    @property
    def is_wanted(self) -> bool:
        """Whether there is a manager that listens."""
        return self._address is not None

    def ready(self) -> bool:
        """The service is up; or, after `reloading`, the reload is over."""
        return self._send("READY=1")

    def reloading(self) -> bool:
        """A reload has begun; `ready` ends it, whatever came of it."""
        # systemd 253 and newer compare the time with that of their own request.
        now_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // _NS_PER_US
        return self._send(f"RELOADING=1\nMONOTONIC_USEC={now_us}")

    def stopping(self) -> bool:
        """The service has begun to stop."""
        return self._send("STOPPING=1")

    def status(self, text: str) -> bool:
        """One line for people, shown by `systemctl status`."""
        return self._send("STATUS=" + " ".join(text.splitlines()))

    def still_starting(self, limit_s: float) -> bool:
        """Starting takes longer: give up on it only if nothing more is said for `limit_s`."""
        return self._send(f"EXTEND_TIMEOUT_USEC={round(limit_s * _US_PER_S)}")

    def feed_watchdog(self) -> bool:
        """The event loop turns; due more often than once in `watchdog_s`."""
        return self._send("WATCHDOG=1")

    def _send(self, message: str) -> bool:
        if self._address is None:
            return False
        # A socket for each message: they are rare, and a manager that is re-executed has
        # a new socket behind the same name.
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sender:
                sender.sendto(message.encode(), self._address)
        except OSError:
            return False
        return True


def _address(name: str) -> str | None:
    """The socket's address for Python; None where it is not a local socket's (`vsock:...`)."""
    if name.startswith("@"):
        return "\0" + name[1:]
    return name if name.startswith("/") else None


def _watchdog_s(environment: Mapping[str, str]) -> float | None:
    """How long the manager waits for a sign of life; None if it does not, or not for us."""
    if environment.get(_WATCHDOG_PID, str(os.getpid())) != str(os.getpid()):
        return None  # meant for a process that has started us
    try:
        limit_us = int(environment.get(_WATCHDOG_USEC, ""))
    except ValueError:
        return None
    return limit_us / _US_PER_S if limit_us > 0 else None
