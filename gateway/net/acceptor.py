"""Accept connections on an address and secure them: the same for ports, HTTP and the status socket.

bind, retried until it succeeds -> accept -> access list -> limits -> TLS handshake -> the owner,
which puts its protocol on the connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import os
import socket
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, Protocol, cast

import structlog

from gateway import clock
from gateway.config.document import Address
from gateway.net.access import (
    AcceptOptions,
    ClientSocket,
    ConnectionCounter,
    Rejection,
    Rejections,
)
from gateway.net.client_socket import reason_of, set_options
from gateway.net.name_lookup import Addresses, look_up
from gateway.net.tls import TlsConnection
from gateway.turns import Turns

#: First and longest wait before an address that could not be bound is tried again: it may belong
#: to an interface that is not up yet, or to a process that is about to end.
_RETRY_FIRST_S: Final = 0.25
_RETRY_LONGEST_S: Final = 5.0

#: Limit for looking up the name of an address.
_LOOKUP_LIMIT_S: Final = 5.0

#: Connections that may wait in the kernel to be accepted, for each listening socket.
BACKLOG: Final = 128

#: Pause of a listening socket after the kernel could not accept: it stays readable, and the loop
#: would spin. Clients wait in the backlog.
ACCEPT_RETRY_S: Final = 0.5

#: Errors of accept(2) that concern a connection that has failed before it was accepted.
_CONNECTION_ERRORS: Final = frozenset(
    {
        errno.ECONNABORTED,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.EINTR,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.ENONET,
        errno.ENOPROTOOPT,
        errno.EOPNOTSUPP,
        errno.EPERM,
        errno.EPROTO,
        errno.ETIMEDOUT,
    }
)


class AcceptLoop:
    """Accept on listening sockets, which it owns, one connection in each of its `turns`.

    The servers of the event loops are not used: without descriptors asyncio's logs a traceback for
    each try and uvloop's closes clients silently; on other shortages uvloop's spins; and neither
    can reject a connection before it has made a transport for it.
    """

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        turns: Turns,
        accepted: Callable[[socket.socket, Any], None],
        failed: Callable[[str], None],
    ) -> None:
        """`accepted` gets each connection, non-blocking, and its peer's address.

        `failed` gets the reason each time that the kernel can't accept or make a transport.
        """
        self.sockets = tuple(sockets)
        self._turns = turns
        self._accepted = accepted
        self._failed = failed
        self._timers: set[clock.Timer] = set()
        self._connecting: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        for each in self.sockets:
            self._watch(each)

    def close(self) -> None:
        """Accept nothing more."""
        for timer in self._timers:
            timer.cancel()
        for each in self.sockets:
            self._loop.remove_reader(each)
            each.close()

    async def wait_closed(self) -> None:
        """Wait for transports that are being made, a loop turn or two."""
        if self._connecting:  # cancelled, uvloop would leave them open
            await asyncio.wait(self._connecting)

    def connect(self, connection: socket.socket, protocol: asyncio.BaseProtocol) -> None:
        """Make a transport of an accepted connection; close it if that fails."""
        task = self._loop.create_task(self._connect(connection, protocol))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect(self, connection: socket.socket, protocol: asyncio.BaseProtocol) -> None:
        try:
            if connection.family != socket.AF_UNIX:
                set_options(connection)
            await self._loop.connect_accepted_socket(lambda: protocol, connection)
        except OSError as error:  # disconnected, or a shortage
            connection.close()
            self._failed(reason_of(error))

    def _watch(self, listening: socket.socket) -> None:
        self._loop.add_reader(listening, self._wait_for_turn, listening)

    def _wait_for_turn(self, listening: socket.socket) -> None:
        self._loop.remove_reader(listening)  # it stays readable until its turn
        self._turns.add(partial(self._accept, listening))

    def _accept(self, listening: socket.socket) -> None:
        if listening.fileno() < 0:
            return
        try:
            connection, address = listening.accept()
        except BlockingIOError:
            self._watch(listening)
            return
        except OSError as error:
            if error.errno in _CONNECTION_ERRORS:
                self._turns.add(partial(self._accept, listening))
            else:
                self._wait_for_resources(listening)
                self._failed(reason_of(error))
            return
        self._turns.add(partial(self._accept, listening))  # there may be more
        connection.setblocking(False)
        self._accepted(connection, address)

    def _wait_for_resources(self, listening: socket.socket) -> None:
        def watch_again() -> None:
            self._timers.discard(timer)
            self._watch(listening)

        timer = clock.call_later(ACCEPT_RETRY_S, watch_again)
        self._timers.add(timer)


class AcceptorOwner(Protocol):
    """A port or the HTTP server; called on the loop."""

    def listening(self) -> None:
        """Clients can connect."""

    def not_listening(self, reason: str) -> None:
        """The address can't be bound; repeated only for another reason."""

    def connected(self, transport: asyncio.Transport) -> None:
        """Set a protocol on a connection that is ready for use, or abort it."""


