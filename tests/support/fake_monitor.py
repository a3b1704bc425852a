"""Where events about ttys come from in tests: the test."""

from __future__ import annotations

import os
from collections import deque

from gateway.usb.hotplug import UdevMonitor


class FakeMonitor(UdevMonitor):
    """A monitor whose events the test chooses, on a descriptor of its own."""

    def __init__(self) -> None:
        self.is_open = False
        self._events: deque[tuple[str, str] | OSError] = deque()
        self._descriptor = -1

    def open(self) -> FakeMonitor:
        """What the watcher calls at its start."""
        self._descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.is_open = True
        return self

    def push(self, *events: tuple[str, str] | OSError) -> None:
        """These come now; nobody hears them before the watcher has started."""
        if self.is_open:
            self._events += events
            os.eventfd_write(self._descriptor, 1)

    def fileno(self) -> int:
        return self._descriptor

    def receive(self) -> tuple[str, str] | None:
        if not self._events:
            os.eventfd_read(self._descriptor)
            return None
        event = self._events.popleft()
        if isinstance(event, OSError):
            raise event
        return event

    def close(self) -> None:
        self.is_open = False
        os.close(self._descriptor)
