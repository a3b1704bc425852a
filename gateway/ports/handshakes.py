"""TLS handshakes of one listening port: bounded in number, and who fails is no more than that.

A connection comes out of here secured, or never reaches a session.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from gateway.tcp.client_socket import peer_host, set_options
from gateway.tls.connection import TlsConnection
from gateway.tls.contexts import TlsNow

#: Handshakes at a time. The oldest makes room for one more: who does not go on keeps nobody out.
#: Each takes some 50 KB of OpenSSL's.
MOST: Final = 64


class Handshakes:
    """See the module; made and used on the loop.

    `secured` gets the connections that are, `refused` host and reason of the others. Who does not
    speak TLS is sent `told_in_clear`.
    """

    def __init__(
        self,
        tls: TlsNow,
        secured: Callable[[asyncio.Transport], None],
        refused: Callable[[str, str], None],
        told_in_clear: bytes,
    ) -> None:
        self._tls = tls
        self._secured = secured
        self._refused = refused
        self._told_in_clear = told_in_clear
        self._pending: dict[TlsConnection, None] = {}  # the oldest first

    def begin(self, transport: asyncio.Transport) -> None:
        """Secure a connection that has just been accepted."""
        if len(self._pending) >= MOST:
            oldest = next(iter(self._pending))
            oldest.fail("others want to connect")
            oldest.abort()
            self._pending.pop(oldest, None)
        connection = TlsConnection(self._tls.context, self, told_in_clear=self._told_in_clear)
        self._pending[connection] = None
        set_options(transport)
        transport.set_protocol(connection)
        connection.connection_made(transport)

    def close(self) -> None:
        """Give up those that are not done."""
        for connection in tuple(self._pending):
            connection.abort()

    # What the connections report (tls.connection.TlsOwner).

    def tls_secured(self, connection: TlsConnection) -> None:
        """Pass it on."""
        del self._pending[connection]
        self._secured(connection)

    def tls_failed(self, connection: TlsConnection, reason: str) -> None:
        """Pass it on; until it is closed, it counts."""
        self._refused(peer_host(connection), reason)

    def tls_closed(self, connection: TlsConnection) -> None:
        """Count it no more."""
        self._pending.pop(connection, None)