class Acceptor:
    """Accept connections for one owner, from `open` to `close`; made and used on the loop.

    TCP port 0 means any free port.
    """

    def __init__(
        self,
        address: Address,
        owner: AcceptorOwner,
        log: structlog.typing.FilteringBoundLogger,
        options: AcceptOptions,
    ) -> None:
        self._address = address
        self._owner = owner
        self._log = log
        self._options = options
        self._admission = options.admission
        self._owned = ConnectionCounter(options.limits) if options.limits is not None else None
        #: Connections closed before the owner had them, and those that the owner rejects.
        self.rejections = Rejections(log)
        self._accept_loop: AcceptLoop | None = None
        self._handshakes: set[TlsConnection] = set()
        self._binding: asyncio.Task[None] | None = None
        self._last_failure = ""
        self._is_closed = False

    @property
    def tcp_port(self) -> int | None:
        """The bound port, None without one."""
        if self._accept_loop is None:
            return None
        tcp_port: int = self._accept_loop.sockets[0].getsockname()[1]
        return tcp_port

    @property
    def addresses(self) -> tuple[str, ...]:
        """The bound IP addresses, of which a host name may have several."""
        sockets = () if self._accept_loop is None else self._accept_loop.sockets
        return tuple(sorted(each.getsockname()[0] for each in sockets))

    async def open(self) -> None:
        """Listen; an address that can't be bound is tried again until it can."""
        if not await self._bind():
            self._binding = asyncio.create_task(self._bind_later())

    async def close(self) -> None:
        """Stop listening, and close connections that the owner does not have yet."""
        self._is_closed = True
        if self._binding is not None:
            self._binding.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._binding
        accept_loop, self._accept_loop = self._accept_loop, None
        if accept_loop is not None:
            accept_loop.close()
            await accept_loop.wait_closed()
        for connection in tuple(self._handshakes):
            connection.abort()
        self.rejections.close()

    # --- listening

    async def _bind(self) -> bool:
        try:
            async with clock.timeout(_LOOKUP_LIMIT_S):
                addresses = await _addresses_of(self._address)
            sockets = _listening_sockets(addresses)
        except TimeoutError:
            self._not_bound("the resolver does not answer")
            return False
        except OSError as error:
            self._not_bound(_bind_failure(error))
            return False
        self._accept_loop = AcceptLoop(
            sockets, self._admission.accept_turns, self._accepted, self._accept_failed
        )
        self._owner.listening()
        return True

    async def _bind_later(self) -> None:
        wait_s = _RETRY_FIRST_S
        while True:
            await clock.sleep(wait_s)
            if await self._bind():
                return
            wait_s = min(2 * wait_s, _RETRY_LONGEST_S)

    def _not_bound(self, reason: str) -> None:
        if reason != self._last_failure:
            self._last_failure = reason
            self._owner.not_listening(reason)

    # --- connections

    def _accepted(self, accepted: socket.socket, address: tuple[Any, ...]) -> None:
        connection = ClientSocket(accepted, address[0])
        if not self._options.allow.have(connection.host):
            self._reject(connection, Rejection.NOT_ALLOWED, "address not in allow")
        elif reason := self._admission.reason_against(connection):
            self._reject(connection, Rejection.TOO_MANY, reason)
        else:
            assert self._accept_loop is not None  # noqa: S101 - it is the caller
            self._admission.connections.add(connection)
            self._accept_loop.connect(connection, _Arriving(self, connection))

    def _reject(self, connection: ClientSocket, rejection: Rejection, reason: str) -> None:
        connection.close()
        self.rejections.add(rejection, connection.host, reason)

    def _accept_failed(self, reason: str) -> None:
        if self._admission.accept_failures.is_due():
            self._log.warning("accept_failed", reason=reason)

    def connected(self, arriving: _Arriving, transport: asyncio.Transport) -> None:
        """Begin the handshake on a new connection, if there is to be one."""
        if self._is_closed:
            transport.abort()
        elif self._options.tls is None:
            self.secured(arriving, transport)
        else:
            handshakes = self._admission.handshakes
            connection = TlsConnection(
                self._options.tls.context,
                arriving,
                handshakes=handshakes,
                cleartext_notice=self._options.cleartext_notice,
            )
            self._handshakes.add(connection)
            handshakes.begin(connection, transport, arriving.connection.holder)

    def secured(self, arriving: _Arriving, transport: asyncio.Transport) -> None:
        """Hand over a connection that is ready for use, if there is room for it."""
        connection = arriving.connection
        if self._owned is not None and (reason := self._owned.reason_against(connection.holder)):
            self.rejections.add(Rejection.TOO_MANY, connection.host, reason)
            transport.abort()
            return
        if self._owned is not None:
            self._owned.add(connection)
        self._owner.connected(transport)

    def handshake_ended(self, connection: TlsConnection) -> None:
        """Forget a handshake that is complete, or whose connection is closed."""
        self._handshakes.discard(connection)


