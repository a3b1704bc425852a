"""Time for code on the event loop: the time now, timers, sleeps and timeouts.

Everything on the loop that reads time or waits for it uses these functions instead of the loop's
own and asyncio's. Tests install a clock of theirs with `use` and hold or advance time, whichever
event loop they run on; nothing has to be passed through constructors for that.
"""

from __future__ import annotations

import asyncio
import math
import time as system_time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final, Protocol


class Timer(Protocol):
    """A callback that is due later."""

    def cancel(self) -> None:
        """Drop the callback; does nothing after it has run or was cancelled."""


class Clock(Protocol):
    """A source of time. Seconds are monotonic, from an arbitrary start.

    A timer is never early. It runs after all that the loop could have handled when it was due:
    bytes that had come, results of threads.
    """

    def time(self) -> float:
        """Return the time now; callable from any thread."""

    def call_later(self, delay_s: float, callback: Callable[..., object], /, *args: Any) -> Timer:
        """Run a callback on the running loop after `delay_s`, never within this call."""


class SystemClock:
    """The machine's monotonic clock and the running loop's timers."""

    time = staticmethod(system_time.monotonic)

    def call_later(self, delay_s: float, callback: Callable[..., object], /, *args: Any) -> Timer:
        """See Clock."""
        return _SystemTimer(delay_s, callback, args)


class _SystemTimer:
    """A timer of the running loop that is never early and gives way to what happened before.

    uvloop rounds to milliseconds of a time that it read up to 1 ms ago, so it may run a timer
    1.5 ms early. After the loop was held up, it runs the timers that became due meanwhile before it
    looks for bytes that have come and for results of threads: limits would be over that were kept.
    """

    __slots__ = ("_args", "_callback", "_handle", "_loop")

    def __init__(
        self, delay_s: float, callback: Callable[..., object], args: tuple[Any, ...]
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._callback = callback
        self._args = args
        wait_s = math.ceil(delay_s * 1000 + 1) / 1000 if delay_s > 0 else 0.0
        self._handle: asyncio.Handle = self._loop.call_later(wait_s, self._is_due)

    def cancel(self) -> None:
        """See Timer."""
        self._handle.cancel()

    def _is_due(self) -> None:
        # The next turn of uvloop's loop begins with the results that are there and then polls ...
        self._handle = self._loop.call_soon(self._run_after_poll)

    def _run_after_poll(self) -> None:
        # ... and this is run after that.
        self._handle = self._loop.call_soon(self._callback, *self._args)


#: Futures and tasks that a result passes through at most before the body of a timeout has it. Each
#: takes a turn of the loop.
_MOST_HOPS: Final = 6

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
    """Cancel the body after `delay_s` and raise TimeoutError; like asyncio.timeout.

    A body whose result was there in time ends with it, though the loop was held up.
    """
    async with asyncio.timeout(None) as limit:
        expiry = _Expiry(limit, delay_s)
        try:
            yield limit
        finally:
            expiry.cancel()


class _Expiry:
    """Ends the body of a timeout that is over, once its result has had time to get there."""

    def __init__(self, limit: asyncio.Timeout, delay_s: float) -> None:
        self._limit = limit
        self._timer = call_later(delay_s, self._hop, _MOST_HOPS)

    def cancel(self) -> None:
        """The body has ended."""
        self._timer.cancel()

    def _hop(self, left: int) -> None:
        if left:
            self._timer = asyncio.get_running_loop().call_soon(self._hop, left - 1)
        else:
            self._limit.reschedule(0.0)  # the past of every loop's clock: now


def _set_done(over: asyncio.Future[None]) -> None:
    if not over.done():
        over.set_result(None)
