"""Where the service's log goes: written on a thread, so that nobody waits for who reads it.

A journal that stalls, a pager on a pipe or a terminal after Ctrl-S would otherwise stop the event
loop, and every client with it. How lines look is `log`'s matter.
"""

from __future__ import annotations

import os
import select
import threading
from collections import deque

import structlog

#: What may wait for the reader, some 5000 lines; what comes beyond is dropped and counted.
MAX_WAITING_BYTES = 1 << 20

#: How long closing waits for the last lines.
_CLOSE_LIMIT_S = 0.5


class LogWriter:
    """A stream, as far as `log.configure` needs one, on a file descriptor that is not closed.

    Lines that could not be kept are told as `log_lines_dropped` when there is room again. A
    reader that is gone for good is no reason to stop: its lines are dropped.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._dropped_lines = 0
        self._is_full = False  # since a line was dropped, until none waits: one gap, not many
        self._closing = False
        self._cut_off = False  # the last bytes written do not end a line
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="log", daemon=True)
        self._thread.start()

    def write(self, text: str) -> int:
        """Take a line, or several; never waits."""
        data = text.encode(errors="backslashreplace")
        with self._changed:
            if self._waiting_bytes + len(data) > MAX_WAITING_BYTES:
                self._is_full = True
            if self._is_full:
                self._dropped_lines += 1
            else:
                self._waiting.append(data)
                self._waiting_bytes += len(data)
                self._changed.notify()
        return len(text)

    def flush(self) -> None:
        """Nothing: it is written as soon as can be."""

    def fileno(self) -> int:
        """The descriptor."""
        return self._descriptor

    def isatty(self) -> bool:
        """Whether a person reads it."""
        return os.isatty(self._descriptor)

    def close(self) -> None:
        """Write what waits, within `_CLOSE_LIMIT_S`, and nothing more."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(_CLOSE_LIMIT_S)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                if not self._waiting:
                    return
                data = self._waiting.popleft()
            is_written = self._write_all(data)
            with self._changed:
                # What is being written counts as waiting.
                self._waiting_bytes -= len(data)
                self._dropped_lines += not is_written
                missed_lines = 0
                if not self._waiting:
                    self._is_full = False
                    if is_written:
                        missed_lines, self._dropped_lines = self._dropped_lines, 0
            if missed_lines:
                structlog.get_logger().warning("log_lines_dropped", count=missed_lines)

    def _write_all(self, data: bytes) -> bool:
        """Write lines whole, or return False when the reader has left or the disk is full."""
        if self._cut_off:  # the rest of a line that was not written whole
            data = b"\n" + data
        rest = data
        try:
            while rest:
                try:
                    rest = rest[os.write(self._descriptor, rest) :]
                except BlockingIOError:  # made so by a process that has the same terminal
                    select.select([], [self._descriptor], [])
        except OSError:
            self._cut_off = self._cut_off or len(rest) < len(data)
            return False
        self._cut_off = False
        return True
