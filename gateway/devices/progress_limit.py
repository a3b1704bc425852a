"""Gives up what has stopped moving, or takes too long in all.

Progress is reported by a function of the code that waits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gateway import clock

#: How often progress is looked at: a stall is noticed so much later at most.
_LOOK_S = 1.0


@dataclass(frozen=True, slots=True)
class Limits:
    """How long to wait: `stall_s` without progress, `longest_s` in all."""

    stall_s: float
    longest_s: float


class ProgressLimit:
    """Calls `given_up`, once, when `moved()` has not changed for `limits().stall_s`, or when
    `limits().longest_s` have passed since the start.

    For the loop's thread. Active from `start` to `stop`.
    """

    def __init__(
        self,
        moved: Callable[[], int],
        limits: Callable[[], Limits],
        given_up: Callable[[], None],
    ) -> None:
        self._moved = moved
        self._limits = limits
        self._given_up = given_up
        self._has_begun = False
        self._began_at = 0.0
        self._seen = 0
        self._stands_since = 0.0
        self._timer: clock.Timer | None = None

    @property
    def is_running(self) -> bool:
        """Whether it is between `start` and `stop`."""
        return self._timer is not None

    def start(self, after: ProgressLimit | None = None) -> None:
        """Begin, unless it is running; count from the start of `after`, if that has begun.

        `after` must have the same measure of progress.
        """
        if self._timer is not None:
            return
        self._has_begun = True
        if after is not None and after._has_begun:
            self._began_at = after._began_at
            self._seen, self._stands_since = after._seen, after._stands_since
        else:
            self._began_at = self._stands_since = clock.time()
            self._seen = self._moved()
        self._look_later()

    def stop(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look_later(self) -> None:
        at = min(clock.time() + _LOOK_S, self._ends_at())
        self._timer = clock.call_at(at, self._look)

    def _ends_at(self) -> float:
        limits = self._limits()
        return min(self._stands_since + limits.stall_s, self._began_at + limits.longest_s)

    def _look(self) -> None:
        now, moved = clock.time(), self._moved()
        if moved != self._seen:
            self._seen, self._stands_since = moved, now
        if now >= self._ends_at():
            self._timer = None
            self._given_up()
        else:
            self._look_later()
