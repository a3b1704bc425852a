"""How the service's log lines look; what they say is said where it happens.

On a terminal they are for people, elsewhere one JSON object a line. Events are `noun_verb` in
the past tense with keys; data bytes are never logged.
"""

from __future__ import annotations

import logging
from typing import TextIO

import structlog


def configure(stream: TextIO, *, verbose: bool = False) -> None:
    """Send the log to `stream`, from level info on, or from debug on when `verbose`."""
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer(colors=True)
        if stream.isatty()
        else structlog.processors.JSONRenderer(default=str)
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=not stream.isatty()),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.DEBUG if verbose else logging.INFO
        ),
        logger_factory=structlog.WriteLoggerFactory(stream),
        cache_logger_on_first_use=True,
    )
