"""Reload the configuration file while the service runs (SIGHUP, `systemctl reload`)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from gateway import clock
from gateway.config.document import GatewayConfig
from gateway.errors import ConfigError, GatewayError
from gateway.runtime import call_blocking

#: How long reading the file may take before the reload is given up. Parsing the largest file that
#: is accepted takes 13 s on a PC; a file on a network mount that is gone never ends.
LOAD_LIMIT_S: Final = 60.0


class ReloadError(GatewayError):
    """For the operator: why a reload did not come about."""


class Reloader:
    """Run one reload at a time, and one more after it for all requests that come meanwhile.

    Made and used on the loop. `load` blocks, so it runs on a thread; `serve` makes the service
    serve its result. `started` and `ended` are called around each reload, `ended` with whether the
    file is served now. Every exception of a reload is logged: the service continues to serve the
    configuration that it has.
    """

    def __init__(
        self,
        load: Callable[[], GatewayConfig],
        serve: Callable[[GatewayConfig], Awaitable[None]],
        started: Callable[[], None],
        ended: Callable[[bool], None],
    ) -> None:
        self._load = load
        self._serve = serve
        self._started = started
        self._ended = ended
        self._log = structlog.get_logger()
        self._task: asyncio.Task[None] | None = None
        self._loading: asyncio.Task[GatewayConfig] | None = None
        self._requested_again = False

    def request(self) -> None:
        """Reload now, or once more when the current reload has ended."""
        if self._task is not None:
            self._requested_again = True
            return
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Cancel the current reload; the ports that it was starting are stopped."""
        self._requested_again = False
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        if self._loading is not None:
            self._loading.cancel()
            await asyncio.wait([self._loading])

    async def _run(self) -> None:
        try:
            while True:
                self._requested_again = False
                self._started()
                is_served = False
                try:
                    is_served = await self._reload()
                finally:
                    self._ended(is_served)
                if not self._requested_again:
                    return
        finally:
            self._task = None

    async def _reload(self) -> bool:
        try:
            await self._serve(await self._loaded())
        except ConfigError as error:
            for problem in error.problems:
                self._log.error("configuration_refused", problem=str(problem))
        except ReloadError as error:
            self._log.error("reload_failed", reason=str(error))
        except Exception as error:
            self._log.exception("reload_failed", reason=str(error) or type(error).__name__)
        else:
            return True
        return False

    async def _loaded(self) -> GatewayConfig:
        """Return the file's content now; raise ReloadError when reading it does not end.

        A read that does not end is left behind. While there is one, no second is begun.
        """
        if self._loading is not None and not self._loading.done():
            raise ReloadError("an earlier reload is still reading the file")
        loading = asyncio.get_running_loop().create_task(call_blocking(self._load, "configuration"))
        loading.add_done_callback(_retrieve_exception)
        self._loading = loading
        try:
            async with clock.timeout(LOAD_LIMIT_S):
                return await asyncio.shield(loading)
        except TimeoutError:
            if loading.done():
                raise
            reason = f"reading the file took longer than {LOAD_LIMIT_S:g} s"
            raise ReloadError(reason) from None


def _retrieve_exception(loading: asyncio.Task[GatewayConfig]) -> None:
    """Keep asyncio from logging the exception of a read that was left behind."""
    if not loading.cancelled():
        loading.exception()
