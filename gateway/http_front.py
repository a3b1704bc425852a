"""Whether there is an HTTP server, and which: what the configuration wants, from start to stop.

Nothing of the server's packages is loaded before a configuration asks for it: importing them takes
as long as the rest of the start. What it serves is the package `web`'s matter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import structlog

from gateway.config.checks import TokenFileError, read_token
from gateway.config.document import HttpConfig
from gateway.net.access import AcceptOptions, Admission
from gateway.net.tls_context import TlsContext, TlsContexts, TlsFileError
from gateway.ports.running_port import RunningPort
from gateway.runtime import call_blocking

if TYPE_CHECKING:
    from gateway.web.http_server import HttpServer


class HttpFront:
    """See the module; made and used on the loop. `ports` tells which ports run."""

    def __init__(
        self,
        ports: Callable[[], Sequence[RunningPort]],
        version: str,
        contexts: TlsContexts,
        admission: Admission,
    ) -> None:
        self._ports = ports
        self._admission = admission
        self._contexts = contexts
        self._version = version
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
            # The files were fine a moment ago; who is served goes on being served.
            self._log.error("http_files_not_read", reason=str(error))
            return
        if self._server is not None and config == self._config:
            self._server.use_token(token)
            return
        await self.stop("the configuration of the HTTP server has changed")
        if config is not None:
            # On a thread: the ports are served meanwhile.
            server_of = await call_blocking(_load, "HTTP server")
            self._config = config
            options = AcceptOptions(self._admission, tls)
            self._server = server_of(config, token, self._ports, self._version, options)
            try:
                await self._server.start()
            except BaseException:
                await self.stop()  # so that the next reload tries again
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


def _load() -> type[HttpServer]:
    from gateway.web.http_server import HttpServer  # noqa: PLC0415 - see the module

    return HttpServer
