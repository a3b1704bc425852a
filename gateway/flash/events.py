"""What is reported of a board that is being flashed, until its client takes it: bounded.

A client that reads slowly must not hold up the board: of progress only the last is kept, and of
esptool's lines the last ones.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

#: Lines of esptool that wait for a client; a whole run into 4 MB has 300.
_MAX_LINES = 1000
#: Other events are few: this many images have been verified and more are none.
_MAX_OTHERS = 500


class FlashEvents:
    """See the module; used on the loop by one who adds and one who takes."""

    def __init__(self) -> None:
        self._waiting: deque[dict[str, Any]] = deque()
        self._lines = 0
        self._arrived = asyncio.Event()

    def add(self, event: dict[str, Any]) -> None:
        """Keep an event for the client."""
        is_progress = event["event"] == "progress"
        if is_progress and self._waiting and self._waiting[-1]["event"] == "progress":
            self._waiting.pop()
        if event["event"] == "line":
            if self._lines >= _MAX_LINES:
                self._drop_line()
            self._lines += 1
        elif len(self._waiting) - self._lines >= _MAX_OTHERS:
            return
        self._waiting.append(event)
        self._arrived.set()

    async def arrived(self) -> None:
        """Wait until there is one."""
        await self._arrived.wait()

    def take(self) -> list[dict[str, Any]]:
        """All that wait, oldest first."""
        taken = list(self._waiting)
        self._waiting.clear()
        self._lines = 0
        self._arrived.clear()
        return taken

    def _drop_line(self) -> None:
        for index, event in enumerate(self._waiting):
            if event["event"] == "line":
                del self._waiting[index]
                self._lines -= 1
                return
