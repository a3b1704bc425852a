"""The TCP socket of one port: bound, bound again when that fails, and who connects to it.

Each connection becomes a `session`, which asks the device for itself; what is spoken on it and
whether the board is there are not decided here.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections import Counter
from collections.abc import Callable
from typing import cast

import structlog

from gateway.client_socket import peer_host
from gateway.config import PortConfig
from gateway.device import Device
from gateway.door import Door, Refusal
from gateway.handshakes import Handshakes
from gateway.name_lookup import hosts_of
from gateway.request_queue import Conversation
from gateway.session import Session
from gateway.tls_contexts import TlsNow

#: First and longest wait before an address that could not be bound is tried again: it may belong
#: to an interface that is not up yet, or to the process before.
_RETRY_FIRST_S = 0.25
_RETRY_LONGEST_S = 5.0

#: How long the name of an address may be looked up.
_LOOKUP_LIMIT_S = 5.0

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
        self._server: asyncio.Server | None = None
        self._binding: asyncio.Task[None] | None = None
        self._last_failure = ""
        self._door = Door(config.access, log)
        self._handshakes: Handshakes | None = None
        if tls is not None:
            told = f"{config.name}: this port is for TLS\r\n".encode()
            self._handshakes = Handshakes(tls, self._secured, self._door.not_secured, told)
        self._sessions: dict[Session, None] = {}  # the oldest first
        self._nobody_left = asyncio.Event()
        self._nobody_left.set()
        self._stopping = False

    @property
    def tcp_port(self) -> int | None:
        """The port that is listened on, None while it could not be bound."""
        if self._server is None or not self._server.sockets:
            return None
        tcp_port: int = self._server.sockets[0].getsockname()[1]
        return tcp_port

    @property
    def addresses(self) -> tuple[str, ...]:
        """The addresses that it listens at, of which a host name may have several."""
        sockets = () if self._server is None else self._server.sockets
        return tuple(sorted(each.getsockname()[0] for each in sockets))

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
        if not await self._bind():
            self._binding = asyncio.create_task(self._bind_later())

    async def stop(self, reason: str) -> None:
        """Accept nobody any more and end all sessions; their device is released.

        Returns when all connections are closed, after the time that a session leaves its client
        to read the last bytes at the latest.
        """
        self._stopping = True
        if self._binding is not None:
            self._binding.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._binding
        if self._server is not None:
            self._server.close()
        if self._handshakes is not None:
            self._handshakes.close()
        self._door.close()
        for session in tuple(self._sessions):
            session.close(reason)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._nobody_left.wait(), _STOP_LIMIT_S)

    async def _bind(self) -> bool:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_LOOKUP_LIMIT_S):
                hosts = await hosts_of(self._config.host, self._config.tcp_port or 0)
            self._server = await loop.create_server(self._new_arrival, hosts, self._config.tcp_port)
        except TimeoutError:
            self._log_failure("the resolver does not answer")
            return False
        except OSError as error:
            self._log_failure(bind_failure(error))
            return False
        self._log.info("listen_started", host=self._config.host, tcp_port=self.tcp_port)
        return True

    def _log_failure(self, reason: str) -> None:
        if reason == self._last_failure:  # said once, however often it is tried
            return
        self._last_failure = reason
        self._log.warning(
            "listen_failed",
            host=self._config.host,
            tcp_port=self._config.tcp_port,
            reason=reason,
        )

    async def _bind_later(self) -> None:
        wait_s = _RETRY_FIRST_S
        while True:
            await asyncio.sleep(wait_s)
            if await self._bind():
                return
            wait_s = min(2 * wait_s, _RETRY_LONGEST_S)

    def _new_arrival(self) -> Arriving:
        return Arriving(self._arrived)

    def _arrived(self, transport: asyncio.Transport) -> None:
        """Let a connection in, or close it before anything is sent on it."""
        # When stopping, the kernel had accepted it before.
        if self._stopping or not self._door.allows(peer_host(transport)):
            transport.abort()
        elif self._handshakes is not None:
            self._handshakes.begin(transport)
        else:
            self._secured(transport)

    def _secured(self, transport: asyncio.Transport) -> None:
        """Make a session of a connection, if there is room."""
        if self._stopping or not self._make_room(peer_host(transport)):
            transport.abort()
            return
        session = self._new_session()
        transport.set_protocol(session)
        session.connection_made(transport)
        for other in tuple(self._sessions):
            other.rival_came(session)

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


class Arriving(asyncio.Protocol):
    """A connection that has been accepted, until it is known what becomes of it."""

    def __init__(self, arrived: Callable[[asyncio.Transport], None]) -> None:
        self._arrived = arrived

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Tell of it."""
        self._arrived(cast("asyncio.Transport", transport))


def is_free(host: str, tcp_port: int) -> bool:
    """Whether an address could be listened on now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, tcp_port))
        except OSError:
            return False
    return True


def bind_failure(error: OSError) -> str:
    """Why an address can't be bound, in the same words whatever Python runs."""
    # asyncio gives no error number for an address of nobody here from Python 3.13 on.
    if error.errno in {None, errno.EADDRNOTAVAIL}:
        return "no interface of this machine has the address"
    return error.strerror or str(error)
