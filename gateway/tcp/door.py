"""Who may come in at one port: asked before a session exists, counted, and told without flooding.

The connection itself, and how it is closed, is `listener`'s matter.
"""

from __future__ import annotations

from collections import Counter
from enum import Enum

import structlog

from gateway import clock
from gateway.config.choices import Access
from gateway.config.networks import peer_network
from gateway.tcp.tally import Tally


class Refusal(Enum):
    """Why a connection was closed without a word; the log's name for it."""

    NOT_ALLOWED = "client_not_allowed"  # by `allow`
    TOO_MANY = "client_dropped"  # as many as `max_sessions` were there
    TLS_FAILED = "client_not_secured"  # no TLS, or no certificate that is accepted


class Door:
    """See the module; made and used on the loop."""

    def __init__(self, access: Access, log: structlog.typing.FilteringBoundLogger) -> None:
        #: Connections closed since the port is served.
        self.turned_away: Counter[Refusal] = Counter()
        self._access = access
        self._log = log
        self._tallies = {refusal: Tally() for refusal in Refusal}
        self._timer: clock.Timer | None = None

    def allows(self, host: str) -> bool:
        """Whether a peer at this address may connect; who may not is counted."""
        if self._access.allow.have(host):
            return True
        self._turn_away(Refusal.NOT_ALLOWED, host)
        return False

    def has_room(self, host: str, n_sessions: int) -> bool:
        """Whether there may be one session more than `n_sessions`; who must go is counted."""
        if n_sessions < self._access.max_sessions:
            return True
        self._turn_away(Refusal.TOO_MANY, host)
        return False

    def not_secured(self, host: str, reason: str) -> None:
        """Count a peer with which TLS has not come about."""
        self._turn_away(Refusal.TLS_FAILED, host, reason)

    def close(self) -> None:
        """Tell what has only been counted so far."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for refusal, tally in self._tallies.items():
            self._tell(refusal, tally.take_all())

    def _turn_away(self, refusal: Refusal, host: str, reason: str = "") -> None:
        self.turned_away[refusal] += 1
        key = f"{peer_network(host)} {reason}"  # no network has a space in it
        told_as = self._tallies[refusal].add(clock.time(), key)
        if told_as is not None:
            self._tell(refusal, [(told_as, 1)])
        if self._timer is None:
            self._tell_later()

    def _tell_later(self) -> None:
        due = [tally.due_at for tally in self._tallies.values() if tally.due_at is not None]
        self._timer = clock.call_at(min(due), self._tell_due) if due else None

    def _tell_due(self) -> None:
        now = clock.time()
        for refusal, tally in self._tallies.items():
            self._tell(refusal, tally.take_due(now))
        self._tell_later()

    def _tell(self, refusal: Refusal, counts: list[tuple[str, int]]) -> None:
        for key, count in counts:
            network, _, reason = key.partition(" ")
            because = {"reason": reason} if reason else {}
            self._log.warning(refusal.value, network=network, count=count, **because)
