"""The clock that every asynchronous test runs on: the system's, until the test holds it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextvars import Context, copy_context
from typing import Any

from gateway.clock import SystemClock, Timer

_SYSTEM = SystemClock()


class ControlledTimer:
    """A timer of a ControlledClock."""

    def __init__(
        self,
        owner: ControlledClock,
        when_s: float,
        callback: Callable[..., object],
        args: tuple[Any, ...],
    ) -> None:
        self.when_s = when_s
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._callback = callback
        self._args = args
        self._context: Context = copy_context()
        self._handle: Timer | None = None

    def cancel(self) -> None:
        """See gateway.clock.Timer."""
        self.disarm()
        self._owner.timers.discard(self)

    def arm(self, delay_s: float) -> None:
        """Run after `delay_s` of real time; 0 is the loop's next turn."""
        self.disarm()
        if delay_s > 0:
            self._handle = _SYSTEM.call_later(delay_s, self._run)
        else:
            self._handle = self._loop.call_soon(self._run)

    def disarm(self) -> None:
        """Do not run until it is armed again."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _run(self) -> None:
        self._owner.timers.discard(self)
        self._context.run(self._callback, *self._args)


class ControlledClock:
    """The system's clock while it runs; once held, it moves by `advance` only.

    Timers that were set before are held as well, and due in their order as the clock moves.
    """

    def __init__(self) -> None:
        self.timers: set[ControlledTimer] = set()
        self._held_at_s: float | None = None
        self._ahead_s = 0.0

    def time(self) -> float:
        """See Clock."""
        return time.monotonic() + self._ahead_s if self._held_at_s is None else self._held_at_s

    def call_later(
        self, delay_s: float, callback: Callable[..., object], /, *args: Any
    ) -> ControlledTimer:
        """See Clock."""
        timer = ControlledTimer(self, self.time() + delay_s, callback, args)
        self.timers.add(timer)
        self._arm(timer)
        return timer

    @property
    def is_held(self) -> bool:
        """Whether it moves by `advance` only."""
        return self._held_at_s is not None

    def hold(self) -> None:
        """Stop."""
        assert self._held_at_s is None, "the clock is held already"
        self._held_at_s = self.time()
        self._arm_all()

    def advance(self, seconds: float) -> None:
        """Move by that much; what is due then runs in the loop's next turn."""
        assert self._held_at_s is not None, "the clock is not held"
        self._held_at_s += seconds
        self._arm_all()

    def release(self) -> None:
        """Go on from here."""
        assert self._held_at_s is not None, "the clock is not held"
        self._ahead_s = max(self._held_at_s - time.monotonic(), self._ahead_s)
        self._held_at_s = None
        self._arm_all()

    def _arm_all(self) -> None:
        for timer in sorted(self.timers, key=lambda timer: timer.when_s):
            self._arm(timer)

    def _arm(self, timer: ControlledTimer) -> None:
        if self._held_at_s is None:
            timer.arm(timer.when_s - self.time())
        elif timer.when_s <= self._held_at_s:
            timer.arm(0)
        else:
            timer.disarm()
