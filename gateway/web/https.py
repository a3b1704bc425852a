"""TLS below HTTP: a connection that has been accepted is secured, or never reaches the server.

The handshake is asyncio's own. That it forgets the end of what a client has sent before it closed,
for which ports have `tls.connection`, does not matter to HTTP: a request says how long it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from gateway.tcp.client_socket import peer_host
from gateway.tls.contexts import TlsNow

#: From the TCP connection to the end of the handshake, and the most of them at a time.
_HANDSHAKE_LIMIT_S: Final = 10.0
MAX_HANDSHAKES: Final = 64


class Https:
    """Secures connections with what `tls` says at that moment; made and used on the loop.

    `serve` gets each that is, and gives what shall speak on it, None for nobody; `refused` gets
    host and reason of the others.
    """

    def __init__(
        self,
        tls: TlsNow,
        serve: Callable[[asyncio.Transport], asyncio.Protocol | None],
        refused: Callable[[str, str], None],
    ) -> None:
        self._tls = tls
        self._serve = serve
        self._refused = refused
        self._pending: set[asyncio.Task[None]] = set()

    def begin(self, transport: asyncio.Transport) -> None:
        """Secure a connection."""
        if len(self._pending) >= MAX_HANDSHAKES:
            self._refused(peer_host(transport), "others want to connect")
            transport.abort()
            return
        early = _Early()
        transport.set_protocol(early)
        task = asyncio.create_task(self._secure(transport, early))
        self._pending.add(task)
        task.add_done_callback(self._pending.discard)

    async def stop(self) -> None:
        """Give up those that are not done."""
        for task in self._pending:
            task.cancel()
        if self._pending:
            await asyncio.wait(self._pending)

    async def _secure(self, transport: asyncio.Transport, early: _Early) -> None:
        host = peer_host(transport)
        try:
            secured = await asyncio.get_running_loop().start_tls(
                transport,
                early,
                self._tls.context,
                server_side=True,
                ssl_handshake_timeout=_HANDSHAKE_LIMIT_S,
            )
        except OSError as error:  # of which ssl.SSLError is one
            self._refused(host, str(error) or "hung up during the TLS handshake")
            transport.abort()
            return
        except asyncio.CancelledError:
            transport.abort()
            raise
        if secured is None or early.is_lost:
            transport.abort()
            return
        protocol = self._serve(secured)
        if protocol is None:
            secured.abort()
            return
        secured.set_protocol(protocol)
        protocol.connection_made(secured)
        if early.received:
            protocol.data_received(bytes(early.received))


class _Early(asyncio.Protocol):
    """Keeps what comes right behind the handshake; that is one read at most."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.is_lost = False

    def data_received(self, data: bytes) -> None:
        self.received += data

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self.is_lost = True
