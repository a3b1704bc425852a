"""The other way round of `listener`: the gateway connects to the client of one port.

For boards behind NAT: the user's machine listens, the gateway dials, and dials again
whenever the connection has ended. There is a connection only while the board is there: it is
waited for first. From then on a `session` sees no difference; what is spoken on it and what
happens to the board are not decided here.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import ssl
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta

import structlog

from gateway import clock
from gateway.config.document import Address, PortConfig
from gateway.net.access import Rejection, Rejections
from gateway.net.client_socket import set_options
from gateway.net.name_lookup import look_up
from gateway.net.tls import TlsConnection
from gateway.net.tls_context import TlsContext
from gateway.port.port import Port
from gateway.session.requests import Conversation
from gateway.session.session import Session

#: First and longest wait before dialling again. Each is shortened at random by up to half, so
#: that the gateways of a lab do not all come at once when the far end is there again.
_RETRY_FIRST_S = 0.5
_RETRY_LONGEST_S = 10.0

#: After a connection that has lasted so long, the waits start from the first again.
_LASTED_S = 5.0

#: A far end that sends nothing gets the board when it has stayed so long. One that hangs up before
#: is a tunnel whose own far end is not there: it accepts, and learns so a round trip later.
_STAYS_S = 2.0

#: How long looking up the far end's name may take, and connecting to each address of it.
_ATTEMPT_LIMIT_S = 5.0

#: How long stopping waits for the connection to be closed; a session takes up to 1 s for it.
_STOP_LIMIT_S = 1.5


class Dialer:
    """Connects one device to its far end; made and used on the loop."""

    #: Nothing is listened on, so nothing is missing before clients are served.
    tcp_port: int | None = None
    is_ready = True

    def __init__(
        self,
        config: PortConfig,
        port: Port,
        converse: Callable[[], Conversation],
        log: structlog.typing.FilteringBoundLogger,
        tls: TlsContext | None = None,
    ) -> None:
        assert config.connect is not None  # noqa: S101 - the others have a listener
        self._far_end = config.connect
        # A certificate has no dot at the end of a name.
        self._server_name = config.connect.host.rstrip(".")
        if config.tls is not None and config.tls.server_name is not None:
            self._server_name = config.tls.server_name.rstrip(".")
        self._tls = tls
        self._limits = config.limits
        self._screens = not config.access.accept_any_protocol
        self._rejections = Rejections(log)
        self._port = port
        self._converse = converse
        self._log = log
        self._dialling: asyncio.Task[None] | None = None
        self.failures = 0  # tries that have given the far end no board
        self._logged = ""  # why the last of them has failed, since it was last different
        self._trouble = "connecting"
        self._session: Session | None = None
        self._problem = ""  # why the session has not asked for the device
        self._is_hung_up = asyncio.Event()
        self._is_hung_up.set()

    @property
    def rejected(self) -> Counter[Rejection]:
        """How many connections did not become a session."""
        return self._rejections.counts

    def on_contender(self, host: str) -> None:
        """A client at this address waits for the port: find out whether the session's is there."""
        if self._session is not None:
            self._session.on_contender(host)

    @property
    def is_connected(self) -> bool:
        """Whether the far end has the board, or waits for it."""
        return not self._trouble

    @property
    def trouble(self) -> str:
        """Why the far end does not have the board, and when it is dialled again; empty if it has.

        Means nothing while the board is not there: the far end is not dialled then.
        """
        return self._trouble

    async def start(self) -> None:
        """Dial, now and whenever there is no connection."""
        self._dialling = asyncio.create_task(self._dial_for_ever())

    async def stop(self, reason: str) -> None:
        """Dial no more and end the session; its device is released.

        Bounded as `Listener.stop`.
        """
        if self._session is not None:
            self._session.close(reason)
        if self._dialling is not None:
            self._dialling.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._dialling
        self._rejections.close()
        if self._session is not None:  # made meanwhile
            self._session.close(reason)
        with contextlib.suppress(TimeoutError):
            async with clock.timeout(_STOP_LIMIT_S):
                await self._is_hung_up.wait()

    async def _dial_for_ever(self) -> None:
        wait_s = _RETRY_FIRST_S
        while True:
            await self._port.idle.wait()
            dialled_at = clock.time()
            self._trouble = f"{self._logged}; trying now" if self._logged else "connecting"
            problem = await self._dial()
            if not problem and clock.time() - dialled_at >= _LASTED_S:
                wait_s = _RETRY_FIRST_S
            pause_s = wait_s * random.uniform(0.5, 1)  # noqa: S311 - no secret
            wait_s = min(2 * wait_s, _RETRY_LONGEST_S)
            self._tell(problem, pause_s)
            await clock.sleep(pause_s)

    def _tell(self, problem: str, pause_s: float) -> None:
        """Show why the far end is dialled again, and when; log a problem when it is another one."""
        next_try = (datetime.now().astimezone() + timedelta(seconds=pause_s)).strftime("%H:%M:%S")
        self._trouble = f"{problem or 'the connection has ended'}; next try at {next_try}"
        if problem:
            self.failures += 1
            if problem != self._logged:
                self._log.warning("dial_failed", connect=str(self._far_end), reason=problem)
        self._logged = problem

    async def _dial(self) -> str:
        """Connect, and return when the connection has ended: why the far end did not get the board,
        empty if it has got it.
        """
        try:
            connection = await _connected(self._far_end)
            secured = None
            if self._tls is not None:
                secured = await _secured(connection, self._tls.context, self._server_name)
        except TimeoutError:
            return "no answer"
        except OSError as error:
            return _reason_of(error)
        session = Session(
            self._port,
            self._converse(),
            self._log,
            self,
            self._limits,
            screens=self._screens,
            stays_s=_STAYS_S,
        )
        self._session = session
        self._problem = "hung up without having sent anything"
        self._is_hung_up.clear()
        if secured is None:
            try:
                await asyncio.get_running_loop().create_connection(lambda: session, sock=connection)
            except BaseException:  # stopped before the session has its connection
                session.close("given up")
                self.session_ended(session)
                raise
        else:
            secured.set_protocol(session)
            session.connection_made(secured)
        await self._is_hung_up.wait()
        return self._problem

    # What the session reports (session.SessionOwner).

    def session_asks(self) -> None:
        """The far end is there."""
        self._problem = self._trouble = self._logged = ""
        self._log.info("dial_connected", connect=str(self._far_end))

    def session_waits(self, host: str) -> None:
        """Nothing: no other client can be at the far end's address."""

    def client_rejected(self, host: str, protocol: str) -> None:
        """Count and log it."""
        self._problem = f"speaks {protocol}"
        self._rejections.add(Rejection.OTHER_PROTOCOL, host, f"speaks {protocol}")

    def session_ended(self, session: Session) -> None:
        """Dial again."""
        if session is self._session:
            self._session = None
            self._is_hung_up.set()


