"""What the service manager is told while the service runs: that it is up, counts, that it is alive.

All is said from the event loop, so that a loop that is stuck says nothing and is restarted. The
messages themselves are `sd_notify`'s matter, what is counted is `service`'s.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gateway import clock
from gateway.sd_notify import Notifier

#: How often the counts are looked at. Not told by every device at each change: a client that
#: comes and goes ten times a second is no news ten times.
REPORT_EVERY_S = 1.0

#: How long the manager waits for the next report while addresses can't be bound yet; that may
#: last for ever, but a loop that is stuck meanwhile is given up on. At least TimeoutStartSec.
START_LIMIT_S = 30.0


@dataclass(frozen=True)
class Counts:
    """How many ports there are, and how many of them are in a state; some are in several."""

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


class SdReport:
    """Reports from `start` to `stop`; made and used on the loop. Does nothing without a manager."""

    def __init__(self, notifier: Notifier, counts: Callable[[], Counts]) -> None:
        self._notifier = notifier
        self._counts = counts
        self._is_ready = False
        self._said: Counts | None = None
        self._timers: dict[str, clock.Timer] = {}

    def start(self) -> None:
        """Report from now on: the service has done all that it can do at once."""
        if self._notifier.is_wanted:
            self._report()
            self._feed_watchdog()

    def reload_started(self) -> None:
        """The file is read again; `reload_ended` must follow."""
        self._notifier.reloading()

    def reload_ended(self) -> None:
        """The reload is over, whatever came of it."""
        if self._is_ready:
            self._notifier.ready()

    def stop(self) -> None:
        """The service stops: the last thing that is reported."""
        for timer in self._timers.values():
            timer.cancel()
        self._notifier.stopping()

    def _report(self) -> None:
        counts = self._counts()
        if counts != self._said and self._notifier.status(str(counts)):
            self._said = counts
        if not self._is_ready:
            if counts.listening == counts.ports:
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
        self._timers[name] = clock.call_later(wait_s, call)
