"""Format the service's log, and write it on a thread: its reader may stall.

On a terminal lines are for people, elsewhere one JSON object a line; for the journal of systemd
with the level in front, as in sd-daemon(3). Events are `noun_verb` in the past tense with keys;
data bytes are never logged.
"""

from __future__ import annotations

import logging
import os
import select
import threading
from collections import deque
from collections.abc import Mapping
from typing import TextIO, cast

import structlog

#: Bytes that may wait for the reader of the log, some 5000 lines; further lines are dropped and
#: counted.
MAX_WAITING_BYTES = 1 << 20

#: How long closing waits for the last lines to be written.
_CLOSE_LIMIT_S = 0.5

#: Levels as syslog counts them (sd-daemon(3)).
_SYSLOG_PRIORITY = {"critical": 2, "error": 3, "warning": 4, "info": 6, "debug": 7}


def configure(
    stream: TextIO | LogWriter,
    *,
    verbose: bool = False,
    environment: Mapping[str, str] = os.environ,
) -> None:
    """Send the log to `stream`, from level info on, or from debug on when `verbose`.

    Warnings and errors of libraries, asyncio's above all, are part of it.
    """
    form: list[structlog.typing.Processor]
    if stream.isatty():
        form = [_timestamp(utc=False), _with_traceback, structlog.dev.ConsoleRenderer(colors=True)]
    elif _is_journal(stream, environment):
        form = [_with_traceback, _for_journal]  # it adds the time
    else:
        form = [_timestamp(utc=True), _with_traceback, _as_json]
    structlog.configure(
        processors=[structlog.processors.add_log_level, *form],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.DEBUG if verbose else logging.INFO
        ),
        logger_factory=structlog.WriteLoggerFactory(cast("TextIO", stream)),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(handlers=[_LibraryHandler()], level=logging.WARNING, force=True)


_with_traceback = structlog.processors.format_exc_info
_as_json = structlog.processors.JSONRenderer(default=str)


def _timestamp(*, utc: bool) -> structlog.typing.Processor:
    return structlog.processors.TimeStamper(fmt="iso", utc=utc)


def _for_journal(
    logger: structlog.typing.WrappedLogger, name: str, event: structlog.typing.EventDict
) -> str:
    """Make one line of an entry: the journal would take each line of a traceback for an entry."""
    priority = _SYSLOG_PRIORITY[event.pop("level")]
    fields = {"event": event.pop("event"), **event}
    return f"<{priority}>{_as_json(logger, name, fields)!s}"


def _is_journal(stream: TextIO | LogWriter, environment: Mapping[str, str]) -> bool:
    """Return whether systemd has connected the stream to its journal (systemd.exec(5))."""
    try:
        status = os.fstat(stream.fileno())
    except OSError:  # not a file
        return False
    return environment.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


class _LibraryHandler(logging.Handler):
    """Logs what libraries log, as events of the service's log."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            message = record.getMessage()
        except Exception:  # a mistake of the library
            self.handleError(record)
            return
        # structlog knows only the five levels; libraries may have some in between.
        level = min(record.levelno // 10 * 10, logging.CRITICAL)
        structlog.get_logger().log(
            level, "library_logged", library=record.name, message=message, exc_info=record.exc_info
        )


class LogWriter:
    """A stream for `configure`, on a file descriptor that it does not close.

    A journal that stalls, a pager on a pipe or a terminal after Ctrl-S does not stop the event
    loop. Dropped lines are logged as `log_lines_dropped` when there is room again; without a reader
    all lines are dropped.
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
        """Take one or more lines; never blocks."""
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
        """Do nothing: lines are written as soon as possible."""

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._descriptor

    def isatty(self) -> bool:
        """Return whether it is a terminal."""
        return os.isatty(self._descriptor)

    def close(self) -> None:
        """Write the lines that wait, within `_CLOSE_LIMIT_S`; later lines are ignored."""
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
                # Until here, the bytes being written have counted as waiting.
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
        """Write whole lines; return False if the reader has left or the disk is full."""
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