def _reason_of(error: OSError) -> str:
    # asyncio replaces the kernel's words; errors of a lookup have negative numbers and their own.
    number = error.errno or 0
    return (os.strerror(number) if number > 0 else error.strerror or str(error)).lower()


async def _connected(far_end: Address) -> socket.socket:
    """A connection to the first address of the far end that takes one; OSError if none does."""
    async with clock.timeout(_ATTEMPT_LIMIT_S):
        addresses = await look_up(far_end.host, far_end.tcp_port)
    error: OSError = OSError("the name has no address")
    for family, address in addresses:
        connection = socket.socket(family, socket.SOCK_STREAM)
        connection.setblocking(False)
        try:
            async with clock.timeout(_ATTEMPT_LIMIT_S):
                await asyncio.get_running_loop().sock_connect(connection, address)
            set_options(connection)
        except OSError as failure:  # TimeoutError is one
            connection.close()
            error = failure
        except BaseException:
            connection.close()
            raise
        else:
            return connection
    raise error


class _Securing:
    """Waits for the handshake of one connection (tls.connection.TlsOwner)."""

    def __init__(self) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def tls_secured(self, connection: TlsConnection) -> None:
        """The far end is the expected one; nothing is read until it has a session."""
        connection.pause_reading()
        if self.done.cancelled():
            connection.abort()
        else:
            self.done.set_result(None)

    def tls_failed(self, connection: TlsConnection, reason: str) -> None:  # noqa: ARG002
        """It is not."""
        if not self.done.cancelled():
            self.done.set_exception(OSError(f"TLS: {reason}"))

    def tls_closed(self, connection: TlsConnection) -> None:
        """That has been told."""


async def _secured(
    connection: socket.socket, context: ssl.SSLContext, server_name: str
) -> TlsConnection:
    """The connection with TLS on it; OSError if that does not come about, in bounded time."""
    securing = _Securing()
    try:
        secured = TlsConnection(context, securing, server_name=server_name)
    except ValueError as error:
        connection.close()
        raise OSError(f"TLS: {error}") from error
    await asyncio.get_running_loop().create_connection(lambda: secured, sock=connection)
    try:
        await securing.done
    except BaseException:
        secured.abort()
        raise
    return secured
