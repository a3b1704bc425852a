"""TLS handshakes of accepted connections: bounded in number, memory and work per loop turn.

Shared by all listeners of a service, so that the bounds hold for the process.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from gateway.tls.connection import TlsConnection

#: Handshakes at a time over all listeners. Each takes about 50 KB, most of it OpenSSL's; 256 of
#: them are a lab whose clients all come back at once. One more takes the place of the oldest of
#: the address with the most.
MAX_HANDSHAKES: Final = 256


class HandshakeOwner(Protocol):
    """What has accepted the connection."""

    def handshake_complete(self, connection: TlsConnection) -> None:
        """Put a protocol on a connection, or abort it."""

    def handshake_failed(self, connection: TlsConnection, reason: str) -> None:
        """Take note of the reason; the connection closes by itself."""

    def handshake_closed(self) -> None:
        """The connection is closed, whether its handshake has failed or was given up."""


class Handshakes:
    """The handshakes that are not complete; made and used on the loop."""

    def __init__(self) -> None:
        self._pending: dict[str, dict[_Handshake, None]] = {}  # by holder, the oldest first
        self._count = 0
        self._steps: deque[Callable[[], None]] = deque()

    @property
    def count(self) -> int:
        """Handshakes that are not complete, and failed ones whose connection is not closed yet."""
        return self._count

    def begin(
        self,
        context: ssl.SSLContext,
        transport: asyncio.Transport,
        holder: str,
        owner: HandshakeOwner,
        cleartext_notice: bytes,
    ) -> TlsConnection:
        """Begin a handshake on a connection that has just been accepted; return its TLS side.

        `holder` is what the peer's connections are counted under. A peer that does not speak TLS
        is sent `cleartext_notice`.
        """
        if self._count >= MAX_HANDSHAKES:
            self._evict(holder)
        handshake = _Handshake(self, context, holder, owner, cleartext_notice)
        self._pending.setdefault(holder, {})[handshake] = None
        self._count += 1
        transport.set_protocol(handshake.connection)
        handshake.connection.connection_made(transport)
        return handshake.connection

    def run_later(self, step: Callable[[], None]) -> None:
        """Run a step of a handshake in a loop turn to come.

        One per turn: it takes up to 5 ms on a Raspberry Pi, and a client chooses when all of its
        connections take their step.
        """
        self._steps.append(step)
        if len(self._steps) == 1:
            asyncio.get_running_loop().call_soon(self._run)

    def _run(self) -> None:
        step = self._steps[0]
        try:
            step()
        finally:
            self._steps.popleft()
            if self._steps:
                asyncio.get_running_loop().call_soon(self._run)

    def _evict(self, newcomer: str) -> None:
        """Abort the oldest handshake of the address with the most, the new one counted."""

        def count_of(holder: str) -> int:
            return len(self._pending[holder]) + (holder == newcomer)

        oldest = next(iter(self._pending[max(self._pending, key=count_of)]))
        oldest.connection.fail("not complete before others wanted to connect")
        oldest.connection.abort()
        self.remove(oldest)

    def remove(self, handshake: _Handshake) -> None:
        """Count a handshake no longer; does nothing the second time."""
        of_holder = self._pending.get(handshake.holder, {})
        if handshake in of_holder:
            del of_holder[handshake]
            self._count -= 1
            if not of_holder:
                del self._pending[handshake.holder]


class _Handshake:
    """One handshake (connection.TlsOwner)."""

    def __init__(
        self,
        handshakes: Handshakes,
        context: ssl.SSLContext,
        holder: str,
        owner: HandshakeOwner,
        cleartext_notice: bytes,
    ) -> None:
        self.holder = holder
        self.owner = owner
        self.connection = TlsConnection(
            context, self, cleartext_notice=cleartext_notice, run_later=handshakes.run_later
        )
        self._handshakes = handshakes

    def tls_secured(self, connection: TlsConnection) -> None:
        """See TlsOwner."""
        self._handshakes.remove(self)
        self.owner.handshake_complete(connection)

    def tls_failed(self, connection: TlsConnection, reason: str) -> None:
        """See TlsOwner; the handshake counts until its connection is closed."""
        self.owner.handshake_failed(connection, reason)

    def tls_closed(self, connection: TlsConnection) -> None:  # noqa: ARG002 - TlsOwner's signature
        """See TlsOwner."""
        self._handshakes.remove(self)
        self.owner.handshake_closed()
