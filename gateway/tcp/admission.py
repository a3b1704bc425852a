"""Limits of client connections: over all, for each address, by descriptors, per loop turn.

Shared by all listeners of a service.
"""

from __future__ import annotations

import asyncio
import resource
import socket
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from gateway.config.document import EVERYBODY, ConnectionLimits, Networks, peer_holder
from gateway.descriptors import has_room, reserved_for
from gateway.tcp.rejections import OncePerPeriod
from gateway.tls.contexts import TlsNow
from gateway.tls.handshakes import Handshakes


class ClientSocket(socket.socket):
    """An accepted connection that reports the moment in which its descriptor is given up.

    asyncio closes it, uvloop detaches it and closes the descriptor itself.
    """

    def __init__(self, accepted: socket.socket, host: str) -> None:
        super().__init__(accepted.family, accepted.type, accepted.proto, accepted.detach())
        #: The peer's address.
        self.host = host
        #: What its connections are counted under.
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
        #: Connections that are open.
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


#: Connections accepted per loop turn over all listeners: a flood of them, on all ports at once,
#: leaves everything else on the loop its turn. On a PC, a session takes 0.4 ms of CPU from its
#: beginning to its end, a rejected connection 0.03 ms.
ACCEPTS_PER_TURN: Final = 4


class AcceptTurns:
    """Gives listening sockets that have connections waiting their turns, one connection each."""

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], bool]] = deque()

    def add(self, accept: Callable[[], bool]) -> None:
        """Call `accept`, which accepts one connection, in turns to come until it returns False."""
        self._waiting.append(accept)
        if len(self._waiting) == 1:
            asyncio.get_running_loop().call_soon(self._run)

    def _run(self) -> None:
        try:
            for _ in range(ACCEPTS_PER_TURN):
                if self._waiting:
                    self._accept_one()
        finally:
            if self._waiting:
                asyncio.get_running_loop().call_soon(self._run)

    def _accept_one(self) -> None:
        accept = self._waiting.popleft()
        may_be_more = True
        try:
            may_be_more = accept()
        finally:
            if may_be_more:
                self._waiting.append(accept)


class Admission:
    """Decides whether one more connection is taken; made and used on the loop."""

    def __init__(self, limits: ConnectionLimits | None = None) -> None:
        #: All connections, those in a TLS handshake included.
        self.connections = ConnectionCounter(limits or ConnectionLimits())
        self.handshakes = Handshakes()
        self.accept_turns = AcceptTurns()
        #: Descriptors that connections leave to everything else.
        self.reserved_descriptors = reserved_for(0)
        #: For the log, over all listeners: the kernel can't accept.
        self.accept_failures = OncePerPeriod()

    def reason_against(self, connection: ClientSocket) -> str:
        """Return why an accepted connection can't be served; empty if it can."""
        if not has_room(connection.fileno(), self.connections.count, self.reserved_descriptors):
            limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            return f"file descriptors are running out (limit {limit})"
        return self.connections.reason_against(connection.holder)


@dataclass(frozen=True, slots=True)
class Intake:
    """How a listener takes connections: see Acceptor."""

    admission: Admission = field(default_factory=Admission)
    tls: TlsNow | None = None
    allow: Networks = EVERYBODY
    limits: ConnectionLimits | None = None
    cleartext_notice: bytes = b""
