"""Errors that are only logged, where they would pass unnoticed.

An exception in a callback of an event loop ends nothing: the loop hands it to its exception
handler, whose default logs it. Libraries do the same with what they call.
"""

from __future__ import annotations

import logging
from typing import Self


class LoggedErrors(logging.Handler):
    """What is logged as an error, or with a traceback, inside the `with`."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record that tells of an error."""
        if record.levelno >= logging.ERROR or record.exc_info:
            self.texts.append(self.format(record))

    def __enter__(self) -> Self:
        logging.getLogger().addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger().removeHandler(self)
