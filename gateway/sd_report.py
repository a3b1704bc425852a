"""Reports to the service manager while the service runs: readiness, counts, liveness.

All is sent from the event loop, so that the manager restarts a service whose loop is stuck.
`sd_notify` has the messages.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gateway import clock
from gateway.sd_notify import Notifier

#: How often the counts are looked at. Not told by every device at each change: a client that
#: comes and goes ten times a second is no news ten times.
REPORT_EVERY_S = 1.0

#: How long the manager waits for the next report while the ports do not listen yet. Starting may
#: take as long as it likes; an event loop that is stuck meanwhile is given up on after this time.
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
    """Reports from `start` to `stop`; made and used on the loop. Does nothing without a manager.

    `counts` returns None before it is known which ports there are.
    """

    def __init__(self, notifier: Notifier, counts: Callable[[], Counts | None]) -> None:
        self._notifier = notifier
        self._counts = counts
        self._is_ready = False
        self._reload_failed = False
        self._said = ""
        self._timers: dict[str, clock.Timer] = {}

    def start(self) -> None:
        """Report from now on, at least each REPORT_EVERY_S: that it starts, then that it is up."""
        if self._notifier.is_wanted:
            self._report()
            self._feed_watchdog()

    def update(self) -> None:
        """Report what has changed at once."""
        if self._timers:
            self._timers["report"].cancel()
            self._report()

    def reload_started(self) -> None:
        """The file is read again; `reload_ended` must follow."""
        self._notifier.reloading()

    def reload_ended(self, is_served: bool) -> None:
        """The reload is over; whether the file is served now is part of the status from here on."""
        self._reload_failed = not is_served
        if self._timers and self._is_ready:
            self._notifier.ready()
        self.update()

    def stop(self) -> None:
        """The service stops: the last thing that is reported."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self._notifier.stopping()

    def _report(self) -> None:
        counts = self._counts()
        status = "starting" if counts is None else str(counts)
        if self._reload_failed:
            status += ", last reload failed"
        if status != self._said and self._notifier.status(status):
            self._said = status
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
        self._timers[name] = clock.call_later(wait_s, call)
