"""The TCP socket of one port: bound, bound again when that fails, and who connects to it.

Each connection becomes a `session`, which asks the device for itself; what is spoken on it and
whether the board is there are not decided here.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import cast

import structlog

from gateway.config import PortConfig
from gateway.device import Device
from gateway.request_queue import Conversation
from gateway.session import Session

#: First and longest wait before an address that could not be bound is tried again: it may belong
#: to an interface that is not up yet, or to the process before.
_RETRY_FIRST_S = 0.25
_RETRY_LONGEST_S = 5.0

#: Connections to one port at a time, refused ones and those that are being ended included. One
#: has the device, others are told who; what is above is closed without a word.
MAX_SESSIONS = 32

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
    ) -> None:
        self._config = config
        self._device = device
        self._converse = converse
        self._log = log
        self._server: asyncio.Server | None = None
        self._binding: asyncio.Task[None] | None = None
        self._last_failure = ""
        self._sessions: set[Session] = set()
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
        for session in tuple(self._sessions):
            session.close(reason)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._nobody_left.wait(), _STOP_LIMIT_S)

    async def _bind(self) -> bool:
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_server(
                self._accept, self._config.host, self._config.tcp_port
            )
        except OSError as error:
            self._log_failure(error.strerror or str(error))
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

    def _accept(self) -> asyncio.BaseProtocol:
        if self._stopping:  # the kernel had accepted it before
            return _Dropped()
        if len(self._sessions) >= MAX_SESSIONS:
            self._log.warning("client_dropped", reason=f"{MAX_SESSIONS} are connected already")
            return _Dropped()
        session = Session(self._device, self._converse(), self._log, self._session_ended)
        self._sessions.add(session)
        self._nobody_left.clear()
        return session

    def _session_ended(self, session: Session) -> None:
        self._sessions.discard(session)
        if not self._sessions:
            self._nobody_left.set()


class _Dropped(asyncio.Protocol):
    """A connection that is closed at once."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast("asyncio.Transport", transport).abort()


def is_free(host: str, tcp_port: int) -> bool:
    """Whether an address could be listened on now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, tcp_port))
        except OSError:
            return False
    return True
