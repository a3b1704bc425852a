"""What takes long to put together is built once for all that ask for it meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from gateway import clock

T = TypeVar("T")


class SharedBuild(Generic[T]):
    """Calls `build` for `get`, one at a time and at most once in `every_s`.

    Every caller gets a build that began after its call, so that none is older than what the caller
    has seen before. The first one waits for nothing; when many ask again and again, they wait
    together for the next. `build` gives others their turn on the event loop itself.
    """

    def __init__(self, build: Callable[[], Awaitable[T]], every_s: float) -> None:
        self._build = build
        self._every_s = every_s
        self._waiting: list[asyncio.Future[T]] = []
        self._task: asyncio.Task[None] | None = None
        self._begun_at: float | None = None

    async def get(self) -> T:
        """Return what was built; raises what `build` raised."""
        waiting: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiting)
        if self._task is None:
            self._task = asyncio.create_task(self._work())
        return await waiting

    async def stop(self) -> None:
        """End it; every `get` that waits is cancelled."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        for each in self._waiting:
            each.cancel()

    async def _work(self) -> None:
        try:
            while self._waiting:
                if self._begun_at is not None:
                    await clock.sleep(max(0.0, self._begun_at + self._every_s - clock.time()))
                self._begun_at = clock.time()
                asking, self._waiting = self._waiting, []
                await self._build_for(asking)
        finally:
            self._task = None

    async def _build_for(self, asking: list[asyncio.Future[T]]) -> None:
        if all(each.done() for each in asking):  # they have left
            return
        try:
            built = await self._build()
        except Exception as error:  # the requests' fault handler logs it
            for each in asking:
                if not each.done():
                    each.set_exception(error)
            return
        except asyncio.CancelledError:
            for each in asking:
                each.cancel()
            raise
        for each in asking:
            if not each.done():
                each.set_result(built)
