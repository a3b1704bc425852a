"""One port that clients connect to: each connection becomes a `session`, if there is room for it.

The session asks the device for itself; what is spoken on it and whether the board is there are
not decided here. The address is `bound_sockets`' matter.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable

import structlog

from gateway import clock
from gateway.config.document import PortConfig
from gateway.devices.device import Device
from gateway.ports.handshakes import Handshakes
from gateway.sessions.request_queue import Conversation
from gateway.sessions.session import Session, SessionState
from gateway.tcp.bound_sockets import BoundSockets
from gateway.tcp.client_socket import peer_host
from gateway.tcp.door import Door, Refusal
from gateway.tls.contexts import TlsNow

#: How long stopping waits for the connections to be closed; sessions take up to 1 s for it.
_STOP_LIMIT_S = 1.5


class Listener:
    """Serves one device on one TCP port; made and used on the loop."""

    def __init__(
        self,
        config: PortConfig,
        device: Device,
        converse: Callable[[], Conversation],
        log: structlog.typing.FilteringBoundLogger,
        tls: TlsNow | None = None,
    ) -> None:
        self._config = config
        self._device = device
        self._converse = converse
        self._log = log
        self._door = Door(config.access, log)
        self._sockets = BoundSockets(config.host, config.tcp_port or 0, self._door, self)
        self._handshakes: Handshakes | None = None
        if tls is not None:
            told = f"{config.name}: this port is for TLS\r\n".encode()
            self._handshakes = Handshakes(tls, self._secured, self._door.not_secured, told)
        self._sessions: dict[Session, None] = {}  # the oldest first
        self._nobody_left = asyncio.Event()
        self._nobody_left.set()

    @property
    def tcp_port(self) -> int | None:
        """The port that is listened on, None while it could not be bound."""
        return self._sockets.tcp_port

    @property
    def addresses(self) -> tuple[str, ...]:
        """The addresses that it listens at, of which a host name may have several."""
        return self._sockets.addresses

    @property
    def turned_away(self) -> Counter[Refusal]:
        """How many connections did not become a session."""
        return self._door.turned_away

    @property
    def is_ready(self) -> bool:
        """Whether clients can connect."""
        return self.tcp_port is not None

    async def start(self) -> None:
        """Listen; an address that can't be bound now is tried again until it can."""
        await self._sockets.open()

    async def stop(self, reason: str) -> None:
        """Accept nobody any more and end all sessions; their device is released.

        Returns when all connections are closed, after the time that a session leaves its client
        to read the last bytes at the latest.
        """
        # Before anything is awaited: the device is stopped at the same time, and dismisses users
        # that have not left by then.
        for session in tuple(self._sessions):
            session.close(reason)
        await self._sockets.close()
        if self._handshakes is not None:
            self._handshakes.close()
        self._door.close()
        with contextlib.suppress(TimeoutError):
            async with clock.timeout(_STOP_LIMIT_S):
                await self._nobody_left.wait()

    def rival_came(self, host: str) -> None:
        """Somebody at this address waits for the device: does who has it live?"""
        for session in tuple(self._sessions):
            session.rival_came(host)

    # What the sockets report (bound_sockets.SocketsOwner).

    def bound(self) -> None:
        """Log it."""
        self._log.info("listen_started", host=self._config.host, tcp_port=self.tcp_port)

    def not_bound(self, reason: str) -> None:
        """Log it."""
        host, tcp_port = self._config.host, self._config.tcp_port
        self._log.warning("listen_failed", host=host, tcp_port=tcp_port, reason=reason)

    def arrived(self, transport: asyncio.Transport) -> None:
        """Secure a connection, if the port is for TLS, and make a session of it."""
        if self._handshakes is not None:
            self._handshakes.begin(transport)
        else:
            self._secured(transport)

    def _secured(self, transport: asyncio.Transport) -> None:
        """Make a session of a connection, if there is room."""
        if self._sockets.is_closed or not self._make_room(peer_host(transport)):
            transport.abort()
            return
        session = self._new_session()
        transport.set_protocol(session)
        session.connection_made(transport)
        if session.state is SessionState.WAITING:
            self.rival_came(peer_host(transport))

    def _new_session(self) -> Session:
        session = Session(
            self._device, self._converse(), self._log, self._session_ended, self._config.limits
        )
        self._sessions[session] = None
        self._nobody_left.clear()
        return session

    def _make_room(self, host: str) -> bool:
        """Whether there is room for one session more, whose place may be that of one that ends.

        A refused client is left a moment to read why; who comes then should not suffer for it.
        """
        if len(self._sessions) >= self._config.access.max_sessions:
            ending = next((each for each in self._sessions if each.is_ending), None)
            if ending is not None:
                ending.abort()
                self._session_ended(ending)
        return self._door.has_room(host, len(self._sessions))

    def _session_ended(self, session: Session) -> None:
        self._sessions.pop(session, None)
        if not self._sessions:
            self._nobody_left.set()
