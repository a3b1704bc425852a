"""Connections that a listener closes before they are served: counted, logged without flooding."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from enum import Enum
from typing import Final

import structlog

from gateway import clock
from gateway.config.document import peer_network


class Rejection(Enum):
    """Why a connection was closed, as status and metrics count it."""

    NOT_ALLOWED = "not_allowed"  # its address is not in `allow`
    TOO_MANY = "too_many"  # a limit of connections or descriptors is reached
    NOT_SECURED = "not_secured"  # the TLS handshake has failed
    OTHER_PROTOCOL = "other_protocol"  # its first bytes are another protocol's greeting


class Rejections:
    """The rejected connections of one listener; made and used on the loop.

    Logged as `client_rejected`: the first of each network and reason at once, the others as a
    `count` once a minute.
    """

    def __init__(self, log: structlog.typing.FilteringBoundLogger) -> None:
        #: Since the listener was made.
        self.counts: Counter[Rejection] = Counter()
        self._log = log
        self._tallies = {rejection: Tally() for rejection in Rejection}
        self._timer: clock.Timer | None = None

    def add(self, rejection: Rejection, host: str, reason: str) -> None:
        """Count a connection from the address `host`; `reason` is one of a bounded number."""
        self.counts[rejection] += 1
        key = f"{peer_network(host)} {reason}"  # no network has a space in it
        logged_as = self._tallies[rejection].add(clock.time(), key)
        if logged_as is not None:
            self._write([(logged_as, 1)])
        if self._timer is None:
            self._write_later()

    def close(self) -> None:
        """Log what has only been counted so far."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for tally in self._tallies.values():
            self._write(tally.take_all())

    def _write_later(self) -> None:
        due = [tally.due_at for tally in self._tallies.values() if tally.due_at is not None]
        self._timer = clock.call_at(min(due), self._write_due) if due else None

    def _write_due(self) -> None:
        now = clock.time()
        for tally in self._tallies.values():
            self._write(tally.take_due(now))
        self._write_later()

    def _write(self, counts: list[tuple[str, int]]) -> None:
        for key, count in counts:
            network, _, reason = key.partition(" ")
            self._log.warning(
                "client_rejected", reason=reason or "several", network=network, count=count
            )


#: How long after a log line about a key its events are only counted.
PERIOD_S: Final = 60.0


class OncePerPeriod:
    """Tells when something that goes on is to be logged: at once, and not again for PERIOD_S."""

    def __init__(self) -> None:
        self._next_s = -math.inf

    def is_due(self) -> bool:
        """Return whether it is to be logged now."""
        now = clock.time()
        if now < self._next_s:
            return False
        self._next_s = now + PERIOD_S
        return True


#: Keys that are counted apart at a time; a flood from everywhere counts as OTHERS.
MOST_KEYS: Final = 64
OTHERS: Final = "others"


@dataclass(slots=True)
class _Period:
    ends_at: float
    count: int = 0  # since its beginning, the event that began it not included


class Tally:
    """Events for each of some keys: the first is to be logged at once, the rest as a number.

    Times are seconds of a monotonic clock.
    """

    def __init__(self) -> None:
        self._periods: dict[str, _Period] = {}

    def add(self, now: float, key: str) -> str | None:
        """Count an event; return the key under which it is to be logged now, None if not now."""
        if key not in self._periods and len(self._periods) >= MOST_KEYS:
            key = OTHERS
        period = self._periods.get(key)
        if period is not None:
            period.count += 1
            return None
        self._periods[key] = _Period(now + PERIOD_S)
        return key

    @property
    def due_at(self) -> float | None:
        """When `take_due` is to be called; None if nothing is counted."""
        return min((period.ends_at for period in self._periods.values()), default=None)

    def take_due(self, now: float) -> list[tuple[str, int]]:
        """Return the number of events of each key whose period is over, where there were any."""
        taken = []
        for key, period in tuple(self._periods.items()):
            if period.ends_at > now:
                continue
            del self._periods[key]
            if period.count:
                taken.append((key, period.count))
                self._periods[key] = _Period(now + PERIOD_S)
        return taken

    def take_all(self) -> list[tuple[str, int]]:
        """Return the same for all keys, whether their period is over or not."""
        taken = [(key, period.count) for key, period in self._periods.items() if period.count]
        self._periods.clear()
        return taken
