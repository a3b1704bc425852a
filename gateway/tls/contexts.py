"""The TLS contexts of a running service: made off the loop, made anew when files are renewed.

What is in them is files.py's matter.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from weakref import WeakValueDictionary

import structlog

from gateway.blocking import call_blocking
from gateway.tls.files import Tls, TlsFileError, client_context, server_context

_Make = Callable[[Tls], ssl.SSLContext]


@dataclass(slots=True, weakref_slot=True, eq=False)
class TlsNow:
    """What the files say now: `context` is for the next connection and is replaced by renewals."""

    context: ssl.SSLContext


class TlsContexts:
    """See the module; made and used on the loop. Ports that say the same have one in common."""

    def __init__(self, log: structlog.typing.FilteringBoundLogger) -> None:
        self._log = log
        self._lock = asyncio.Lock()  # so that each is made once
        self._in_use: WeakValueDictionary[tuple[_Make, Tls], TlsNow] = WeakValueDictionary()

    async def server(self, tls: Tls) -> TlsNow:
        """For a port that listens; raises TlsFileError."""
        return await self._get(server_context, tls)

    async def client(self, tls: Tls) -> TlsNow:
        """For a port that connects; raises TlsFileError."""
        return await self._get(client_context, tls)

    async def renew(self) -> None:
        """Read the files again. Where that fails, what was read before stays and it is told."""
        async with self._lock:
            for (make, tls), now in tuple(self._in_use.items()):
                try:
                    now.context = await call_blocking(partial(make, tls), "TLS files")
                except TlsFileError as error:
                    self._log.error("tls_not_renewed", reason=str(error))

    async def _get(self, make: _Make, tls: Tls) -> TlsNow:
        async with self._lock:
            now = self._in_use.get((make, tls))
            if now is None:
                now = TlsNow(await call_blocking(partial(make, tls), "TLS files"))
                self._in_use[make, tls] = now
            return now
