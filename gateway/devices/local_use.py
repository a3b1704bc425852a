"""A local tool's claim to a device's tty: what for, and who waits until the tty is closed.

Closing and opening are `device`'s matter.
"""

from __future__ import annotations

import asyncio

from gateway.errors import ClientError


class LocalUse:
    """See the module; made and used on the loop. `reason` is empty while there is no claim."""

    def __init__(self) -> None:
        self.reason = ""
        self._waiting: list[asyncio.Future[None]] = []

    def claim(self, reason: str) -> asyncio.Future[None]:
        """The tty is for `reason` from now on; the future is done when it is closed."""
        self.reason = reason
        closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(closed)
        return closed

    def tty_closed(self) -> None:
        """The kernel has closed it."""
        waiting, self._waiting = self._waiting, []
        for closed in waiting:
            if not closed.done():  # nobody waits any more
                closed.set_result(None)

    def end(self, error: ClientError) -> None:
        """There is no claim any more; who still waits gets `error`."""
        self.reason = ""
        waiting, self._waiting = self._waiting, []
        for closed in waiting:
            if not closed.done():
                closed.set_exception(error)
