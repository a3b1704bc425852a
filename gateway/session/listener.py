"""One port that clients connect to: each connection becomes a session, if there is room for it.

The session asks the device for itself. What is spoken on it and whether the board is there are
not decided here; net/acceptor.py accepts and secures the connections.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import structlog

from gateway import clock
from gateway.config.document import Address, PortConfig
from gateway.net.acceptor import Acceptor
from gateway.net.access import AcceptOptions, Rejection
from gateway.net.client_socket import peer_host
from gateway.port.port import Port
from gateway.session.requests import Conversation
from gateway.session.session import Session

#: How long stopping waits for the connections to be closed; sessions take up to 1 s for it.
_STOP_LIMIT_S = 1.5


class Listener:
    """Serves one device on one TCP port; made and used on the loop."""

    def __init__(
        self,
        config: PortConfig,
        port: Port,
        converse: Callable[[], Conversation],
        log: structlog.typing.FilteringBoundLogger,
        options: AcceptOptions,
    ) -> None:
        self._config = config
        self._port = port
        self._converse = converse
        self._log = log
        notice = f"{config.name}: this port is for TLS"
        self._acceptor = Acceptor(
            Address(config.host, config.tcp_port or 0),
            self,
            log,
            replace(options, allow=config.access.allow, cleartext_notice=notice),
        )
        self._sessions: dict[Session, None] = {}  # the oldest first
        self._all_ended = asyncio.Event()
        self._all_ended.set()

    @property
    def tcp_port(self) -> int | None:
        """The port that is listened on, None while it could not be bound."""
        return self._acceptor.tcp_port

    @property
    def addresses(self) -> tuple[str, ...]:
        """The addresses that it listens at, of which a host name may have several."""
        return self._acceptor.addresses

    @property
    def rejected(self) -> Counter[Rejection]:
        """How many connections did not become a session."""
        return self._acceptor.rejections.counts

    @property
    def is_ready(self) -> bool:
        """Whether clients can connect."""
        return self.tcp_port is not None

    async def start(self) -> None:
        """Listen; an address that can't be bound now is tried again until it can."""
        await self._acceptor.open()

    async def stop(self, reason: str) -> None:
        """Accept no more clients and end all sessions, which leave the port.

        Returns when all connections are closed, after the time that a session leaves its client
        to read the last bytes at the latest.
        """
        # Before anything is awaited: the device is stopped at the same time, and dismisses users
        # that have not left by then.
        for session in tuple(self._sessions):
            session.close(reason)
        await self._acceptor.close()
        with contextlib.suppress(TimeoutError):
            async with clock.timeout(_STOP_LIMIT_S):
                await self._all_ended.wait()

    def on_contender(self, host: str) -> None:
        """A client at this address waits for the port: find out whether the sessions' are there."""
        for session in tuple(self._sessions):
            session.on_contender(host)

    # What the acceptor reports (acceptor.AcceptorOwner).

    def listening(self) -> None:
        """Log it."""
        self._log.info("listen_started", host=self._config.host, tcp_port=self.tcp_port)

    def not_listening(self, reason: str) -> None:
        """Log it."""
        host, tcp_port = self._config.host, self._config.tcp_port
        self._log.warning("listen_failed", host=host, tcp_port=tcp_port, reason=reason)

    def connected(self, transport: asyncio.Transport) -> None:
        """Make a session of a connection, if there is room."""
        if not self._make_room(peer_host(transport)):
            transport.abort()
            return
        session = self._new_session()
        transport.set_protocol(session)
        session.connection_made(transport)

    def _new_session(self) -> Session:
        session = Session(
            self._port,
            self._converse(),
            self._log,
            self,
            self._config.limits,
            screens=not self._config.access.accept_any_protocol,
        )
        self._sessions[session] = None
        self._all_ended.clear()
        return session

    def _make_room(self, host: str) -> bool:
        """Return whether there is room for one session more.

        A session that is ending gives up its place, else one whose client has been silent: the
        first only leaves its client a moment to read why, the second may never want the device.
        """
        limit = self._config.access.max_sessions
        if len(self._sessions) >= limit:
            ending = [each for each in self._sessions if each.is_ending]
            silent = [each for each in self._sessions if each.is_silent]
            for session in (ending or silent)[:1]:
                session.abort()
                self.session_ended(session)
        if len(self._sessions) < limit:
            return True
        self._acceptor.rejections.add(Rejection.TOO_MANY, host, f"max_sessions reached ({limit})")
        return False

    # What the sessions report (session.SessionOwner).

    def session_asks(self) -> None:
        """Nothing."""

    def session_waits(self, host: str) -> None:
        """Ask the machine of a client at the same address whether it is still there."""
        self.on_contender(host)

    def client_rejected(self, host: str, protocol: str) -> None:
        """Count and log it."""
        self._acceptor.rejections.add(Rejection.OTHER_PROTOCOL, host, f"speaks {protocol}")

    def session_ended(self, session: Session) -> None:
        """Forget it."""
        self._sessions.pop(session, None)
        if not self._sessions:
            self._all_ended.set()
