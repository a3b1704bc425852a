"""Share the turns of the event loop among all that has more to do than fits into one turn.

Work that a peer can cause delays every port while it runs. It is cut into pieces; those that wait
are run a few per loop turn, in order, whichever peer they belong to.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from weakref import WeakKeyDictionary


class Turns:
    """A queue of calls, of which `per_turn` are run in each turn of the loop."""

    def __init__(self, per_turn: int = 1) -> None:
        self._per_turn = per_turn
        self._waiting: deque[Callable[[], object]] = deque()
        self._is_scheduled = False

    def add(self, call: Callable[[], object]) -> None:
        """Run `call` when it is its turn, never within this call."""
        self._waiting.append(call)
        if not self._is_scheduled:
            self._is_scheduled = True
            asyncio.get_running_loop().call_soon(self._run)

    async def wait(self) -> None:
        """Wait for a turn."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def begin() -> None:
            if not turn.done():
                turn.set_result(None)

        self.add(begin)
        await turn

    def _run(self) -> None:
        try:
            for _ in range(self._per_turn):
                if self._waiting:
                    self._waiting.popleft()()
        finally:
            self._is_scheduled = bool(self._waiting)
            if self._is_scheduled:
                asyncio.get_running_loop().call_soon(self._run)


_of_loops: WeakKeyDictionary[asyncio.AbstractEventLoop, Turns] = WeakKeyDictionary()


def of_running_loop() -> Turns:
    """Return the queue of the clients' sessions on the running loop."""
    return _of_loops.setdefault(asyncio.get_running_loop(), Turns())
