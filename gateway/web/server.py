"""The HTTP server: which routes it has, and its life as the configuration changes.

net/acceptor accepts and secures the connections; `http_access` has the access rules.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Final, cast

import structlog
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from gateway.config.checks import TokenFileError, read_token
from gateway.config.document import Address, ConnectionLimits, HttpConfig
from gateway.net.acceptor import Acceptor
from gateway.net.access import AcceptOptions, Admission
from gateway.net.tls_context import TlsContext, TlsContexts, TlsFileError
from gateway.running_port import RunningPort
from gateway.runtime import call_blocking
from gateway.web import console, controls_api, flash, metrics, output_api, page, ports_api
from gateway.web.connection import HttpHandler, PacedConnection
from gateway.web.http_access import Policy
from gateway.web.http_answers import (
    LAB,
    MAX_BODY_BYTES,
    Lab,
    add_headers,
    guarded,
    knowing_expectations,
)

#: Add routes, and what they need at start and stop. Each request has the service in its `app[LAB]`;
#: a POST needs the token, our own origin and, without `http_answers.takes`, a JSON body.
ROUTES: Final[tuple[Callable[[web.Application], None], ...]] = (
    page.add_routes,
    ports_api.add_routes,
    controls_api.add_routes,
    output_api.add_routes,
    flash.add_routes,
    console.add_routes,
    metrics.add_routes,
)

#: A page has up to six connections, a program one: enough for a whole team behind one proxy or
#: tunnel, which can't take the rest from other addresses.
CONNECTION_LIMITS: Final = ConnectionLimits(max=256, max_per_address=192)

#: How long a connection may be idle, and how long a request's head may take.
_IDLE_LIMIT_S: Final = 30.0

#: How long answers may take to end when the server stops; twice, by aiohttp's count.
_SHUTDOWN_LIMIT_S: Final = 0.4


class HttpService:
    """Serves what the configuration says now; used on the event loop.

    `ports` returns the running ports, `not_served` USB devices without a port with the reasons.
    """

    def __init__(
        self,
        version: str,
        ports: Callable[[], Sequence[RunningPort]],
        not_served: Callable[[], Mapping[str, str]],
        contexts: TlsContexts,
        admission: Admission,
    ) -> None:
        self._version = version
        self._ports = ports
        self._not_served = not_served
        self._contexts = contexts
        self._admission = admission
        self._log = structlog.get_logger()
        self._config: HttpConfig | None = None
        self._server: HttpServer | None = None

    @property
    def tcp_port(self) -> int | None:
        """The TCP port of the server, None while there is none."""
        return None if self._server is None else self._server.tcp_port

    async def follow(self, config: HttpConfig | None) -> None:
        """Serve what `config` says from now on; the token is read again in any case."""
        try:
            token = await _token_of(config)
            tls = await self._tls_of(config)
        except (TokenFileError, TlsFileError) as error:
            # The files were valid a moment ago; the server continues with what it has.
            self._log.error("http_files_not_read", reason=str(error))
            return
        if self._server is not None and config == self._config:
            self._server.use_token(token)
            return
        await self.stop("the configuration of the HTTP server has changed")
        if config is not None:
            self._config = config
            policy = Policy(token, config.host_names)
            lab = Lab(self._version, self._ports, self._not_served, policy)
            self._server = HttpServer(config, lab, AcceptOptions(self._admission, tls))
            try:
                await self._server.start()
            except BaseException:
                await self.stop()  # so that the next reload retries
                raise

    async def _tls_of(self, config: HttpConfig | None) -> TlsContext | None:
        if config is None or config.tls is None:
            return None
        return await self._contexts.server(config.tls)

    async def stop(self, reason: str = "the gateway is shutting down") -> None:
        """Stop the server, if there is one; clients get the reason. Bounded to 1 s."""
        server, self._server = self._server, None
        if server is not None:
            await server.stop(reason)


async def _token_of(config: HttpConfig | None) -> str | None:
    if config is None or config.token_file is None:
        return None
    return await call_blocking(partial(read_token, config.token_file), "token file")


class HttpServer:
    """Serves one configuration from `start` to `stop` (an acceptor.AcceptorOwner)."""

    def __init__(self, config: HttpConfig, lab: Lab, options: AcceptOptions) -> None:
        self._config = config
        self._lab = lab
        self._log = lab.log
        self._library_log = _library_log()
        options = replace(
            options,
            allow=config.allow,
            limits=CONNECTION_LIMITS,
            cleartext_notice="This port is for HTTPS.",
        )
        address = Address(config.host, config.tcp_port)
        self._acceptor = Acceptor(address, self, self._log.bind(server="http"), options)
        lab.rejections = self._acceptor.rejections.counts
        app = web.Application(middlewares=[guarded], client_max_size=MAX_BODY_BYTES)
        app[LAB] = self._lab
        app.on_response_prepare.append(add_headers)
        for add_routes in ROUTES:
            add_routes(app)
        self._runner = web.AppRunner(
            app, handler_cancellation=True, shutdown_timeout=_SHUTDOWN_LIMIT_S
        )

    @property
    def tcp_port(self) -> int | None:
        """The port that is listened on, None while it could not be bound."""
        return self._acceptor.tcp_port

    def use_token(self, token: str | None) -> None:
        """Require this token from now on."""
        self._lab.policy = replace(self._lab.policy, token=token)

    async def start(self) -> None:
        """Listen; an address that can't be bound now is retried until it can."""
        await self._runner.setup()
        assert self._runner.server is not None  # noqa: S101 - it is set up
        self._runner.server.request_handler = knowing_expectations(
            self._runner.server.request_handler
        )
        await self._lab.read_own_names()
        await self._acceptor.open()

    async def stop(self, reason: str = "the gateway is shutting down") -> None:
        """Accept no more and end what is being answered; bounded to 1 s."""
        self._lab.stop_reason = reason
        await self._acceptor.close()
        await self._runner.cleanup()

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
            auto_decompress=False,  # else a few KB of a body become any amount of memory
            logger=self._library_log,
            keepalive_timeout=_IDLE_LIMIT_S,
        )
        protocol = PacedConnection(handler, self._lab.turns)
        transport.set_protocol(protocol)
        protocol.connection_made(transport)


def _library_log() -> logging.Logger:
    """The library's log without clients' errors, which are answered.

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
