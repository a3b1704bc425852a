"""Report readiness, counts and liveness to the service manager, by sd_notify(3).

All reports of a running service are sent from its event loop, so that the manager restarts a
service whose loop is stuck. Imported before anything else of the gateway: see `__main__`.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from gateway.clock import Timer

#: Interval between two counts. Devices don't report each change: a client that reconnects ten times
#: a second is not worth ten messages.
REPORT_EVERY_S: Final = 1.0

#: How long the manager waits for the next report while ports do not listen yet. Starting may take
#: any time; an event loop that is stuck meanwhile is restarted after this limit.
START_LIMIT_S: Final = 30.0

_US_PER_S: Final = 1_000_000
_NS_PER_US: Final = 1_000


class Notifier:
    """Sends messages to the manager's socket, which the environment names. Never raises or blocks.

    Each method returns whether the socket has taken the message: a manager whose socket is full
    takes it later. Without a manager nothing is sent.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._address = _address(environment.get("NOTIFY_SOCKET", ""))
        self.watchdog_s = _watchdog_s(environment) if self._address is not None else None

    @property
    def has_manager(self) -> bool:
        """Whether there is a socket to send to."""
        return self._address is not None

    def ready(self) -> bool:
        """The service is up; or, after `reloading`, the reload has ended."""
        return self._send("READY=1")

    def reloading(self) -> bool:
        """A reload has begun; `ready` must follow, also if it fails."""
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
        """Starting takes longer: give up on it only if there is no message for `limit_s`."""
        return self._send(f"EXTEND_TIMEOUT_USEC={round(limit_s * _US_PER_S)}")

    def feed_watchdog(self) -> bool:
        """The event loop is responsive; due more often than once in `watchdog_s`."""
        return self._send("WATCHDOG=1")

    def _send(self, message: str) -> bool:
        if self._address is None:
            return False
        # A socket for each message: they are rare, and a manager that is re-executed has a new
        # socket behind the same name.
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sender:
                sender.sendto(message.encode(), self._address)
        except OSError:
            return False
        return True


def _address(name: str) -> str | None:
    """Return the socket's address for Python; None if it is not local (`vsock:...`)."""
    if name.startswith("@"):
        return "\0" + name[1:]
    return name if name.startswith("/") else None


def _watchdog_s(environment: Mapping[str, str]) -> float | None:
    """Return the manager's limit for a sign of life; None if it has none for this process."""
    if environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None  # meant for the process that has started this one
    try:
        limit_us = int(environment.get("WATCHDOG_USEC", ""))
    except ValueError:
        return None
    return limit_us / _US_PER_S if limit_us > 0 else None


@dataclass(frozen=True)
class Counts:
    """The number of ports, and of those in a state; some are in several."""

    ports: int
    listening: int  # their address is bound, or they have none to bind
    open: int  # their tty is open
    in_use: int  # a client has them
    absent: int  # their tty does not exist
    broken: int  # their tty exists and does not work

    def __str__(self) -> str:
        ports = "1 port" if self.ports == 1 else f"{self.ports} ports"
        line = f"{ports}, {self.open} open, {self.in_use} in use, {self.absent} absent"
        if self.broken:
            line += f", {self.broken} broken"
        if self.listening < self.ports:
            line += f", {self.ports - self.listening} not listening yet"
        return line


class ManagerReports:
    """Reports from `start` to `stop`; made and used on the loop. Does nothing without a manager.

    `counts` returns None before the number of ports is known.
    """

    def __init__(self, notifier: Notifier, counts: Callable[[], Counts | None]) -> None:
        self._notifier = notifier
        self._counts = counts
        self._is_ready = False
        self._reload_failed = False
        self._sent_status = ""
        self._timers: dict[str, Timer] = {}

    def start(self) -> None:
        """Report now and each REPORT_EVERY_S: still starting, then ready, and the counts."""
        if self._notifier.has_manager:
            self._report()
            self._feed_watchdog()

    def update(self) -> None:
        """Report at once what has changed."""
        if self._timers:
            self._timers["report"].cancel()
            self._report()

    def reload_started(self) -> None:
        """A reload has begun; `reload_ended` must follow."""
        self._notifier.reloading()

    def reload_ended(self, is_served: bool) -> None:
        """The reload has ended; a file that is not served is part of the status from now on."""
        self._reload_failed = not is_served
        if self._timers and self._is_ready:
            self._notifier.ready()
        self.update()

    def stop(self) -> None:
        """Report that the service stops; the last report."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self._notifier.stopping()

    def _report(self) -> None:
        counts = self._counts()
        status = "starting" if counts is None else str(counts)
        if self._reload_failed:
            status += ", last reload failed"
        if status != self._sent_status and self._notifier.status(status):
            self._sent_status = status
        if not self._is_ready:
            if counts is not None and counts.listening == counts.ports:
                self._is_ready = self._notifier.ready()
            else:
                self._notifier.still_starting(START_LIMIT_S)
        self._again("report", REPORT_EVERY_S, self._report)

    def _feed_watchdog(self) -> None:
        if self._notifier.watchdog_s is None:
            return
        self._notifier.feed_watchdog()
        # Half of the limit, as sd_watchdog_enabled(3) recommends.
        self._again("watchdog", self._notifier.watchdog_s / 2, self._feed_watchdog)

    def _again(self, name: str, wait_s: float, call: Callable[[], None]) -> None:
        from gateway import clock  # noqa: PLC0415 - asyncio is slow to import

        self._timers[name] = clock.call_later(wait_s, call)
