"""Limit and reject client connections: over all, per address, by descriptors, per loop turn."""

from __future__ import annotations

import math
import resource
import socket
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

import structlog

from gateway import clock
from gateway.config.document import EVERYBODY, ConnectionLimits, Networks, peer_holder, peer_network
from gateway.net.tls import Handshakes
from gateway.net.tls_context import TlsContext
from gateway.runtime import may_have_descriptor, reserved_descriptors
from gateway.turns import Turns

#: How long after a log line about an event the same event is only counted.
PERIOD_S: Final = 60.0

#: Pairs of network and reason counted apart at a time; further ones count as OTHERS.
MAX_KEYS: Final = 64
OTHERS: Final = ("others", "several")

#: Connections accepted per loop turn over all listeners, so that a flood on all ports at once
#: leaves everything else on the loop its turn. On a PC, a session takes 0.4 ms of CPU from its
#: beginning to its end, a rejected connection 0.03 ms.
ACCEPTS_PER_TURN: Final = 4


# --- rejected connections


class Rejection(Enum):
    """Why a connection was closed, as status and metrics count it."""

    NOT_ALLOWED = "not_allowed"  # its address is not in `allow`
    TOO_MANY = "too_many"  # a limit of connections or descriptors is reached
    NOT_SECURED = "not_secured"  # the TLS handshake has failed
    OTHER_PROTOCOL = "other_protocol"  # its first bytes are another protocol's greeting


#: Network and reason.
_Key = tuple[str, str]


@dataclass(slots=True)
class _Period:
    ends_at: float
    count: int = 0  # after the connection that began it


class Rejections:
    """The rejected connections of one listener; made and used on the loop.

    Logged as `client_rejected`: the first of each network and reason at once, later ones as a
    `count` once per PERIOD_S.
    """

    def __init__(self, log: structlog.typing.FilteringBoundLogger) -> None:
        #: Since the listener was made.
        self.counts: Counter[Rejection] = Counter()
        self._log = log
        #: By network and reason, those that end first in front.
        self._periods: dict[Rejection, dict[_Key, _Period]] = {each: {} for each in Rejection}
        self._timer: clock.Timer | None = None

    def add(self, rejection: Rejection, host: str, reason: str) -> None:
        """Count a connection from the address `host`; `reason` is one of a bounded number."""
        self.counts[rejection] += 1
        periods = self._periods[rejection]
        key = peer_network(host), reason
        if key not in periods and len(periods) >= MAX_KEYS:
            key = OTHERS
        if key in periods:
            periods[key].count += 1
        else:
            periods[key] = _Period(clock.time() + PERIOD_S)
            self._write(key, 1)
        if self._timer is None:
            self._write_later()

    def close(self) -> None:
        """Log the connections that have only been counted."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for periods in self._periods.values():
            self._write_ended(periods, math.inf)

    def _write_later(self) -> None:
        ends = [next(iter(each.values())).ends_at for each in self._periods.values() if each]
        self._timer = clock.call_at(min(ends), self._write_due) if ends else None

    def _write_due(self) -> None:
        now = clock.time()
        for periods in self._periods.values():
            for key in self._write_ended(periods, now):
                periods[key] = _Period(now + PERIOD_S)
        self._write_later()

    def _write_ended(self, periods: dict[_Key, _Period], now: float) -> list[_Key]:
        """Remove the periods that have ended; log and return the keys of those with a count."""
        counts = [(key, each.count) for key, each in periods.items() if each.ends_at <= now]
        for key, count in counts:
            del periods[key]
            if count:
                self._write(key, count)
        return [key for key, count in counts if count]

    def _write(self, key: _Key, count: int) -> None:
        network, reason = key
        self._log.warning("client_rejected", reason=reason, network=network, count=count)


class OncePerPeriod:
    """Say when to log an event that repeats: at once, then not again for PERIOD_S."""

    def __init__(self) -> None:
        self._next_s = -math.inf

    def is_due(self) -> bool:
        """Return whether to log now."""
        now = clock.time()
        if now < self._next_s:
            return False
        self._next_s = now + PERIOD_S
        return True


# --- limits


class ClientSocket(socket.socket):
    """An accepted connection that reports when its descriptor is given up.

    asyncio closes it, uvloop detaches it and closes the descriptor itself.
    """

    def __init__(self, accepted: socket.socket, host: str) -> None:
        super().__init__(accepted.family, accepted.type, accepted.proto, accepted.detach())
        #: The client's address.
        self.host = host
        #: Its connections are counted under this.
        self.holder = peer_holder(host)
        self._at_end: list[Callable[[ClientSocket], None]] = []

    def at_end(self, call: Callable[[ClientSocket], None]) -> None:
        """Call when the descriptor is closed or handed over, once."""
        self._at_end.append(call)

    def close(self) -> None:
        """See socket.socket."""
        super().close()
        self._ended()

    def detach(self) -> int:
        """See socket.socket."""
        descriptor = super().detach()
        self._ended()
        return descriptor

    def _ended(self) -> None:
        calls, self._at_end = self._at_end, []
        for call in calls:
            call(self)


class ConnectionCounter:
    """Connections counted against limits, which may be replaced."""

    def __init__(self, limits: ConnectionLimits) -> None:
        self.limits = limits
        #: Open connections.
        self.count = 0
        self._by_holder: Counter[str] = Counter()

    def reason_against(self, holder: str) -> str:
        """Return why there is no room for one more connection; empty if there is."""
        if self._by_holder[holder] >= self.limits.max_per_address:
            return f"too many connections from this address (limit {self.limits.max_per_address})"
        if self.count >= self.limits.max:
            return f"too many connections (limit {self.limits.max})"
        return ""

    def add(self, connection: ClientSocket) -> None:
        """Count a connection until its end."""
        self.count += 1
        self._by_holder[connection.holder] += 1
        connection.at_end(self._remove)

    def _remove(self, connection: ClientSocket) -> None:
        self.count -= 1
        self._by_holder[connection.holder] -= 1
        if not self._by_holder[connection.holder]:
            del self._by_holder[connection.holder]


class Admission:
    """Bounds that all listeners of a service share; made and used on the loop."""

    def __init__(self, limits: ConnectionLimits | None = None) -> None:
        #: All connections, those in a TLS handshake included.
        self.connections = ConnectionCounter(limits or ConnectionLimits())
        self.handshakes = Handshakes()
        self.accept_turns = Turns(ACCEPTS_PER_TURN)
        #: Descriptors that connections leave to everything else.
        self.reserved_descriptors = reserved_descriptors(0)
        #: For the log, over all listeners: the kernel can't accept.
        self.accept_failures = OncePerPeriod()

    def reason_against(self, connection: ClientSocket) -> str:
        """Return why an accepted connection can't be served; empty if it can."""
        if not may_have_descriptor(
            connection.fileno(), self.connections.count, self.reserved_descriptors
        ):
            limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            return f"file descriptors are running out (limit {limit})"
        return self.connections.reason_against(connection.holder)


@dataclass(frozen=True, slots=True)
class AcceptOptions:
    """How an acceptor treats connections.

    `admission` is shared with other acceptors, `allow` is the access list, `limits` bound the
    connections that the owner has, `tls` is None for plain TCP. A client that does not speak TLS
    where it should gets the text `cleartext_notice`.
    """

    admission: Admission = field(default_factory=Admission)
    tls: TlsContext | None = None
    allow: Networks = EVERYBODY
    limits: ConnectionLimits | None = None
    cleartext_notice: str = "this port is for TLS"
