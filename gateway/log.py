"""How the service's log lines look; what they say is said where it happens.

On a terminal they are for people, elsewhere one JSON object a line; for the journal of systemd
with the level in front, as sd-daemon(3) has it. Events are `noun_verb` in the past tense with
keys; data bytes are never logged.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import TextIO, cast

import structlog

from gateway.log_writer import LogWriter

#: Levels as syslog counts them (sd-daemon(3)).
_SYSLOG_PRIORITY = {"critical": 2, "error": 3, "warning": 4, "info": 6, "debug": 7}


def configure(
    stream: TextIO | LogWriter,
    *,
    verbose: bool = False,
    environment: Mapping[str, str] = os.environ,
) -> None:
    """Send the log to `stream`, from level info on, or from debug on when `verbose`.

    Warnings and errors of libraries, asyncio above all, go there too.
    """
    form: list[structlog.typing.Processor]
    if stream.isatty():
        form = [_timestamp(utc=False), _with_traceback, structlog.dev.ConsoleRenderer(colors=True)]
    elif _is_journal(stream, environment):
        form = [_with_traceback, _for_journal]  # which knows the time itself
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
    """One line whatever happens: the journal would take each line of a traceback for itself."""
    priority = _SYSLOG_PRIORITY[event.pop("level")]
    fields = {"event": event.pop("event"), **event}
    return f"<{priority}>{_as_json(logger, name, fields)!s}"


def _is_journal(stream: TextIO | LogWriter, environment: Mapping[str, str]) -> bool:
    """Whether the stream is the one that systemd has connected to its journal: systemd.exec(5)."""
    try:
        status = os.fstat(stream.fileno())
    except OSError:  # not a file
        return False
    return environment.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


class _LibraryHandler(logging.Handler):
    """Brings what libraries log into the log of the service."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            message = record.getMessage()
        except Exception:  # the library's own mistake, which must not become ours
            self.handleError(record)
            return
        # structlog knows only the five levels; libraries may have some in between.
        level = min(record.levelno // 10 * 10, logging.CRITICAL)
        structlog.get_logger().log(
            level, "library_logged", library=record.name, message=message, exc_info=record.exc_info
        )
