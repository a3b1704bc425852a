"""The HTTP server's life: what speaks HTTP on each connection that comes, and its end.

What it serves is added by the modules in ROOMS; what a request may do is `http_access`'s matter.
net/acceptor.py accepts and secures the connections.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final, cast

import structlog
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from gateway.config.document import Address, ConnectionLimits, HttpConfig
from gateway.net.acceptor import Acceptor
from gateway.net.access import AcceptOptions
from gateway.ports.running_port import RunningPort
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
from gateway.web.http_answers import (
    MAX_BODY_BYTES,
    add_headers,
    guarded,
    knowing_expectations,
)
from gateway.web.lab import LAB, Lab
from gateway.web.pacing import PacedConnection
from gateway.web.websocket_frames import HttpHandler

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

#: A page has up to six connections, a program one: enough for a whole team, behind one proxy or
#: tunnel too, which can't take the rest from the other addresses.
CONNECTION_LIMITS: Final = ConnectionLimits(max=256, max_per_address=192)

#: How long a connection may be idle, and how long a request's head may take.
_IDLE_LIMIT_S: Final = 30.0

#: How long what is being answered may take to end when the server stops; twice, by aiohttp's count.
_SHUTDOWN_LIMIT_S: Final = 0.4


class HttpServer:
    """Serves what the YAML says from `start` to `stop`; made and used on the loop."""

    def __init__(
        self,
        config: HttpConfig,
        token: str | None,
        ports: Callable[[], Sequence[RunningPort]],
        version: str,
        options: AcceptOptions,
    ) -> None:
        self._config = config
        self._log = structlog.get_logger()
        self._library_log = _library_log()
        self._lab = Lab(ports, version, Policy(token, config.host_names), self._log)
        self._acceptor = Acceptor(
            Address(config.host, config.tcp_port),
            self,
            self._log.bind(server="http"),
            replace(
                options,
                allow=config.allow,
                limits=CONNECTION_LIMITS,
                cleartext_notice="This port is for HTTPS.",
            ),
        )
        self._runner = web.AppRunner(
            self._app(), handler_cancellation=True, shutdown_timeout=_SHUTDOWN_LIMIT_S
        )

    @property
    def tcp_port(self) -> int | None:
        """The port that is listened on, None while it could not be bound."""
        return self._acceptor.tcp_port

    def use_token(self, token: str | None) -> None:
        """Ask for this token from now on."""
        self._lab.policy = replace(self._lab.policy, token=token)

    async def start(self) -> None:
        """Listen; an address that can't be bound now is tried again until it can."""
        await self._runner.setup()
        assert self._runner.server is not None  # noqa: S101 - it is set up
        self._runner.server.request_handler = knowing_expectations(
            self._runner.server.request_handler
        )
        await self._lab.read_own_names()
        await self._acceptor.open()

    async def stop(self, reason: str = "the gateway is shutting down") -> None:
        """Accept nobody any more and end what is being answered; bounded to 1 s."""
        self._lab.stop_reason = reason
        await self._acceptor.close()
        await self._runner.cleanup()

    def _app(self) -> web.Application:
        app = web.Application(middlewares=[guarded], client_max_size=MAX_BODY_BYTES)
        app[LAB] = self._lab
        app.on_response_prepare.append(add_headers)
        for add_routes in ROOMS:
            add_routes(app)
        return app

    # What the acceptor reports (acceptor.AcceptorOwner).

    def listening(self) -> None:
        """Log it."""
        self._log.info("http_started", host=self._config.host, tcp_port=self.tcp_port)

    def not_listening(self, reason: str) -> None:
        """Log it."""
        self._log.warning("http_failed_to_listen", address=str(self._config), reason=reason)

    def connected(self, transport: asyncio.Transport) -> None:
        """Speak HTTP on a connection."""
        server = self._runner.server
        if server is None:
            transport.abort()
            return
        handler = HttpHandler(
            server,
            loop=asyncio.get_running_loop(),
            access_log=cast("logging.Logger", None),  # there is none, which its type leaves out
            auto_decompress=False,  # else a few KB of a body become as much memory as they like
            logger=self._library_log,
            keepalive_timeout=_IDLE_LIMIT_S,
        )
        protocol = PacedConnection(handler, self._lab.turns)
        transport.set_protocol(protocol)
        protocol.connection_made(transport)


def _library_log() -> logging.Logger:
    """The library's log without what clients send that is not HTTP: they get their answer.

    Without InvalidStateError too: at shutdown aiohttp (3.14) sets a future of its own that its time
    limit may have cancelled in the same turn.
    """
    log = logging.getLogger("aiohttp.server")
    log.addFilter(_is_a_fault)
    return log


def _is_a_fault(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(
        error, HttpProcessingError | web.RequestPayloadError | asyncio.InvalidStateError
    )
