"""The pools' table in the state directory: read at the start, written when it has changed.

What the table means is `pool_table`'s matter. Without a directory that can be written to, pools
work all the same, and their ports are given anew after a restart.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog

from gateway import clock
from gateway.tty.control_thread import ControlThread
from gateway.usb.pool_table import PoolTable
from gateway.usb.state_file import read_state, set_aside, write_state

FILE_NAME = "pools.json"

#: fsync waits for the disk, and a worn memory card takes seconds.
_CALL_LIMIT_S = 30.0
#: How long the end waits for the last write, and the start for the table.
_CLOSE_LIMIT_S = 1.0
_LOAD_LIMIT_S = 5.0


#: When a table that could not be written is tried again: the disk may have room then.
_RETRY_S = 60.0

_SECONDS_PER_DAY = 86400


def today() -> int:
    """The day, as the table counts them."""
    return int(time.time()) // _SECONDS_PER_DAY


def read_table(folder: Path) -> PoolTable:
    """The table of a service that may run, to look at; empty if there is none to be read."""
    try:
        state = read_state(folder / FILE_NAME)
        return PoolTable() if state is None else PoolTable.from_json(state)
    except (OSError, ValueError):
        return PoolTable()


class PoolStore:
    """Keeps `table`; made and used on the loop."""

    def __init__(self, folder: Path, log: structlog.typing.FilteringBoundLogger) -> None:
        self.table = PoolTable()
        self._path = folder / FILE_NAME
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._thread: ControlThread | None = None
        self._loaded = False
        self._written: dict[str, Any] | None = None  # or about to be
        self._last_failure = ""
        self._retry: clock.Timer | None = None

    async def load(self) -> None:
        """Read the table, the first time; a file that can't be read is told and set aside."""
        if self._loaded:
            return
        self._loaded = True
        done = asyncio.Event()

        def read(state: Any) -> None:
            self._take(state)
            done.set()

        def failed(error: Exception) -> None:
            self._log.warning("pool_state_not_read", path=str(self._path), reason=_reason(error))
            if isinstance(error, ValueError):
                self._submit(
                    lambda: set_aside(self._path), lambda _: done.set(), lambda _: done.set()
                )
            else:
                done.set()

        self._submit(lambda: read_state(self._path), read, failed)
        with contextlib.suppress(TimeoutError):
            async with clock.timeout(_LOAD_LIMIT_S):
                await done.wait()

    def save(self) -> None:
        """Write the table, if it differs from what was written last."""
        if self._retry is not None:
            self._retry.cancel()
        state = self.table.to_json()
        if state == self._written:
            return
        self._written = state
        self._submit(lambda: write_state(self._path, state), self._saved, self._not_saved)

    async def close(self) -> None:
        """Wait for what is being written, for a moment."""
        if self._retry is not None:
            self._retry.cancel()
        if self._thread is None:
            return
        thread, self._thread = self._thread, None
        ended = asyncio.Event()

        def end() -> None:
            with contextlib.suppress(RuntimeError):  # the loop did not wait for it
                self._loop.call_soon_threadsafe(ended.set)

        # Behind the writes that wait: `stop` would drop them.
        thread.submit(end, lambda _: None, lambda _: None, limit_s=_CALL_LIMIT_S)
        with contextlib.suppress(TimeoutError):
            async with clock.timeout(_CLOSE_LIMIT_S):
                await ended.wait()
        thread.stop(lambda: None)

    def _take(self, state: Any) -> None:
        if state is None:
            return
        try:
            self.table = PoolTable.from_json(state)
            self._written = self.table.to_json()
        except ValueError as error:
            self._log.warning("pool_state_not_read", path=str(self._path), reason=str(error))
            self._submit(lambda: set_aside(self._path), lambda _: None, lambda _: None)

    def _saved(self, _: object) -> None:
        self._last_failure = ""

    def _not_saved(self, error: Exception) -> None:
        self._written = None
        self._retry = clock.call_later(_RETRY_S, self.save)
        reason = _reason(error)
        if reason != self._last_failure:
            self._last_failure = reason
            self._log.warning("pool_state_not_written", path=str(self._path), reason=reason)

    def _stuck(self, limit_s: float) -> None:
        self._log.error("pool_state_stuck", reason=f"the disk has not answered in {limit_s:g} s")
        if self._thread is not None:
            self._thread.stop(lambda: None)
            self._thread = None

    def _submit(
        self,
        run: Callable[[], Any],
        done: Callable[[Any], None],
        failed: Callable[[Exception], None],
    ) -> None:
        if self._thread is None:
            self._thread = ControlThread("pool-state", self._stuck)
        self._thread.submit(run, done, failed, limit_s=_CALL_LIMIT_S)


def _reason(error: Exception) -> str:
    strerror = error.strerror if isinstance(error, OSError) else None
    return strerror or str(error)