class _Arriving(asyncio.Protocol):
    """A connection from accept until the owner has it (asyncio.Protocol, tls.TlsOwner)."""

    def __init__(self, acceptor: Acceptor, connection: ClientSocket) -> None:
        self.connection = connection
        self._acceptor = acceptor

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Get another protocol before anything is read."""
        # uvloop's transports have another base class.
        self._acceptor.connected(self, cast("asyncio.Transport", transport))

    def tls_secured(self, connection: TlsConnection) -> None:
        """See TlsOwner."""
        self._acceptor.handshake_ended(connection)
        self._acceptor.secured(self, connection)

    def tls_failed(self, connection: TlsConnection, reason: str) -> None:  # noqa: ARG002
        """See TlsOwner."""
        self._acceptor.rejections.add(Rejection.NOT_SECURED, self.connection.host, f"TLS: {reason}")

    def tls_closed(self, connection: TlsConnection) -> None:
        """See TlsOwner."""
        self._acceptor.handshake_ended(connection)


async def _addresses_of(wanted: Address) -> Addresses:
    """Return the families and addresses to bind; the resolver is asked for names only."""
    host, tcp_port = wanted.host, wanted.tcp_port
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return list(dict.fromkeys(await look_up(host, tcp_port)))
    if isinstance(address, ipaddress.IPv4Address):
        return [(socket.AF_INET, (host, tcp_port))]
    scope = 0 if address.scope_id is None else _scope_number(address.scope_id)
    return [(socket.AF_INET6, (host.partition("%")[0], tcp_port, 0, scope))]


def _scope_number(scope_id: str) -> int:
    return int(scope_id) if scope_id.isdecimal() else socket.if_nametoindex(scope_id)


def _listening_sockets(addresses: Addresses) -> list[socket.socket]:
    """Listen on those addresses that this machine has; OSError if it has none or one is in use."""
    sockets: list[socket.socket] = []
    missing = OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
    try:
        for family, address in addresses:
            try:
                sockets.append(_listening_socket(family, address, sockets))
            except OSError as error:
                # A name may have an address of a family that is switched off here.
                if error.errno not in {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}:
                    raise
                missing = error
    except BaseException:
        for each in sockets:
            each.close()
        raise
    if not sockets:
        raise missing
    return sockets


def _listening_socket(
    family: int, address: tuple[Any, ...], others: Sequence[socket.socket]
) -> socket.socket:
    host, tcp_port, *rest = address
    if not tcp_port and others:  # any free port, but the same on each address of a name
        tcp_port = others[0].getsockname()[1]
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setblocking(False)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # 0.0.0.0 and :: on the same port are two entries of the configuration.
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listening.bind((host, tcp_port, *rest))
        listening.listen(BACKLOG)
    except BaseException:
        listening.close()
        raise
    return listening


def is_free(host: str, tcp_port: int) -> bool:
    """Return whether an IPv4 address can be bound now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, tcp_port))
        except OSError:
            return False
    return True


def _bind_failure(error: OSError) -> str:
    if error.errno == errno.EADDRNOTAVAIL:
        return "no interface of this machine has the address"
    return reason_of(error)
