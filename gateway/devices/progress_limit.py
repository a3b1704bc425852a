"""Gives something up that does not move any more, however long it may take while it moves.

What moves is told by whoever waits for it.
"""

from __future__ import annotations

from collections.abc import Callable

from gateway import clock

#: How often it is looked at. What stands still is given up so much later at most.
_LOOK_S = 1.0


class ProgressLimit:
    """Calls `stalled`, once, when `moved()` has been the same for `limit_s`; made on the loop.

    From `start` to `stop`.
    """

    def __init__(
        self, moved: Callable[[], int], limit_s: float, stalled: Callable[[], None]
    ) -> None:
        self._moved = moved
        self._limit_s = limit_s
        self._stalled = stalled
        self._seen = 0
        self._stands_since = 0.0
        self._timer: clock.Timer | None = None

    @property
    def is_running(self) -> bool:
        """Whether it is looked at."""
        return self._timer is not None

    def start(self) -> None:
        """Look from now on; nothing changes if that is so already."""
        if self._timer is None:
            self._seen, self._stands_since = self._moved(), clock.time()
            self._look_later()

    def stop(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look_later(self) -> None:
        at = min(clock.time() + _LOOK_S, self._stands_since + self._limit_s)
        self._timer = clock.call_at(at, self._look)

    def _look(self) -> None:
        now, moved = clock.time(), self._moved()
        if moved != self._seen:
            self._seen, self._stands_since = moved, now
        elif now >= self._stands_since + self._limit_s:
            self._timer = None
            self._stalled()
            return
        self._look_later()
