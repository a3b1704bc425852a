"""Write the output of one board to its log file, with a time stamp in front of each line.

A thread per file does it, so that a slow or full disk delays nothing else.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Final

import structlog

from gateway.config.document import Recording

#: Output that may wait for a slow or full disk, 12 s at 921600 baud; more is dropped.
MAX_WAITING_BYTES: Final = 1 << 20

#: Output that is stamped and written at once: at one byte a line, stamps make it 25 times larger.
_BATCH_BYTES: Final = 1 << 16

#: How long a failed write keeps from the next try.
RETRY_S: Final = 5.0

#: How long closing waits for the last bytes; a disk that does not answer is left behind.
_CLOSE_LIMIT_S: Final = 0.5


class OutputLog:
    """The log file of one board. `write`, `reopen` and `close` are for one thread.

    A file that another program has moved, deleted or truncated is noticed before the next write,
    which goes to a new file at `path`. Output that can't be written is kept, up to
    MAX_WAITING_BYTES, and written later: each RETRY_S the file is tried again. Dropped bytes are
    counted, logged, and noted in the file.
    """

    def __init__(
        self,
        path: Path,
        max_bytes: int,
        keep: int,
        log: structlog.typing.FilteringBoundLogger,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._keep = keep
        self._log = log
        self._now = now
        self._waiting: deque[tuple[datetime, bytes]] = deque()
        self._waiting_bytes = 0  # with the batch that is being written
        self._is_full = False  # since a piece was dropped, until the queue is empty
        self._dropped_bytes = 0  # meanwhile
        self._changed = threading.Condition()
        self._closing = False
        self._reopening = False
        # From here on: used by the thread only.
        self._lines = TimedLines()
        self._batch = b""  # the unwritten rest of the last batch, stamped
        self._batch_bytes = 0  # of the board in it
        self._lost_bytes = 0  # noted in it
        self._failing = False
        self._fd = -1
        self._identity = (0, 0)  # device and inode of the file that was opened last
        self._lines_in = self._identity  # the same of the file that the last batch has gone to
        self._size = 0
        self._thread = threading.Thread(target=self._work, name=f"log {path.name}", daemon=True)
        self._thread.start()

    def write(self, data: bytes) -> None:
        """Write `data`, received now; never waits."""
        with self._changed:
            fits = self._waiting_bytes + len(data) <= MAX_WAITING_BYTES
            begins_to_drop = not fits and not self._is_full
            self._is_full = self._is_full or not fits
            if self._is_full:
                self._dropped_bytes += len(data)
            else:
                self._waiting.append((self._now(), data))
                self._waiting_bytes += len(data)
                self._changed.notify()
        if begins_to_drop:
            self._log.warning("log_file_behind", path=str(self._path))

    def reopen(self) -> None:
        """Close the file and open it again by its name; a failed write is tried again now."""
        with self._changed:
            self._reopening = True
            self._changed.notify()

    def close(self) -> None:
        """Write the queue, within _CLOSE_LIMIT_S, and stop."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(_CLOSE_LIMIT_S)
        if lost_bytes := self._waiting_bytes + self._dropped_bytes:
            reason = "the port was stopped before the disk had taken all"
            self._report_failure(reason, dropped_bytes=lost_bytes)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(self._has_work)
                reopening, self._reopening = self._reopening, False
                closing = self._closing
            try:
                if reopening:
                    self._close_file()
                    self._open_file()
                self._write_batch()
            except OSError as error:
                self._close_file()
                if closing:
                    break
                self._failed(error)
            else:
                if closing and not self._waiting:
                    break
        self._close_file()

    def _has_work(self) -> bool:
        return self._has_data() or self._closing or self._reopening

    def _has_data(self) -> bool:
        return bool(self._waiting or self._batch)

    def _write_batch(self) -> None:
        """Write the rest of a batch that failed, or the next one. Raises OSError."""
        self._look_at_file()
        if self._fd < 0 and self._has_data():
            self._open_file()
        if not self._batch:
            if self._identity != self._lines_in:
                self._lines.restart()
            self._take_batch()
        while self._batch:
            if self._fd < 0:
                self._open_file()
            room = max(self._max_bytes - self._size, 0)
            if len(self._batch) > room:
                # Whole lines, unless one alone is larger than the file may be.
                room = self._batch.rfind(b"\n", 0, room) + 1 or (0 if self._size else room)
            written = os.write(self._fd, self._batch[:room]) if room else 0
            self._size += written
            self._batch = self._batch[written:]
            if self._batch and written == room:
                self._rotate()
        self._lines_in = self._identity
        with self._changed:
            self._waiting_bytes -= self._batch_bytes
        self._batch_bytes = 0
        if self._failing or self._lost_bytes:
            path, lost_bytes = str(self._path), self._lost_bytes
            self._failing, self._lost_bytes = False, 0
            self._log.info("log_file_written_again", path=path, dropped_bytes=lost_bytes)

    def _take_batch(self) -> None:
        pieces = []
        with self._changed:
            while self._waiting and self._batch_bytes < _BATCH_BYTES:
                pieces.append(self._waiting.popleft())
                self._batch_bytes += len(pieces[-1][1])
            if self._is_full and not self._waiting:
                self._lost_bytes, self._dropped_bytes = self._dropped_bytes, 0
                self._is_full = False
        self._batch = b"".join(self._lines.add(at, piece) for at, piece in pieces)
        if self._lost_bytes:
            note = f"--- esp-gateway: {self._lost_bytes} bytes not written ---"
            self._batch += self._lines.note(self._now(), note.encode())

    def _failed(self, error: OSError) -> None:
        """Log it once, and wait for a while, or until it is to be tried at once."""
        if not self._failing:
            self._failing = True
            self._report_failure((error.strerror or str(error)).lower())
        with self._changed:
            self._changed.wait_for(lambda: self._closing or self._reopening, RETRY_S)

    def _report_failure(self, reason: str, **keys: int) -> None:
        self._log.error("log_file_not_written", path=str(self._path), reason=reason, **keys)

    def _look_at_file(self) -> None:
        """Close a file that is not at its path any longer; notice how long it is."""
        if self._fd < 0:
            return
        try:
            status = os.stat(self._path)  # noqa: PTH116 - a call less for each batch
        except FileNotFoundError:
            self._close_file()
            return
        if (status.st_dev, status.st_ino) != self._identity:
            self._close_file()
            return
        if status.st_size < self._size:  # truncated
            self._lines.restart()
        self._size = status.st_size

    def _open_file(self) -> None:
        # O_NONBLOCK: a FIFO in its place is an error, not waited for.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
        self._fd = os.open(self._path, flags, 0o640)
        status = os.fstat(self._fd)
        self._identity = status.st_dev, status.st_ino
        self._size = status.st_size
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

    def restart(self) -> None:
        """Stamp the next byte: it begins a file."""
        self._at_start = True

    def note(self, at: datetime, text: bytes) -> bytes:
        """A line of our own, after all that came before."""
        end = b"" if self._at_start else b"\n"
        self._at_start = True
        return end + self.add(at, text + b"\n")

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
