"""The TCP sockets of one address of the YAML: bound, bound again when that fails, who connects.

What is spoken there, and what is logged of it, is their owner's matter.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Callable
from typing import Protocol, cast

from gateway import clock
from gateway.tcp.client_socket import peer_host
from gateway.tcp.door import Door
from gateway.tcp.name_lookup import hosts_of

#: First and longest wait before an address that could not be bound is tried again: it may belong
#: to an interface that is not up yet, or to the process before.
_RETRY_FIRST_S = 0.25
_RETRY_LONGEST_S = 5.0

#: How long the name of an address may be looked up.
_LOOKUP_LIMIT_S = 5.0


class SocketsOwner(Protocol):
    """Whose address it is; told of it on the loop."""

    def bound(self) -> None:
        """Clients can connect from now on."""

    def not_bound(self, reason: str) -> None:
        """They can't yet; it is tried again, and said once as long as the reason is the same."""

    def arrived(self, transport: asyncio.Transport) -> None:
        """Somebody has connected who may; the protocol of the transport is to be set."""


class BoundSockets:
    """See the module; made and used on the loop. Port 0 is any free one, `door` says who may in."""

    def __init__(self, host: str, tcp_port: int, door: Door, owner: SocketsOwner) -> None:
        self._host = host
        self._tcp_port = tcp_port
        self._door = door
        self._owner = owner
        self._server: asyncio.Server | None = None
        self._binding: asyncio.Task[None] | None = None
        self._last_failure = ""
        self._is_closed = False

    @property
    def tcp_port(self) -> int | None:
        """The port that is listened on, None while it could not be bound."""
        if self._server is None or not self._server.sockets:
            return None
        tcp_port: int = self._server.sockets[0].getsockname()[1]
        return tcp_port

    @property
    def addresses(self) -> tuple[str, ...]:
        """The IP addresses that are listened at, of which a host name may have several."""
        sockets = () if self._server is None else self._server.sockets
        return tuple(sorted(each.getsockname()[0] for each in sockets))

    @property
    def is_closed(self) -> bool:
        """Whether nobody shall come in any more."""
        return self._is_closed

    async def open(self) -> None:
        """Listen; an address that can't be bound now is tried again until it can."""
        if not await self._bind():
            self._binding = asyncio.create_task(self._bind_later())

    async def close(self) -> None:
        """Listen no more, nor try to."""
        self._is_closed = True
        if self._binding is not None:
            self._binding.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._binding
        await self._stop_accepting()
        self._release()

    async def _stop_accepting(self) -> None:
        """Let those who have been accepted in this turn of the loop arrive.

        asyncio gives them a transport in the next one; if the server has been closed by then, it
        forgets them open, and they wait for ever (seen up to Python 3.13; uvloop does not).
        """
        if self._server is not None:
            loop = asyncio.get_running_loop()
            for each in self._server.sockets:
                loop.remove_reader(each.fileno())
            await asyncio.sleep(0)

    async def _bind(self) -> bool:
        loop = asyncio.get_running_loop()
        try:
            async with clock.timeout(_LOOKUP_LIMIT_S):
                hosts = await hosts_of(self._host, self._tcp_port)
            # In two steps: who cancels `create_server` while it starts to serve would never get
            # hold of what listens already.
            self._server = await loop.create_server(
                self._new_arrival, hosts, self._tcp_port, start_serving=False
            )
            await self._server.start_serving()
        except TimeoutError:
            self._not_bound("the resolver does not answer")
            return False
        except OSError as error:
            self._release()
            self._not_bound(_bind_failure(error))
            return False
        self._owner.bound()
        return True

    async def _bind_later(self) -> None:
        wait_s = _RETRY_FIRST_S
        while True:
            await clock.sleep(wait_s)
            if await self._bind():
                return
            wait_s = min(2 * wait_s, _RETRY_LONGEST_S)

    def _not_bound(self, reason: str) -> None:
        if reason != self._last_failure:  # said once, however often it is tried
            self._last_failure = reason
            self._owner.not_bound(reason)

    def _release(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    def _new_arrival(self) -> _Arriving:
        return _Arriving(self._arrived)

    def _arrived(self, transport: asyncio.Transport) -> None:
        """Let a connection in, or close it before anything is sent on it."""
        # When closed, the kernel had accepted it before.
        if self._is_closed or not self._door.allows(peer_host(transport)):
            transport.abort()
        else:
            self._owner.arrived(transport)


class _Arriving(asyncio.Protocol):
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


def _bind_failure(error: OSError) -> str:
    """Why an address can't be bound, in the same words whatever Python runs."""
    # asyncio gives no error number for an address of nobody here from Python 3.13 on.
    if error.errno in {None, errno.EADDRNOTAVAIL}:
        return "no interface of this machine has the address"
    return error.strerror or str(error)
