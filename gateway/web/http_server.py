"""The HTTP server's life: bound, bound again when that fails, who connects, and its end.

What it serves is added by the modules in ROOMS. Who may connect is `door`'s matter, what a request
may do `http_access`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import Final

import structlog
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from gateway.client_socket import peer_host
from gateway.config_choices import Access
from gateway.config_http import HttpConfig
from gateway.door import Door
from gateway.listener import Arriving, bind_failure
from gateway.running_port import RunningPort
from gateway.tls_contexts import TlsNow
from gateway.web import (
    console,
    controls_api,
    events,
    flash,
    metrics,
    output_api,
    page,
    ports_api,
)
from gateway.web.http_access import Policy
from gateway.web.http_answers import MAX_BODY_BYTES, add_headers, guarded
from gateway.web.https import Https
from gateway.web.lab import LAB, Lab

Room = Callable[[web.Application], None]

#: Who adds routes, and what they need at start and stop. Each request has the service in its
#: `app[LAB]`; a handler for POST requires the token, a page of our own and, without
#: `http_answers.takes`, a JSON body, all by itself.
ROOMS: Final[tuple[Room, ...]] = (
    page.add_routes,
    ports_api.add_routes,
    controls_api.add_routes,
    output_api.add_routes,
    flash.add_routes,
    events.add_routes,
    console.add_routes,
    metrics.add_routes,
)

#: A page has a few connections, a program one: enough for a whole team.
MAX_CONNECTIONS: Final = 128

#: How long a connection may be idle, and how long a request's head may take.
_IDLE_LIMIT_S: Final = 30.0

#: How long what is being answered may take to end when the server stops; twice, by aiohttp's count.
_SHUTDOWN_LIMIT_S: Final = 0.4

_RETRY_FIRST_S: Final = 0.25
_RETRY_LONGEST_S: Final = 5.0


class HttpServer:
    """Serves what the YAML says from `start` to `stop`; made and used on the loop."""

    def __init__(
        self,
        config: HttpConfig,
        token: str | None,
        ports: Callable[[], Sequence[RunningPort]],
        version: str,
        tls: TlsNow | None = None,
    ) -> None:
        self._config = config
        self._log = structlog.get_logger()
        self._lab = Lab(ports, version, Policy(token, config.is_loopback), self._log)
        self._door = Door(Access(config.allow, MAX_CONNECTIONS), self._log)
        self._runner = web.AppRunner(
            self._app(),
            access_log=None,
            logger=_library_log(),
            handler_cancellation=True,
            keepalive_timeout=_IDLE_LIMIT_S,
            shutdown_timeout=_SHUTDOWN_LIMIT_S,
        )
        self._https: Https | None = None
        if tls is not None:
            self._https = Https(tls, self._protocol_for, self._door.not_secured)
        self._server: asyncio.Server | None = None
        self._binding: asyncio.Task[None] | None = None
        self._last_failure = ""

    @property
    def tcp_port(self) -> int | None:
        """The port that is listened on, None while it could not be bound."""
        if self._server is None or not self._server.sockets:
            return None
        tcp_port: int = self._server.sockets[0].getsockname()[1]
        return tcp_port

    def use_token(self, token: str | None) -> None:
        """Ask for this token from now on."""
        self._lab.policy = Policy(token, self._config.is_loopback)

    async def start(self) -> None:
        """Listen; an address that can't be bound now is tried again until it can."""
        await self._runner.setup()
        if not await self._bind():
            self._binding = asyncio.create_task(self._bind_later())

    async def stop(self) -> None:
        """Accept nobody any more and end what is being answered; bounded to 1 s."""
        if self._binding is not None:
            self._binding.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._binding
        if self._server is not None:
            self._server.close()
        if self._https is not None:
            await self._https.stop()
        self._door.close()
        await self._runner.cleanup()

    def _app(self) -> web.Application:
        app = web.Application(middlewares=[guarded], client_max_size=MAX_BODY_BYTES)
        app[LAB] = self._lab
        app.on_response_prepare.append(add_headers)
        for add_routes in ROOMS:
            add_routes(app)
        return app

    async def _bind(self) -> bool:
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_server(
                self._new_arrival, self._config.host, self._config.tcp_port
            )
        except OSError as error:
            self._log_failure(bind_failure(error))
            return False
        self._log.info("http_started", host=self._config.host, tcp_port=self.tcp_port)
        return True

    def _log_failure(self, reason: str) -> None:
        if reason != self._last_failure:  # said once, however often it is tried
            self._last_failure = reason
            self._log.warning("http_failed_to_listen", address=str(self._config), reason=reason)

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
        if self._runner.server is None or not self._door.allows(peer_host(transport)):
            transport.abort()
        elif self._https is not None:
            self._https.begin(transport)
        elif (protocol := self._protocol_for(transport)) is None:
            transport.abort()
        else:
            transport.set_protocol(protocol)
            protocol.connection_made(transport)

    def _protocol_for(self, transport: asyncio.Transport) -> asyncio.Protocol | None:
        """What speaks HTTP on a connection, None if there is no room for it."""
        server = self._runner.server
        if server is None or not self._has_room(peer_host(transport), server):
            return None
        return server()

    def _has_room(self, host: str, server: web.Server) -> bool:
        return self._door.has_room(host, len(server.connections))


def _library_log() -> logging.Logger:
    """The library's log without what is no HTTP: anybody can send that, and is answered."""
    log = logging.getLogger("aiohttp.server")
    log.addFilter(_is_ours)
    return log


def _is_ours(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, HttpProcessingError)
