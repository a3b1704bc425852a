"""The gateway's threads in the test's own process: whether they have something to do.

A test that moves a stopped clock must know, for a thread that has not had its turn yet on a busy
machine would be given up by the clock, or arm a timer when the clock has moved on.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from types import FrameType

from gateway.net import name_lookup
from gateway.serialport.worker import Worker

#: For a thread that a test keeps from ending in a way that `hangs` does not know.
_LONGEST_S = 1.0


class ThreadsAtWork:
    """Threads that are about to report to the loop, but for those that are to hang.

    `hangs` tells whether a function, by its frame, is one that a test keeps from returning.
    """

    def __init__(self, hangs: Callable[[FrameType], bool]) -> None:
        self._hangs = hangs
        self._until = time.monotonic() + _LONGEST_S

    def __bool__(self) -> bool:
        return time.monotonic() < self._until and any(
            _is_at_work(thread) and not self._hangs_in(thread) for thread in threading.enumerate()
        )

    def _hangs_in(self, thread: threading.Thread) -> bool:
        frame = sys._current_frames().get(thread.ident or 0)
        while frame is not None and not self._hangs(frame):
            frame = frame.f_back
        return frame is not None


def _is_at_work(thread: threading.Thread) -> bool:
    """It has a call that the loop has not heard the end of, or is to end itself."""
    target = getattr(thread, "_target", None)
    if target is name_lookup._work or getattr(target, "__module__", "") == "gateway.runtime":
        return True
    control = getattr(target, "__self__", None)
    if not isinstance(control, Worker):
        return False
    return control._stopped or (control._running is not None and not control._ended)
