"""Share the turns of the event loop among clients that ask for more than one turn has time for.

Whatever takes a client's turn delays all ports. A client's work is cut into slices; those after
its first wait here, and one is done per turn of the loop, whichever client's it is.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from weakref import WeakKeyDictionary


class Turns:
    """The slices that wait on one event loop, first come, first served."""

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], None]] = deque()

    def later(self, work: Callable[[], None]) -> None:
        """Call `work` in a later turn."""
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._take)
        self._waiting.append(work)

    def _take(self) -> None:
        work = self._waiting.popleft()
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._take)
        work()


_turns: WeakKeyDictionary[asyncio.AbstractEventLoop, Turns] = WeakKeyDictionary()


def of_running_loop() -> Turns:
    """Return the running loop's."""
    return _turns.setdefault(asyncio.get_running_loop(), Turns())
