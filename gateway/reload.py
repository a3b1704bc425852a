"""Reading the configuration again while the service runs (SIGHUP, `systemctl reload`).

One reload at a time; what is asked for meanwhile is one more behind it. What a new configuration
changes is `service`'s matter.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from gateway.config.document import GatewayConfig
from gateway.errors import ConfigError


class Reloader:
    """Reads and serves the configuration again each time that it is asked; made on the loop.

    `load` reads the file, on a thread: a large file takes seconds. `serve` makes the service
    serve it. `started` and `ended` are called around each reload. A file with mistakes changes
    nothing and is reported.
    """

    def __init__(
        self,
        load: Callable[[], GatewayConfig],
        serve: Callable[[GatewayConfig], Awaitable[None]],
        started: Callable[[], None],
        ended: Callable[[], None],
    ) -> None:
        self._load = load
        self._serve = serve
        self._started = started
        self._ended = ended
        self._log = structlog.get_logger()
        self._task: asyncio.Task[None] | None = None
        self._asked_again = False

    def request(self) -> None:
        """Reload now, or once more when the reload that runs has ended."""
        if self._task is not None:
            self._asked_again = True
            return
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Begin none any more; wait for the one that runs."""
        self._asked_again = False
        if self._task is not None:
            await self._task

    async def _run(self) -> None:
        while True:
            self._asked_again = False
            self._started()
            try:
                await self._reload()
            finally:
                self._ended()
            if not self._asked_again:
                self._task = None
                return

    async def _reload(self) -> None:
        try:
            config = await asyncio.to_thread(self._load)
        except ConfigError as error:
            for problem in error.problems:
                self._log.error("configuration_refused", problem=str(problem))
            return
        await self._serve(config)
