"""Time for code on the event loop: the time now, timers, sleeps and timeouts.

Everything on the loop that reads time or waits for it uses these functions instead of the loop's
own and asyncio's. Tests install a clock of theirs with `use` and hold or advance time, whichever
event loop they run on; nothing has to be passed through constructors for that.
"""

from __future__ import annotations

import asyncio
import time as system_time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Protocol


class Timer(Protocol):
    """A callback that is due later."""

    def cancel(self) -> None:
        """Drop the callback; does nothing after it has run or was cancelled."""


class Clock(Protocol):
    """A source of time. Seconds are monotonic, from an arbitrary start."""

    def time(self) -> float:
        """Return the time now; callable from any thread."""

    def call_later(self, delay_s: float, callback: Callable[..., object], /, *args: Any) -> Timer:
        """Run a callback on the running loop after `delay_s`, never within this call."""


class SystemClock:
    """The machine's monotonic clock and the running loop's timers."""

    time = staticmethod(system_time.monotonic)

    def call_later(self, delay_s: float, callback: Callable[..., object], /, *args: Any) -> Timer:
        """See Clock."""
        return asyncio.get_running_loop().call_later(delay_s, callback, *args)


_clock: Clock = SystemClock()


def installed() -> Clock:
    """Return the process's clock."""
    return _clock


@contextmanager
def use(clock: Clock) -> Iterator[None]:
    """Replace the process's clock inside the `with`; for tests."""
    global _clock  # noqa: PLW0603 - one clock for the process is the point
    before, _clock = _clock, clock
    try:
        yield
    finally:
        _clock = before


def time() -> float:
    """Return the time now in seconds, monotonic, from an arbitrary start."""
    return _clock.time()


def call_later(delay_s: float, callback: Callable[..., object], *args: Any) -> Timer:
    """Run a callback on the running loop after `delay_s`, never within this call."""
    return _clock.call_later(delay_s, callback, *args)


def call_at(when_s: float, callback: Callable[..., object], *args: Any) -> Timer:
    """Run a callback on the running loop at a time of `time()`, never within this call."""
    return _clock.call_later(max(0.0, when_s - _clock.time()), callback, *args)


async def sleep(delay_s: float) -> None:
    """Wait; like asyncio.sleep."""
    over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    timer = call_later(delay_s, _set_done, over)
    try:
        await over
    finally:
        timer.cancel()


@asynccontextmanager
async def timeout(delay_s: float) -> AsyncIterator[asyncio.Timeout]:
    """Cancel the body after `delay_s` and raise TimeoutError; like asyncio.timeout."""
    async with asyncio.timeout(None) as limit:
        # 0 is in the past of every loop's clock: the limit is over when the timer runs.
        timer = call_later(delay_s, limit.reschedule, 0.0)
        try:
            yield limit
        finally:
            timer.cancel()


def _set_done(over: asyncio.Future[None]) -> None:
    if not over.done():
        over.set_result(None)
