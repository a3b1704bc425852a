"""Writes what one board says to a file, a time in front of each line; bounded in every respect.

On a thread of its own: a disk that is slow or full is felt by nobody. The file is put aside when
it is large enough, and of those put aside a few are kept. What is kept in memory is `recorder`'s.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import structlog

from gateway.config.choices import Recording

#: What may wait for a slow disk; what comes beyond is dropped. 12 s of output at 921600 baud.
MAX_WAITING_BYTES = 1 << 20

#: How long a failed write keeps from the next try: what is written meanwhile is dropped.
_RETRY_S = 5.0

#: How long closing waits for the last bytes; a disk that does not answer is left behind.
_CLOSE_LIMIT_S = 0.5


class OutputLog:
    """The log file of one board. `write` and `close` are for one thread.

    A file that can't be written is logged once, until it can be again; nothing else comes of it.
    """

    def __init__(
        self,
        path: Path,
        max_bytes: int,
        keep: int,
        log: structlog.typing.FilteringBoundLogger,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        self.dropped_bytes = 0
        self._path = path
        self._max_bytes = max_bytes
        self._keep = keep
        self._log = log
        self._now = now
        self._lines = TimedLines()
        self._waiting: deque[tuple[datetime, bytes]] = deque()
        self._waiting_bytes = 0
        self._changed = threading.Condition()
        self._closing = False
        self._failing = False
        self._is_full = False
        self._fd = -1
        self._size = 0
        self._thread = threading.Thread(target=self._work, name=f"log {path.name}", daemon=True)
        self._thread.start()

    def write(self, data: bytes) -> None:
        """The board has said `data` now; never waits."""
        with self._changed:
            is_full = self._waiting_bytes + len(data) > MAX_WAITING_BYTES
            if is_full:
                self.dropped_bytes += len(data)
            else:
                self._waiting.append((self._now(), data))
                self._waiting_bytes += len(data)
                self._changed.notify()
        if is_full and not self._is_full:
            self._log.warning("log_file_behind", path=str(self._path))
        self._is_full = is_full

    def close(self) -> None:
        """Write what waits, within `_CLOSE_LIMIT_S`, and write nothing more."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(_CLOSE_LIMIT_S)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                pieces, self._waiting = self._waiting, deque()
                self._waiting_bytes = 0
                closing = self._closing
            data = b"".join(self._lines.add(at, piece) for at, piece in pieces)
            if data:
                self._store(data)
            if closing:
                break
        self._close_file()

    def _store(self, data: bytes) -> None:
        try:
            while data:
                if self._fd < 0:
                    self._open_file()
                room = max(self._max_bytes - self._size, 0)
                if len(data) > room:
                    # Whole lines, unless one alone is larger than the file may be.
                    room = data.rfind(b"\n", 0, room) + 1 or (0 if self._size else room)
                written = os.write(self._fd, data[:room]) if room else 0
                self._size += written
                data = data[written:]
                if data and written == room:
                    self._rotate()
        except OSError as error:
            self._failed(error, len(data))
        else:
            if self._failing:
                self._failing = False
                self._log.info("log_file_written_again", path=str(self._path))

    def _failed(self, error: OSError, unwritten_bytes: int) -> None:
        self.dropped_bytes += unwritten_bytes
        self._close_file()
        if not self._failing:
            self._failing = True
            reason = (error.strerror or str(error)).lower()
            self._log.error("log_file_not_written", path=str(self._path), reason=reason)
        with self._changed:
            self._changed.wait_for(lambda: self._closing, _RETRY_S)
            if not self._closing:
                self.dropped_bytes += self._waiting_bytes
                self._waiting.clear()
                self._waiting_bytes = 0

    def _open_file(self) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        self._fd = os.open(self._path, flags, 0o640)
        self._size = os.fstat(self._fd).st_size
        if self._size >= self._max_bytes:
            self._rotate()
            self._open_file()

    def _rotate(self) -> None:
        """Put the file aside: PATH.1 is the newest of those, PATH.<keep> the oldest."""
        self._close_file()
        if not self._keep:
            self._path.unlink()
            return
        for number in range(self._keep - 1, 0, -1):
            with contextlib.suppress(FileNotFoundError):
                self._aside(number).rename(self._aside(number + 1))
        self._path.rename(self._aside(1))

    def _aside(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")

    def _close_file(self) -> None:
        if self._fd >= 0:
            descriptor, self._fd = self._fd, -1
            with contextlib.suppress(OSError):
                os.close(descriptor)


def open_log(recording: Recording, log: structlog.typing.FilteringBoundLogger) -> OutputLog | None:
    """The log file that the operator has chosen, if any."""
    if recording.log_file is None:
        return None
    max_bytes = 1024 * recording.log_max_kib
    return OutputLog(Path(recording.log_file), max_bytes, recording.log_keep, log)


class TimedLines:
    """Puts the time of its first byte in front of each line; bytes stay as they are."""

    def __init__(self) -> None:
        self._at_start = True

    def add(self, at: datetime, data: bytes) -> bytes:
        """`data`, received at `at`, as it goes into the file."""
        if not data:
            return b""
        stamp = f"{at:%Y-%m-%d %H:%M:%S}.{at.microsecond // 1000:03d} ".encode()
        start = stamp if self._at_start else b""
        self._at_start = data.endswith(b"\n")
        body = data[:-1] if self._at_start else data
        end = b"\n" if self._at_start else b""
        return start + body.replace(b"\n", b"\n" + stamp) + end
